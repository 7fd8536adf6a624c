"""What the rows of a photo say of it."""

from __future__ import annotations

from typing import Any

import pytest

from services.monitoring.capture.analysis.domain import PhotoFacts
from services.monitoring.capture.analysis.findings import read_photo
from tests.unit.monitoring.capture.batches import NOON

_WHOLE = {
    "people": 2,
    "framing": "upper_body",
    "view_angle": "side",
    "subject": "person",
    "cut_sides": ["bottom"],
    "garment_colour": {"name": "navy", "hex": "#1b2440", "share": 0.8},
    "blurred": True,
    "exposure": "under",
}


def read(findings: dict[str, Any] | None, error: str | None = None) -> PhotoFacts:
    return read_photo("yard/1.jpg", NOON, findings=findings, error=error, faces=1, confidence=0.8)


def test_findings_become_facts() -> None:
    assert read(_WHOLE) == PhotoFacts(
        "yard/1.jpg",
        NOON,
        people=2,
        confidence=0.8,
        faces=1,
        framing="upper_body",
        view="side",
        colour="navy",
        subject="person",
        cut=False,
        blurred=True,
        exposure="under",
    )


def test_what_is_zero_may_be_left_out() -> None:
    facts = read({"exposure": "normal"})
    assert (facts.people, facts.subject, facts.cut, facts.blurred, facts.colour) == (0, "none", False, False, None)
    assert (facts.framing, facts.view, facts.exposure) == (None, None, "normal")


@pytest.mark.parametrize(
    ("subject", "people", "sides", "cut"),
    [
        ("person", 1, ["bottom", "top"], False),
        ("person", 1, ["left"], True),
        ("object", 0, ["bottom"], True),
        ("object", 0, [], False),
    ],
)
def test_the_lower_edge_may_cut_people_and_no_edge_an_object(
    subject: str, people: int, sides: list[str], cut: bool
) -> None:
    assert read({"subject": subject, "people": people, "cut_sides": sides}).cut is cut


def test_of_a_photo_that_nobody_could_look_at_nothing_is_known() -> None:
    assert read(None, "The file is broken") == PhotoFacts("yard/1.jpg", NOON, error="The file is broken")
    assert read(None).error == "nobody looked at it"
