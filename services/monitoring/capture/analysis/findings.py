"""What the rows of a photo say of it, as facts."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, cast

from services.monitoring.capture.analysis.domain import ExposureVerdict, PhotoFacts, SubjectKind

_VERDICTS = ("normal", "under", "over")
# The lower edge cuts whoever stands near; that is framing, and no fault.
_CUTS_A_PERSON = frozenset({"left", "right"})


def read_photo(
    path: str,
    seen_at: datetime,
    *,
    findings: Mapping[str, Any] | None,
    error: str | None,
    faces: int,
    confidence: float | None,
) -> PhotoFacts:
    """Return what was found in a photo.

    Args:
        path: The photo.
        seen_at: When it was seen.
        findings: What was found in it as a whole: `PhotoFindings` as JSON, in which what is zero may be left out.
        error: Why nobody could look at it.
        faces: How many faces were found.
        confidence: How sure the surest person is.
    """
    if error is not None or findings is None:
        return PhotoFacts(path, seen_at, error=error or "nobody looked at it")
    people = int(findings.get("people") or 0)
    subject = "person" if people else findings.get("subject") or "none"
    sides = set(findings.get("cut_sides") or ())
    exposure = findings.get("exposure")
    return PhotoFacts(
        path,
        seen_at,
        people=people,
        confidence=confidence,
        faces=faces,
        framing=findings.get("framing"),
        view=findings.get("view_angle"),
        colour=(findings.get("garment_colour") or {}).get("name"),
        subject=cast("SubjectKind", subject if subject in {"person", "object"} else "none"),
        cut=bool(sides & _CUTS_A_PERSON if subject == "person" else sides),
        blurred=bool(findings.get("blurred")),
        exposure=cast("ExposureVerdict", exposure) if exposure in _VERDICTS else None,
    )
