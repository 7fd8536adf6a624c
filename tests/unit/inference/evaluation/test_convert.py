"""Findings as answers: what was not judged is absent."""

import pytest
from atelier.evaluation.v1 import evaluation_service_pb2 as pb
from atelier.tasks.v1.enums_pb2 import PROVIDER_TYPE_AI_CORE, PROVIDER_TYPE_UNSPECIFIED

from meshkit.validation import apply_defaults
from services.inference.evaluation.convert import to_provider, to_response, to_wanted
from services.inference.evaluation.domain import Evaluated, Findings, Framing, ViewAngle, WantedShot

WANTED = WantedShot("full_body", "front")


def test_a_request_is_read_with_its_defaults() -> None:
    request = pb.EvaluationRequest(
        expected_framing=pb.FRAMING_THREE_QUARTER_LOWER, expected_view_angle=pb.VIEW_ANGLE_SIDE
    )
    apply_defaults(request)
    assert to_wanted(request) == WantedShot("three_quarter_lower", "side", "FEMALE")
    assert to_provider(PROVIDER_TYPE_UNSPECIFIED) == ""
    assert to_provider(PROVIDER_TYPE_AI_CORE) == "AI_CORE"


@pytest.mark.parametrize(
    ("framing", "view", "matches"),
    [
        ("full_body", "front", True),
        ("full_body", "side", False),
        ("close_up", None, False),
        (None, "back", False),
        ("full_body", None, None),
        (None, None, None),
    ],
)
def test_a_match_is_told_where_what_was_found_tells(
    framing: Framing | None, view: ViewAngle | None, matches: bool | None
) -> None:
    assert Findings(framing=framing, view=view).matches(WANTED) is matches


def test_what_was_found_is_answered() -> None:
    found = Findings(
        framing="full_body",
        view="front",
        shot_confidence=0.8,
        people=0,
        presence_confidence=0.61239,
        anatomy_correct=False,
        anatomy_issues=("malformed_hand", "other"),
        gender="UNKNOWN",
        scene="a park",
        collage=False,
    )
    answer = to_response(Evaluated(found, "", 0.25), WANTED)
    assert answer == pb.EvaluationResponse(
        success=True,
        detected_framing=pb.FRAMING_FULL_BODY,
        detected_view_angle=pb.VIEW_ANGLE_FRONT,
        shot_type_confidence=0.8,
        matches_expected=True,
        human_detected=False,
        number_of_people=0,
        human_presence_confidence=0.612,
        anatomy_correct=False,
        anatomy_issues=[pb.ANATOMY_ISSUE_MALFORMED_HAND, pb.ANATOMY_ISSUE_OTHER],
        detected_gender=pb.GENDER_UNKNOWN,
        scene_description="a park",
        collage_detected=False,
        evaluation_time_ms=250.0,
        confidence_summary=0.706,
    )


def test_nothing_found_answers_nothing() -> None:
    answer = to_response(Evaluated(Findings(), "", 0.0), WANTED)
    assert [field.name for field, _ in answer.ListFields()] == ["success", "evaluation_time_ms"]


def test_a_failure_says_why() -> None:
    answer = to_response(Evaluated(None, "It failed.", 1.0), WANTED)
    assert answer == pb.EvaluationResponse(success=False, error="It failed.", evaluation_time_ms=1000.0)
