"""Whether a language model's text names only what was found.

Small models make things up, so a text is believed only where nothing in it is new. Its words are those of a short list
that says nothing by itself, and those that the facts have earned; a number must be one of the facts', and one of people
a number of people; what holds for some photos only stands beside their number; nothing is denied but people where
nobody is. Whatever else a text says, it is not used, also where it happens to be true.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from services.monitoring.capture.analysis.domain import BatchFacts

_MOST_CHARS = 500


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_NEUTRAL = _words(
    "a an the of in on at by from to and or with is are was were be been being has have had it its this that these "
    "those there their they them some as for while also which who here following above set series batch photo photos "
    "picture pictures image images shot shots camera show shows showing shown depict depicts contain contains include "
    "includes including feature features display displays capture captures captured take takes taken can seen see "
    "visible total up subject subjects least more than fact facts say says"
)
_PEOPLE = _words("person persons people someone somebody individual individuals human humans")
_PHOTOS = _words("photo photos picture pictures image images shot shots")
_FACES = _words("face faces")
_DENIALS = _words("not no none nobody never without neither nor nothing cannot cant isnt arent wasnt werent")
_NUMBERS = {
    word: number
    for number, word in enumerate(
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
    )
}
_TOKEN = re.compile(r"[a-z]+|\d+(?:[.,:]\d+)*|[^\sa-z\d]")
_NOBODY = re.compile(r"\bno (?:one|people|persons?|individuals?|humans?)\b")
_NOT_LOOKED_FOR = "people were not looked for"
_ENDS = frozenset(".!?;")
# How far from a word its number may stand.
_NEAR = 5


@dataclass(frozen=True, slots=True)
class _Claim:
    """Words that say that something holds for some of the photos, and for how many it does."""

    words: tuple[str, ...]
    photos: int


_Sentence: TypeAlias = list[str | _Claim]


def _faulty(facts: BatchFacts) -> bool:
    wrong = facts.exposed("under") + facts.exposed("over")
    return bool(facts.blurred + facts.cut + facts.failed + wrong)


def _same_people(facts: BatchFacts) -> bool:
    return len(facts.people) == len(facts.photos) and len(set(facts.people)) == 1


# Words that facts have to earn, and what is wrong where they have not.
_EARNED: tuple[tuple[frozenset[str], Callable[[BatchFacts], object], str], ...] = (
    (_PEOPLE, lambda facts: any(facts.people), "it names `{}`, and nobody was found"),
    (_FACES, lambda facts: facts.most_faces, "it names `{}`, and none was found"),
    (
        _words("garment garments clothes clothing wear wears wearing dressed"),
        lambda facts: facts.colours or facts.cut,
        "it names `{}`, and none was found",
    ),
    (_words("fault faults"), _faulty, "it names faults, and none was found"),
    (
        _words("framing framed view viewed"),
        lambda facts: facts.framings or facts.views,
        "it names `{}`, which was not judged",
    ),
    (_words("each every all both"), _same_people, "it says `{}`, and the photos differ"),
    (_DENIALS, lambda _: False, "it denies something (`{}`)"),
)


def refusal(text: str, facts: BatchFacts) -> str | None:
    """Tell why a text is not to be used; None where it names only what was found.

    Args:
        text: What a model said.
        facts: What was found.
    """
    said = text.strip()
    if not said:
        return "it is empty"
    if len(said) > _MOST_CHARS:
        return f"it has more than {_MOST_CHARS} characters"
    if said[-1] not in ".!":
        return "it has no end"
    plain = _normal(said, facts)
    claims = _claims(facts)
    for tokens in _sentences(plain):
        sentence = _joined(tokens, claims)
        for place in range(len(sentence)):
            problem = _judged(sentence, place, facts, claims)
            if problem is not None:
                return problem
    if any(facts.people) and not _PEOPLE & set(_TOKEN.findall(plain)):
        return "it leaves out that people were found"
    return None


def _normal(text: str, facts: BatchFacts) -> str:
    """Return a text in lower case, with the camera's name as one neutral word and without marks within words."""
    lowered = text.lower().replace("\u2019", "'")
    name = facts.camera.lower()
    for spelling in (name, re.sub(r"[_-]+", " ", name)):
        lowered = re.sub(rf"(?<![\w-]){re.escape(spelling)}(?![\w-])", " camera ", lowered)
    plain = re.sub(r"(?<=[a-z])'(?=[a-z])", "", lowered).replace("-", " ").replace("_", " ")
    if not facts.people:
        plain = plain.replace(_NOT_LOOKED_FOR, " ")
    return _NOBODY.sub("nobody", plain)


def _sentences(text: str) -> list[list[str]]:
    sentences: list[list[str]] = [[]]
    for token in _TOKEN.findall(text):
        if token in _ENDS:
            sentences.append([])
        else:
            sentences[-1].append(token)
    return sentences


def _claims(facts: BatchFacts) -> list[_Claim]:
    found = [
        (re.sub(r"[_-]+", " ", name.lower()), number)
        for counted in (facts.framings, facts.views, facts.colours)
        for name, number in counted.items()
    ]
    for number, names in (
        (facts.framings["close_up"], ("closeup",)),
        (facts.empty, ("nobody",)),
        (facts.objects, ("object", "objects", "product", "products")),
        (facts.blurred, ("blurred", "blurry", "out of focus", "unsharp")),
        (facts.exposed("under"), ("too dark", "underexposed", "dark")),
        (facts.exposed("over"), ("too bright", "overexposed", "bright")),
        (facts.cut, ("garment cut off", "cut off", "cropped")),
        (facts.failed, ("could not be judged", "not judged")),
    ):
        found += [(name, number) for name in names if number]
    # The longest first, so that `three quarter upper` is not read as parts of it.
    return sorted((_Claim(tuple(words.split()), number) for words, number in found), key=lambda one: -len(one.words))


def _joined(tokens: list[str], claims: list[_Claim]) -> _Sentence:
    """Return the words of a sentence, with claims in place of the words that make them."""
    joined: _Sentence = []
    place = 0
    while place < len(tokens):
        claim = next((one for one in claims if tuple(tokens[place : place + len(one.words)]) == one.words), None)
        joined.append(tokens[place] if claim is None else claim)
        place += 1 if claim is None else len(claim.words)
    return joined


def _judged(sentence: _Sentence, place: int, facts: BatchFacts, claims: list[_Claim]) -> str | None:
    word = sentence[place]
    if isinstance(word, _Claim):
        if word.photos == len(facts.photos) or word.photos in _numbers_near(sentence, place):
            return None
        return f"it says `{' '.join(word.words)}` of more photos than it was found in, or of fewer"
    number = _number(word)
    if number is not None:
        return _number_refusal(sentence[place + 1 : place + 3], number, facts, claims)
    for words, earned, why in _EARNED:
        if word in words:
            return None if earned(facts) else why.format(word)
    if word in _NEUTRAL or not re.fullmatch(r"[a-z\d.,:]*[a-z\d][a-z\d.,:]*", word):
        return None
    return f"it has the word `{word}`, which the facts do not have"


def _number_refusal(after: _Sentence, number: int, facts: BatchFacts, claims: list[_Claim]) -> str | None:
    noun = next((one for one in after if isinstance(one, str) and one in _PEOPLE | _PHOTOS | _FACES), "")
    shares = {len(facts.photos), *(claim.photos for claim in claims)}
    if noun in _PEOPLE:
        allowed, what = set(facts.people), "people"
    elif noun in _PHOTOS:
        allowed, what = shares, "photos"
    elif noun:
        allowed, what = {photo.faces for photo in facts.photos if photo.faces}, "faces"
    else:
        allowed, what = shares | set(facts.people), "anything found"
    return None if number in allowed else f"it has the number {number}, which is none of {what}"


def _numbers_near(sentence: _Sentence, place: int) -> set[int]:
    near = sentence[max(0, place - _NEAR) : place + _NEAR + 1]
    return {number for one in near if isinstance(one, str) and (number := _number(one)) is not None}


def _number(word: str) -> int | None:
    if word in _NUMBERS:
        return _NUMBERS[word]
    return int(word) if word.isdecimal() and len(word) < 7 else None
