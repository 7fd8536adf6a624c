"""What a language model is asked about a picture, and how its answer is read.

The answer is a stranger's: values that are none of the known ones are left out, as what was not judged is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, get_args

from services.inference.evaluation.domain import (
    AnatomyIssue,
    Findings,
    Framing,
    Gender,
    ViewAngle,
    WantedShot,
)

SYSTEM = (
    "You inspect photos of people for a fashion catalogue. You answer with one JSON object and nothing else. You judge "
    "what is to be seen alone: what you cannot judge is null. Confidences are numbers from 0 to 1."
)
_MEMBERS = """Judge the picture. Answer with a JSON object of these members:
- "framing": how much of the nearest person is within the picture: "full_body" (head to feet), "three_quarter_upper" \
(head to thighs or knees), "upper_body" (head to waist or hips), "three_quarter_lower" (chest or waist to feet), \
"lower_body" (hips to feet), "close_up" (head, with the shoulders at most), or null
- "view_angle": from where that person is seen: "front", "back", "side", or null
- "shot_confidence": how sure you are of both, or null
- "number_of_people": how many people are to be seen, 0 for none
- "presence_confidence": how sure you are that somebody, or nobody, is there
- "anatomy_correct": whether every body is as bodies are, or null
- "anatomy_issues": what is wrong with them, each one of "extra_limb", "missing_limb", "malformed_hand", \
"malformed_face", "distorted_proportions", "other"; [] for nothing
- "anatomy_confidence": how sure you are of that, or null
- "gender": what the nearest person looks like: "FEMALE", "MALE", "UNKNOWN", or null
- "gender_confidence": how sure you are of that, or null
- "collage": whether the picture was put together of several"""
_DESCRIPTIONS = """
- "garments": the garments that are worn, in one to three sentences, or null
- "subject": the person, in one or two sentences, or null
- "scene": place, light and background, in one or two sentences, or null"""
_MOST_CHARS = 4000
_MOST_PEOPLE = 10_000


def prompt_of(wanted: WantedShot) -> str:
    """Return what a model is told of a picture that it is shown."""
    parts = [_MEMBERS + (_DESCRIPTIONS if wanted.descriptions else "")]
    gender = "" if wanted.gender == "UNKNOWN" else f", {wanted.gender}"
    parts.append(f"A shot was asked for that is: {wanted.framing}, {wanted.view}{gender}. Say what it is, not that.")
    if wanted.instructions:
        parts.append(f"The caller adds: {wanted.instructions}")
    return "\n\n".join(parts)


def findings_of(text: str, wanted: WantedShot) -> Findings | None:
    """Read a model's answer.

    Returns:
        What it found; None where the answer is none.
    """
    said = _object(text)
    if said is None or not {"framing", "view_angle", "number_of_people"} & said.keys():
        return None
    issues = said.get("anatomy_issues")
    named = (_one_of(AnatomyIssue, each) for each in (issues if isinstance(issues, list) else ()))
    known = tuple(dict.fromkeys(one for one in named if one is not None))
    correct = _truth(said.get("anatomy_correct"))
    people = said.get("number_of_people")
    counted = type(people) is int and 0 <= people <= _MOST_PEOPLE
    framing: Framing | None = _one_of(Framing, said.get("framing"))
    view: ViewAngle | None = _one_of(ViewAngle, said.get("view_angle"))
    gender: Gender | None = _one_of(Gender, said.get("gender"))
    return Findings(
        framing=framing,
        view=view,
        shot_confidence=_share(said.get("shot_confidence")) if framing or view else None,
        people=people if counted else None,
        presence_confidence=_share(said.get("presence_confidence")) if counted else None,
        # Who names what is wrong has said that something is.
        anatomy_correct=False if known else correct,
        anatomy_issues=known,
        anatomy_confidence=_share(said.get("anatomy_confidence")) if known or correct is not None else None,
        gender=gender,
        gender_confidence=_share(said.get("gender_confidence")) if gender else None,
        garments=_sentences(said.get("garments")) if wanted.descriptions else None,
        subject=_sentences(said.get("subject")) if wanted.descriptions else None,
        scene=_sentences(said.get("scene")) if wanted.descriptions else None,
        collage=_truth(said.get("collage")),
    )


def _object(text: str) -> Mapping[str, Any] | None:
    """Return the JSON object of an answer, which may stand between other words or in a fence."""
    start, end = text.find("{"), text.rfind("}")
    if start < 0 or end < start:
        return None
    try:
        found = json.loads(text[start : end + 1])
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _one_of(kind: Any, value: object) -> Any:
    """Return a value that is one of a Literal's, however it is spelled; None for another one."""
    if not isinstance(value, str):
        return None
    spelled = value.strip().replace(" ", "_").replace("-", "_").lower()
    return next((one for one in get_args(kind) if one.lower() == spelled), None)


def _truth(value: object) -> bool | None:
    return value if isinstance(value, bool) else None


def _share(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        return None
    return float(value)


def _sentences(value: object) -> str | None:
    if not isinstance(value, str) or not value.strip():
        return None
    return value.strip().replace("\x00", "")[:_MOST_CHARS]
