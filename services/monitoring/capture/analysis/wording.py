"""What is said of a batch, made of nothing but facts; and what a language model is told, to say it in other words."""

from __future__ import annotations

from collections import Counter

from services.monitoring.capture.analysis.domain import BatchFacts, Risk

SYSTEM = "You rewrite text. You keep every number and add nothing."


def plain_summary(facts: BatchFacts) -> str:
    """Return what is in a batch."""
    count = len(facts.photos)
    sentences = [f"{_photos(count)} from camera {facts.camera}", _people(facts)]
    for title, found in (
        ("Subject", Counter({"object": facts.objects})),
        ("Framing", facts.framings),
        ("View", facts.views),
        ("Garment", facts.colours),
    ):
        if found.total():
            sentences.append(f"{title}: {_shares(found, count)}")
    sentences.append(_faults(facts))
    return " ".join(f"{sentence}." for sentence in sentences if sentence)


def plain_reasoning(facts: BatchFacts, risk: Risk) -> str:
    """Return why a batch is as grave as it is."""
    head = f"The score is {risk.score} of 100, {risk.level}."
    if not risk.counts:
        return f"{head} No rule holds."
    count = len(facts.photos)
    added = "; ".join(
        f"{one.photos} of {_photos(count)}: {one.words} (+{one.points})"
        for one in sorted(risk.counts, key=lambda one: -one.points)
    )
    return f"{head} What counts: {added}."


def prompt(facts: BatchFacts) -> str:
    """Return what a language model is asked."""
    return f"Rewrite this in one short sentence:\n{plain_summary(facts)}"


def _photos(count: int) -> str:
    return "1 photo" if count == 1 else f"{count} photos"


def _people(facts: BatchFacts) -> str:
    people, count = facts.people, len(facts.photos)
    if not people:
        return "People were not looked for"
    least, most = min(people), max(people)
    if most == 0:
        return "Nobody is in the picture" if count == 1 else "Nobody is in the pictures"
    shown = "1 person" if most == 1 else f"{most} people"
    if count == 1:
        return f"It shows {shown}"
    if least == most and len(people) == count:
        return f"Each shows {shown}"
    empty = f", and nobody is in {facts.empty}" if facts.empty else ""
    return f"They show up to {shown}{empty}"


def _shares(found: Counter[str], count: int) -> str:
    """Return what was found, the most frequent first: without numbers where it is the same in every photo."""
    named = sorted(found.items(), key=lambda item: (-item[1], item[0]))
    told = [(name.replace("_", " "), "" if number == count else f" in {number}") for name, number in named]
    return ", ".join(f"{name}{share}" for name, share in told)


def _faults(facts: BatchFacts) -> str:
    faults = Counter(
        {
            "blurred": facts.blurred,
            "too dark": facts.exposed("under"),
            "too bright": facts.exposed("over"),
            "cut off": facts.cut,
            "not judged": facts.failed,
        }
    )
    told = Counter({name: number for name, number in faults.items() if number})
    return f"Faults: {_shares(told, len(facts.photos))}" if told else ""
