"""Events as messages."""

from __future__ import annotations

from atelier.monitoring.v1 import capture_event_service_pb2 as pb

from meshkit.moments import assign
from services.monitoring.capture.analysis.domain import EventRecord, EventsWanted, RiskLevel

_LEVELS = {level: pb.RiskLevel.Value(f"RISK_LEVEL_{level.name}") for level in RiskLevel}
_NAMES = {number: level for level, number in _LEVELS.items()}


def to_event(record: EventRecord) -> pb.CaptureEvent:
    """Return an event for the wire."""
    event = pb.CaptureEvent(
        event_id=record.id,
        batch_id=str(record.batch_id),
        camera_id=record.camera_id,
        risk_score=record.risk_score,
        risk_level=_LEVELS[record.risk_level],
        summary=record.summary,
        reasoning=record.reasoning,
        reviewed=record.reviewed_at is not None,
        reviewed_by=record.reviewed_by,
    )
    event.facts.update(record.facts)
    assign(event.started_at, record.started_at)
    assign(event.ended_at, record.ended_at)
    assign(event.created_at, record.created_at)
    if record.reviewed_at is not None:
        assign(event.reviewed_at, record.reviewed_at)
    return event


def to_events_wanted(request: pb.ListEventsRequest) -> EventsWanted:
    """Return which events a caller wants."""
    return EventsWanted(
        camera_id=request.camera_id if request.HasField("camera_id") else None,
        level=_NAMES.get(request.risk_level),
        score_least=request.min_risk_score if request.HasField("min_risk_score") else None,
        reviewed=request.reviewed if request.HasField("reviewed") else None,
    )
