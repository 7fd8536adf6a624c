"""What a model is told, and what is taken of its answer."""

import json
from typing import Any

import pytest

from services.inference.evaluation.domain import Findings, WantedShot
from services.inference.evaluation.questions import findings_of, prompt_of

WANTED = WantedShot("upper_body", "front", "MALE", "Look at the hands.", descriptions=True)
WHOLE: dict[str, Any] = {
    "framing": "upper_body",
    "view_angle": "side",
    "shot_confidence": 0.9,
    "number_of_people": 2,
    "presence_confidence": 1,
    "anatomy_correct": False,
    "anatomy_issues": ["malformed_hand", "malformed_hand", "extra limb"],
    "anatomy_confidence": 0.7,
    "gender": "MALE",
    "gender_confidence": 0.8,
    "collage": False,
    "garments": "A grey shirt.",
    "subject": "A man.",
    "scene": "A studio.",
}


def test_a_prompt_has_what_is_wanted() -> None:
    prompt = prompt_of(WANTED)
    assert "upper_body, front, MALE" in prompt
    assert "Look at the hands." in prompt
    assert '"garments"' in prompt
    plain = prompt_of(WantedShot("full_body", "back", "UNKNOWN"))
    assert "full_body, back." in plain
    assert '"garments"' not in plain


@pytest.mark.parametrize("around", ["{}", "```json\n{}\n```", "Here it is: {} Anything else?"])
def test_a_whole_answer_is_read(around: str) -> None:
    assert findings_of(around.replace("{}", json.dumps(WHOLE)), WANTED) == Findings(
        framing="upper_body",
        view="side",
        shot_confidence=0.9,
        people=2,
        presence_confidence=1.0,
        anatomy_correct=False,
        anatomy_issues=("malformed_hand", "extra_limb"),
        anatomy_confidence=0.7,
        gender="MALE",
        gender_confidence=0.8,
        garments="A grey shirt.",
        subject="A man.",
        scene="A studio.",
        collage=False,
    )


def test_descriptions_that_nobody_asked_for_are_left_out() -> None:
    found = findings_of(json.dumps(WHOLE), WantedShot("upper_body", "front"))
    assert found is not None
    assert (found.garments, found.subject, found.scene) == (None, None, None)


def test_values_that_are_none_are_left_out() -> None:
    odd = WHOLE | {
        "framing": "sideways",
        "view_angle": 3,
        "shot_confidence": 0.9,
        "number_of_people": -1,
        "presence_confidence": 2,
        "anatomy_correct": "yes",
        "anatomy_issues": "many",
        "gender": None,
        "garments": 7,
        "subject": " ",
        "collage": "no",
    }
    assert findings_of(json.dumps(odd), WANTED) == Findings(scene="A studio.")


def test_a_confidence_of_what_is_not_told_is_left_out() -> None:
    found = findings_of('{"framing": null, "shot_confidence": 0.3, "gender_confidence": 0.9}', WANTED)
    assert found == Findings()


def test_who_names_what_is_wrong_says_that_something_is() -> None:
    found = findings_of(json.dumps(WHOLE | {"anatomy_correct": True}), WANTED)
    assert found is not None
    assert found.anatomy_correct is False


@pytest.mark.parametrize("text", ["", "I cannot.", "{", "}{", "[1]", "{'framing': 1}", '{"a": 1}', "{" * 100_000 + "}"])
def test_what_is_no_judgement_is_none(text: str) -> None:
    assert findings_of(text, WANTED) is None
