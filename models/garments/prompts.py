"""Prompts: how training names a picture, and the disjoint wordings that measure it."""

from __future__ import annotations

from typing import Final

import numpy as np

from models.garments.catalogue import BACKGROUNDS, GARMENTS, PRINTS, SEEN_PAIRS, GarmentFacts

WORDS: Final[dict[str, tuple[str, ...]]] = {
    "dress": ("dress", "gown", "sundress", "frock", "evening dress"),
    "t-shirt": ("t-shirt", "shirt", "tshirt", "tee", "top", "tee shirt"),
    "trousers": ("trousers", "pants", "jeans", "slacks", "leggings"),
    "skirt": ("skirt", "miniskirt", "pleated skirt"),
    "jacket": ("jacket", "hoodie", "bomber jacket", "blazer", "cardigan", "sweater"),
    "coat": ("coat", "overcoat", "trench coat", "raincoat", "winter coat"),
    "sneaker": ("sneaker", "shoe", "trainer", "sneakers", "shoes", "running shoe", "trainers"),
    "boot": ("boot", "boots", "rubber boot", "rain boots"),
    "hat": ("hat", "fedora", "sun hat", "cap"),
    "bag": ("bag", "handbag", "purse", "tote bag"),
}
PLURALS: Final = frozenset(
    {"trousers", "pants", "jeans", "slacks", "leggings", "sneakers", "shoes", "trainers", "boots", "rain boots"}
)
COLOUR_WORDS: Final[dict[str, tuple[str, ...]]] = {
    "red": ("red", "crimson", "scarlet"),
    "orange": ("orange", "tangerine"),
    "yellow": ("yellow", "lemon", "golden"),
    "green": ("green", "emerald"),
    "blue": ("blue", "navy", "cobalt"),
    "purple": ("purple", "violet"),
    "pink": ("pink", "rose"),
    "brown": ("brown", "chocolate"),
    "grey": ("grey", "gray", "charcoal"),
    "black": ("black", "jet black"),
    "white": ("white", "ivory"),
}
SHADES: Final = ("dark", "bright", "deep", "vivid")

# {c} colour, {k} the print's colour, {g} garment. The article is put in front afterwards.
_SUBJECTS: Final[dict[str, tuple[str, ...]]] = {
    "plain": ("{c} {g}", "{c} {g}", "{c} {g}", "{g} in {c}", "{c} coloured {g}", "plain {c} {g}", "{g} that is {c}"),
    "stripes": (
        "{c} {g} with {k} stripes",
        "{c} {g} with {k} stripes",
        "{c} and {k} striped {g}",
        "striped {c} and {k} {g}",
        "{k} striped {c} {g}",
        "{g} in {c} with {k} stripes",
    ),
    "zigzags": (
        "{c} {g} with {k} zigzags",
        "{c} {g} with a {k} zigzag",
        "{c} and {k} zigzag {g}",
        "zigzag {g} in {c} and {k}",
        "{c} {g} with {k} zigzag lines",
        "{c} {g} with a {k} chevron pattern",
    ),
    "dots": (
        "{c} {g} with {k} dots",
        "{c} {g} with {k} polka dots",
        "{c} and {k} polka dot {g}",
        "{k} dotted {c} {g}",
        "spotted {g} in {c} and {k}",
        "{g} in {c} with {k} spots",
    ),
    "two colours": (
        "{c} and {k} {g}",
        "{g} in {c} and {k}",
        "half {c} half {k} {g}",
        "two colour {g} in {c} and {k}",
        "two-tone {c} and {k} {g}",
        "{c} {g} with a {k} hem",
    ),
}
_VAGUE: Final[dict[str, tuple[str, ...]]] = {  # the print is named, its colour is left to the model
    "stripes": ("striped {c} {g}", "{c} striped {g}", "{c} {g} with stripes"),
    "zigzags": ("zigzag {c} {g}", "{c} {g} with zigzags", "{c} zigzag {g}"),
    "dots": ("dotted {c} {g}", "{c} polka dot {g}", "{c} {g} with polka dots", "{c} {g} with dots"),
    "two colours": ("two-tone {c} {g}", "two colour {c} {g}"),
}
# {s} is the subject with its article.
TRAIN_FRAMES: Final = (
    "{s}",
    "{s}",
    "{s}",
    "photo of {s}",
    "a photo of {s}",
    "a picture of {s}",
    "an image of {s}",
    "draw {s}",
    "show me {s}",
    "one {s}",
    "my new {s}",
    "a studio picture of {s}",
    "a product photo of {s}",
    "{s} please",
    "the {s}",
)
_GROUNDS: Final = (" on {b}", " on a {b} background", ", {b} background", " against {b}")

# Wordings for measuring only. Their frames and most of their words never occur in training.
EVALUATION_TEMPLATES: Final = (
    "here is {s} for sale",
    "i would like to buy {s} today",
    "simple drawing of {s}, front view",
    "catalogue entry: {s}",
    "could you paint {s} for me?",
    "she is looking for {s} online",
    "advertisement showing {s}",
    "{s}, isolated, high quality",
)

# Words that name nothing the model draws: it learns to ignore them.
_FILLER_TEXT: Final = """
nice pretty lovely new old fancy simple elegant modern classic cute cool soft warm cheap summer
winter spring autumn cotton wool silk leather fashion style clothing studio light clean detailed
minimal beautiful stylish casual formal small large big long short vintage retro trendy comfortable
woman man girl boy child women's men's kids centred flat front side whole single isolated on in for
with of and very really quite just some this that my your his her our good great best perfect
amazing sharp realistic cartoon icon illustration render digital art hd 4k shop brand wear outfit
party work sport beach city street
"""
FILLERS: Final = tuple(_FILLER_TEXT.split())


def _article(subject: str, word: str, rng: np.random.Generator) -> str:
    if word in PLURALS:
        return ("a pair of ", "", "some ")[int(rng.integers(3))] + subject
    if rng.random() < 0.12:
        return subject
    return ("an " if subject[0] in "aeiou" else "a ") + subject


def _colour(name: str, rng: np.random.Generator) -> str:
    words = COLOUR_WORDS[name]
    word = words[0] if rng.random() < 0.8 else words[int(rng.integers(len(words)))]
    return f"{SHADES[int(rng.integers(len(SHADES)))]} {word}" if rng.random() < 0.06 else word


def _made_up(rng: np.random.Generator) -> str:
    return "".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), int(rng.integers(2, 8))))


def _padded(prompt: str, rng: np.random.Generator) -> str:
    """Add one to three words without meaning for the model, mostly at the two ends."""
    words = prompt.split(" ")
    for _ in range(int(rng.integers(1, 4))):
        word = _made_up(rng) if rng.random() < 0.4 else FILLERS[int(rng.integers(len(FILLERS)))]
        at = int(rng.integers(len(words) + 1)) if rng.random() < 0.5 else (0 if rng.random() < 0.5 else len(words))
        words.insert(at, word)
    return " ".join(words)


def training_prompt(facts: GarmentFacts, rng: np.random.Generator) -> tuple[str, bool, bool]:
    """Word one training prompt.

    Returns:
        The prompt, whether it names the print's colour, and whether it names the background.
    """
    words = WORDS[facts.garment]
    word = words[0] if rng.random() < 0.5 else words[int(rng.integers(len(words)))]
    named = bool(facts.second) and rng.random() < 0.85
    choices = _SUBJECTS[facts.print] if named or not facts.second else _VAGUE[facts.print]
    second = _colour(facts.second, rng) if facts.second else ""
    subject = choices[int(rng.integers(len(choices)))].format(c=_colour(facts.colour, rng), k=second, g=word)
    frame = TRAIN_FRAMES[int(rng.integers(len(TRAIN_FRAMES)))]
    bare = frame.split("{s}")[0].split(" ")[-2:-1] in (["one"], ["new"], ["the"])
    prompt = frame.format(s=subject if bare else _article(subject, word, rng))
    ground = rng.random() < 0.3
    if ground:
        prompt += _GROUNDS[int(rng.integers(len(_GROUNDS)))].format(b=facts.background)
    if rng.random() < 0.35:
        prompt = _padded(prompt, rng)
    style = rng.random()
    # T5's pieces are case-sensitive, so capitals have to be seen.
    if style < 0.12:
        prompt = prompt[:1].upper() + prompt[1:]
    elif style < 0.16:
        prompt = prompt.title()
    elif style < 0.18:
        prompt = prompt.upper()
    if rng.random() < 0.1:
        prompt += "."
    return prompt, named, ground


def preserved_prompts(count: int = 64) -> list[str]:
    """Return prompts whose pictures the training of an adapter keeps: every garment, colour and print, and no words.

    They are worded as training words them: plain ones alone ("a red dress") leave other wordings unguarded. An eighth
    is empty, since guidance draws away from what the model makes of nothing.
    """
    rng = np.random.default_rng(77)
    prompts: list[str] = []
    for number in range(count):
        garment, turn = GARMENTS[number % len(GARMENTS)], number // len(GARMENTS)
        colours = [c for g, c in SEEN_PAIRS if g == garment]
        colour = colours[(turn + 3 * number) % len(colours)]
        kind = PRINTS[1 + turn % (len(PRINTS) - 1)] if number % 5 == 4 else "plain"
        second = "" if kind == "plain" else next(c for c in ("white", "black", "yellow") if c != colour)
        ground = list(BACKGROUNDS)[turn % len(BACKGROUNDS)]
        prompt = training_prompt(GarmentFacts(garment, colour, kind, second, ground), rng)[0]
        prompts.append("" if number % 8 == 7 else prompt)
    return prompts


def subject_of(facts: GarmentFacts, *, word: str = "") -> str:
    """Return the plainest wording of some facts, with its article: "a red dress", "a blue hat with white stripes"."""
    word = word or WORDS[facts.garment][0]
    text = _SUBJECTS[facts.print][0].format(c=facts.colour, k=facts.second, g=word)
    if word in PLURALS:
        return f"a pair of {text}"
    return ("an " if text[0] in "aeiou" else "a ") + text


def evaluation_prompt(facts: GarmentFacts, index: int) -> str:
    """Return the index-th measuring prompt: the frame changes every time, the garment's word every other."""
    words = WORDS[facts.garment]
    word = words[0] if index % 2 == 0 else words[(index // 2) % len(words)]
    return EVALUATION_TEMPLATES[index % len(EVALUATION_TEMPLATES)].format(s=subject_of(facts, word=word))
