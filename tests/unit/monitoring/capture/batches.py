"""Facts for the tests of judgement."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from services.monitoring.capture.analysis.domain import BatchFacts, PhotoFacts

NOON = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)


def photo(second: int = 0, *, at: datetime = NOON, **found: Any) -> PhotoFacts:
    """One photo."""
    return PhotoFacts(f"yard/{second}.jpg", at + timedelta(seconds=second), **found)


def batch(*photos: PhotoFacts, camera: str = "front_door") -> BatchFacts:
    """A batch of photos."""
    return BatchFacts(camera, photos)


GOOD: dict[str, Any] = {
    "people": 1,
    "confidence": 0.9,
    "faces": 1,
    "framing": "full_body",
    "view": "front",
    "colour": "red",
    "subject": "person",
}
SHARP: dict[str, Any] = {"blurred": False, "exposure": "normal"}

MIXED = batch(
    photo(0, **GOOD, **SHARP),
    photo(1, people=2, framing="close_up", view="front", colour="red", blurred=True, exposure="under"),
    photo(2, people=0, subject="none", **SHARP),
    photo(3, error="The file is broken"),
)
NOBODY = batch(photo(0, people=0, subject="none", **SHARP), photo(1, people=0, subject="none", **SHARP))
ALIKE = batch(photo(0, **GOOD, **SHARP), photo(1, **GOOD, **SHARP))
THING = batch(photo(0, people=0, subject="object", colour="navy", cut=True, **SHARP), photo(1, people=0, **SHARP))
ONE = batch(photo(0, people=2, faces=1, framing="upper_body", view="side", colour="blue", blurred=True))
UNJUDGED = batch(photo(0, error="The worker was lost"))
