"""Between the messages of the contract and the domain."""

from __future__ import annotations

from typing import Any, cast

from atelier.evaluation.v1 import evaluation_service_pb2 as pb
from atelier.tasks.v1.enums_pb2 import ProviderType

from meshkit.catalog import provider_numbered
from services.inference.evaluation.domain import Evaluated, Framing, Gender, ViewAngle, WantedShot
from services.inference.evaluation.pictures import PictureSource
from services.inference.evaluation.record import EvaluatorHealth


def to_provider(number: ProviderType.ValueType) -> str:
    """Return the spelling of a provider; empty where none is named."""
    return provider_numbered(number).name if number else ""


def to_wanted(request: pb.EvaluationRequest) -> WantedShot:
    """Return what a request wants; its defaults are applied."""
    return WantedShot(
        framing=cast("Framing", pb.Framing.Name(request.expected_framing).removeprefix("FRAMING_").lower()),
        view=cast("ViewAngle", pb.ViewAngle.Name(request.expected_view_angle).removeprefix("VIEW_ANGLE_").lower()),
        gender=cast("Gender", pb.Gender.Name(request.expected_gender).removeprefix("GENDER_")),
        instructions=request.custom_instructions,
        descriptions=request.include_descriptions,
    )


def to_source(request: pb.EvaluationRequest) -> PictureSource:
    """Return where the picture of a request is."""
    return PictureSource(data=request.image_data, address=request.image_url)


def to_response(verdict: Evaluated, wanted: WantedShot) -> pb.EvaluationResponse:
    """Return the answer."""
    found = verdict.findings
    answer = pb.EvaluationResponse(success=found is not None, evaluation_time_ms=round(1000 * verdict.seconds, 3))
    if found is None:
        answer.error = verdict.error
        return answer
    members: dict[str, Any] = {
        "detected_framing": found.framing and pb.Framing.Value(f"FRAMING_{found.framing.upper()}"),
        "detected_view_angle": found.view and pb.ViewAngle.Value(f"VIEW_ANGLE_{found.view.upper()}"),
        "shot_type_confidence": _rounded(found.shot_confidence),
        "matches_expected": found.matches(wanted),
        "human_detected": None if found.people is None else found.people > 0,
        "number_of_people": found.people,
        "human_presence_confidence": _rounded(found.presence_confidence),
        "anatomy_correct": found.anatomy_correct,
        "anatomy_confidence": _rounded(found.anatomy_confidence),
        "detected_gender": found.gender and pb.Gender.Value(f"GENDER_{found.gender}"),
        "gender_confidence": _rounded(found.gender_confidence),
        "garment_description": found.garments,
        "subject_description": found.subject,
        "scene_description": found.scene,
        "collage_detected": found.collage,
        "confidence_summary": _rounded(found.confidence),
    }
    for name, value in members.items():
        if value is not None:
            setattr(answer, name, value)
    answer.anatomy_issues.extend(pb.AnatomyIssue.Value(f"ANATOMY_ISSUE_{one.upper()}") for one in found.anatomy_issues)
    return answer


def to_health(health: EvaluatorHealth) -> pb.HealthStatus:
    """Return the health of an evaluator."""
    return pb.HealthStatus(
        is_healthy=health.healthy,
        health_score=round(health.score, 4),
        total_evaluations=health.total,
        success_rate=round(health.success_rate, 4),
        average_response_time=round(health.average_seconds, 4),
        circuit_breaker_state=health.breaker,
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(min(1.0, max(0.0, value)), 3)
