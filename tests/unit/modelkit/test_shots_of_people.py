"""How far the local judgement agrees with what a person saw in twelve real photos, and in variants made of them.

docs/evaluation.md has the table of it.
"""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image, ImageOps

from modelkit.shots import Shot, judge
from modelkit.vision import Vision

FOLDER = Path(__file__).parent / "data" / "people"
EXPECTED = json.loads((FOLDER / "expected.json").read_text(encoding="utf-8"))
# Close-ups, cut out of photos: left, top, right, bottom in shares of the photo.
CLOSE_UPS = {
    "astronaut": (0.25, 0.0, 0.62, 0.4),
    "grace-hopper": (0.2, 0.0, 0.8, 0.62),
    "obama": (0.25, 0.05, 0.8, 0.45),
    "obama2": (0.2, 0.15, 0.9, 0.52),
    "biden": (0.3, 0.05, 0.9, 0.31),
}
# Pictures beside each other.
COLLAGES = (("astronaut", "coffee"), ("obama", "grace-hopper"), ("rocket", "biden"), ("camera", "obama3"))


@dataclass(frozen=True)
class Case:
    """A picture, and what a person sees in it; members that are left out are not judged by it."""

    name: str
    image: Image.Image
    expected: dict[str, object]


def photo(name: str) -> Image.Image:
    with Image.open(FOLDER / f"{name}.jpg") as opened:
        return opened.convert("RGB")


def beside(left: Image.Image, right: Image.Image) -> Image.Image:
    right = right.resize((right.width * left.height // right.height, left.height))
    both = Image.new("RGB", (left.width + right.width, left.height))
    both.paste(left)
    both.paste(right, (left.width, 0))
    return both


def real() -> list[Case]:
    return [Case(name, photo(name), {**seen, "collage": False}) for name, seen in EXPECTED.items()]


def made() -> list[Case]:
    """Variants made of the photos: mirrored ones, close-ups cut out of them, and two beside each other."""
    people = [one for one in real() if one.expected["people"]]
    mirrored = [Case(f"{one.name}, mirrored", ImageOps.mirror(one.image), one.expected) for one in people]
    close = []
    for name, share in CLOSE_UPS.items():
        image = photo(name)
        box = tuple(round(part * side) for part, side in zip(share, image.size * 2, strict=True))
        cut = image.crop((box[0], box[1], box[2], box[3]))
        close.append(Case(f"{name}, close-up", cut, {"framing": "close_up", "view": "front", "collage": False}))
    joined = [
        Case(f"{left} beside {right}", beside(photo(left), photo(right)), {"collage": True}) for left, right in COLLAGES
    ]
    return [*mirrored, *close, *joined]


def agreement(cases: list[Case]) -> dict[str, tuple[int, int, int]]:
    """Count for each member: as a person saw it, left open, and of how many."""
    vision, counted, open_, right = Vision(1), Counter[str](), Counter[str](), Counter[str]()
    for case in cases:
        shot: Shot = judge(case.image, vision)
        found = {"people": shot.people, "framing": shot.framing, "view": shot.view, "collage": shot.collage}
        for member, wanted in case.expected.items():
            counted[member] += 1
            right[member] += found[member] == wanted
            open_[member] += found[member] is None and wanted is not None
    return {member: (right[member], open_[member], counted[member]) for member in counted}


def test_there_are_twelve_photos_and_an_expectation_of_each() -> None:
    assert {path.stem for path in FOLDER.glob("*.jpg")} == set(EXPECTED)
    assert len(EXPECTED) >= 12


@pytest.mark.parametrize(
    ("cases", "least"),
    [
        (real(), {"people": 10, "framing": 10, "view": 11, "collage": 12}),
        (made(), {"people": 6, "framing": 11, "view": 10, "collage": 17}),
    ],
    ids=["real", "made"],
)
def test_judgements_agree_with_what_people_see(cases: list[Case], least: dict[str, int]) -> None:
    found = agreement(cases)
    assert {member: right for member, (right, _, _) in found.items() if right < least[member]} == {}
    # A framing that is not the one a person saw is left open, and never another one.
    right, left_open, counted = found["framing"]
    assert right + left_open == counted
