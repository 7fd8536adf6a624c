"""Instructions: how training words a change, and the disjoint wordings that measure it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from models.edits.scenes import GarmentScene, change, differences, start
from models.garments.catalogue import BACKGROUNDS, CLOTHS, GARMENTS, PRINTS, GarmentFacts
from models.garments.prompts import COLOUR_WORDS, FILLERS, PLURALS, WORDS

# {c} new colour, {o} old colour, {g} garment as it is, {h} new garment with its article, {k} the print's colour,
# {p} print, {q} old print, {b} ground.
_TRAINED: Final[dict[str, tuple[str, ...]]] = {
    "colour": (
        "make it {c}",
        "make it {c}",
        "make the {g} {c}",
        "make this {g} {c}",
        "change the colour to {c}",
        "change the color to {c}",
        "change its colour to {c}",
        "change the {g} to {c}",
        "turn it {c}",
        "turn the {g} {c}",
        "turn the {o} {g} {c}",
        "paint it {c}",
        "paint the {g} {c}",
        "colour it {c}",
        "colour the {g} {c}",
        "dye the {g} {c}",
        "recolour it to {c}",
        "{c}",
        "{c} instead of {o}",
        "{c}, not {o}",
        "change the {o} {g} to {c}",
        "a {c} {g}",
        "the same {g} in {c}",
        "i want the {g} in {c}",
        "from {o} to {c}",
        "make the {o} {g} {c}",
        "use {c} as the colour of the {g}",
    ),
    "print": (
        "add {p}",
        "add {p}",
        "add {p} to it",
        "add {p} to the {g}",
        "give it {p}",
        "give the {g} {p}",
        "put {p} on it",
        "put {p} on the {g}",
        "with {p}",
        "draw {p} on the {g}",
        "print {p} on it",
        "i want {p} on the {g}",
        "make it have {p}",
        "the {g} with {p}",
    ),
    "plain": (
        "remove the {q}",
        "take the {q} away",
        "make it plain",
        "make the {g} plain",
        "no {q}",
        "without the {q}",
        "delete the {q}",
        "a plain {g}",
        "remove the pattern",
        "no pattern",
    ),
    "garment": (
        "turn the {g} into {h}",
        "turn it into {h}",
        "turn this into {h}",
        "change the {g} to {h}",
        "change it to {h}",
        "make it {h}",
        "make the {g} {h}",
        "replace the {g} by {h}",
        "replace the {g} with {h}",
        "{h} instead of the {g}",
        "i want {h} instead",
        "transform the {g} into {h}",
        "convert it to {h}",
        "{h}",
    ),
    "long": (
        "give it long sleeves",
        "add long sleeves",
        "make the sleeves long",
        "make the sleeves longer",
        "with long sleeves",
        "give the {g} long sleeves",
        "long sleeves",
        "lengthen the sleeves",
        "i want long sleeves",
    ),
    "short": (
        "give it short sleeves",
        "make the sleeves short",
        "make the sleeves shorter",
        "with short sleeves",
        "give the {g} short sleeves",
        "short sleeves",
        "shorten the sleeves",
        "cut the sleeves off",
        "no long sleeves",
    ),
    "ground": (
        "change the background to {b}",
        "make the background {b}",
        "put it on a {b} background",
        "put the {g} on {b}",
        "{b} background",
        "on a {b} background",
        "use a {b} background",
        "set the background to {b}",
    ),
}
_PRINTS: Final[dict[str, tuple[str, ...]]] = {
    "stripes": ("{k} stripes", "{k} stripes", "{k} lines", "stripes in {k}"),
    "zigzags": ("{k} zigzags", "a {k} zigzag", "{k} zigzag lines", "a {k} chevron pattern"),
    "dots": ("{k} dots", "{k} dots", "{k} polka dots", "{k} spots"),
    "two colours": ("a {k} lower half", "a {k} bottom", "a {k} lower part", "{k} at the bottom"),
}
_OLD_PRINTS: Final[dict[str, tuple[str, ...]]] = {
    "plain": ("pattern",),
    "stripes": ("stripes", "lines"),
    "zigzags": ("zigzags", "zigzag lines"),
    "dots": ("dots", "polka dots", "spots"),
    "two colours": ("lower half", "second colour"),
}
_LINKS: Final = (" and ", " and ", ", ", ", then ", " and also ")
_FRAMES: Final = (
    "{s}",
    "{s}",
    "{s}",
    "{s}",
    "please {s}",
    "{s} please",
    "{s}, please",
    "now {s}",
    "can you {s}",
    "{s} now",
)

# Wordings for measuring only: none of these sentences, and none of their frames, occurs in training.
EVALUATION_WORDINGS: Final[dict[str, tuple[str, ...]]] = {
    "colour": (
        "could this {g} become {c}?",
        "i would rather see the {g} in {c}",
        "it should be {c} everywhere",
        "keep the shape of the {g} but let it be {c}",
        "our customer asked for a {c} one",
        "switch the cloth over to {c}",
        "let us try how {c} looks on this {g}",
        "show me the identical {g}, only {c}",
    ),
    "print": (
        "could this {g} get {p}?",
        "decorate the cloth using {p}",
        "our customer asked for {p} on top",
        "let us try how {p} look here",
        "i would rather see {p} on this {g}",
        "it should have {p} everywhere",
        "cover the {g} in {p}",
        "show me the identical {g}, only with {p}",
    ),
    "plain": (
        "could this {g} lose its {q}?",
        "i would rather see the {g} without any {q}",
        "it should be plain everywhere",
        "our customer does not like the {q}",
    ),
    "garment": (
        "could this {g} become {h}?",
        "i would rather see {h} here",
        "it should be {h}",
        "our customer asked for {h}, not for the {g}",
        "let us try how {h} looks",
        "swap the {g} for {h}",
        "show me {h} of that kind",
        "draw {h} where the {g} is",
    ),
    "long": (
        "could this {g} get long sleeves?",
        "i would rather see long sleeves here",
        "our customer asked for long sleeves",
        "the sleeves should be long",
    ),
    "short": (
        "could this {g} get short sleeves?",
        "i would rather see short sleeves here",
        "our customer asked for short sleeves",
        "the sleeves should be short",
    ),
    "ground": (
        "could the background become {b}?",
        "i would rather see {b} behind it",
        "our customer asked for {b} as background",
        "it should stand in front of {b}",
    ),
}


def _pick(options: Sequence[str], rng: np.random.Generator | None, index: int) -> str:
    """Pick one: at random, or for measuring the first, or the index-th where there are as many wordings."""
    return options[index % len(options)] if rng is None else options[int(rng.integers(len(options)))]


def _word_of(garment: str, rng: np.random.Generator | None) -> str:
    words = WORDS[garment]
    return words[0] if rng is None or rng.random() < 0.5 else _pick(words, rng, 0)


def _colour(name: str, rng: np.random.Generator | None) -> str:
    words = COLOUR_WORDS[name]
    return words[0] if rng is None or rng.random() < 0.85 else _pick(words, rng, 0)


def _with_article(word: str, rng: np.random.Generator | None) -> str:
    if word in PLURALS:
        return _pick(("a pair of {w}", "{w}"), rng, 0).format(w=word)
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def clause(
    kind: str, before: GarmentScene, after: GarmentScene, rng: np.random.Generator | None, index: int = 0
) -> str:
    """Word one change.

    Args:
        kind: One of KINDS.
        before: What there is.
        after: What is asked for.
        rng: Choice of a training wording; None takes the index-th measuring one.
        index: Which measuring wording.
    """
    a, b = before.facts, after.facts
    if kind == "sleeves":
        kind = "long" if after.long else "short"
    printed = ""
    if b.second:
        # A measured print is always named by its own plain word, "two colours" as the lower half.
        printed = _pick(_PRINTS[b.print], rng, 0).format(k=_colour(b.second, rng))
    return _pick((_TRAINED if rng else EVALUATION_WORDINGS)[kind], rng, index).format(
        c=_colour(b.colour, rng),
        o=_colour(a.colour, rng),
        g=_word_of(a.garment, rng),
        h=_with_article(_word_of(b.garment, rng), rng),
        k=_colour(b.second, rng) if b.second else "",
        p=printed,
        q=_pick(_OLD_PRINTS[a.print], rng, 0),
        b=b.background,
    )


def instruction(before: GarmentScene, after: GarmentScene, rng: np.random.Generator) -> str:
    """Word a training instruction for everything that differs between two scenes."""
    kinds = differences(before, after)
    order = list(rng.permutation(len(kinds)))
    text = clause(kinds[order[0]], before, after, rng)
    for i in order[1:]:
        text += _pick(_LINKS, rng, 0) + clause(kinds[i], before, after, rng)
    text = _pick(_FRAMES, rng, 0).format(s=text)
    if rng.random() < 0.35:
        words = text.split(" ")
        for _ in range(int(rng.integers(1, 5))):
            at = int(rng.choice([0, len(words), int(rng.integers(len(words) + 1))]))
            words.insert(at, _pick(FILLERS, rng, 0) if rng.random() < 0.6 else _made_up(rng))
        text = " ".join(words)
    style = rng.random()
    # T5's pieces are case-sensitive, so capitals have to be seen.
    if style < 0.2:
        text = text[:1].upper() + text[1:]
    elif style < 0.22:
        text = text.upper()
    return text + "." if rng.random() < 0.12 else text


def _made_up(rng: np.random.Generator) -> str:
    return "".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), int(rng.integers(2, 8))))


def measured(before: GarmentScene, after: GarmentScene, index: int) -> str:
    """Return the index-th measuring instruction for a pair that differs in one thing."""
    kind = differences(before, after)[0]
    return clause(kind, before, after, None, index)


# Classes per head; the last class of each means "the instruction does not ask for this".
HEADS: Final = (
    len(GARMENTS) + 1,
    len(CLOTHS) + 1,
    len(PRINTS) + 1,
    len(CLOTHS) + 1,
    len(BACKGROUNDS) + 1,
    3,
)


def labels_of(before: GarmentScene, after: GarmentScene) -> tuple[int, ...]:
    """Class indices of an instruction, in the order of HEADS."""
    facts: GarmentFacts = after.facts
    found = differences(before, after)
    cloths = list(CLOTHS)
    return (
        GARMENTS.index(facts.garment) if "garment" in found else len(GARMENTS),
        cloths.index(facts.colour) if "colour" in found else len(cloths),
        PRINTS.index(facts.print) if "print" in found or "plain" in found else len(PRINTS),
        cloths.index(facts.second) if "print" in found else len(cloths),
        list(BACKGROUNDS).index(facts.background) if "ground" in found else len(BACKGROUNDS),
        int(after.long) if "sleeves" in found else 2,
    )


def worded(rng: np.random.Generator) -> tuple[str, tuple[int, ...]]:
    """Word an instruction of a fresh change, with its labels."""
    before = start(rng)
    after = change(before, rng)
    if rng.random() < 0.5:
        before, after = after, before
    return instruction(before, after, rng), labels_of(before, after)
