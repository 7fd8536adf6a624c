"""Alerts as messages."""

from __future__ import annotations

from atelier.monitoring.v1 import capture_alert_service_pb2 as pb

from meshkit.moments import assign
from services.monitoring.capture.alerts.domain import AlertGrade, AlertRecord, AlertState, AlertsWanted

_STATES = {state: pb.AlertState.Value(f"ALERT_STATE_{state.name}") for state in AlertState}
_GRADES = {grade: pb.CaptureAlertSeverity.Value(f"CAPTURE_ALERT_SEVERITY_{grade.name}") for grade in AlertGrade}
_STATE_NAMES = {number: state for state, number in _STATES.items()}
_GRADE_NAMES = {number: grade for grade, number in _GRADES.items()}


def to_alert(record: AlertRecord) -> pb.Alert:
    """Return an alert for the wire."""
    alert = pb.Alert(
        alert_id=str(record.id),
        event_id=record.event_id,
        camera_id=record.camera_id,
        rule=record.rule,
        severity=_GRADES[record.grade],
        message=record.message,
        state=_STATES[record.state],
        acknowledged_by=record.acknowledged_by,
        dismissed_by=record.dismissed_by,
    )
    assign(alert.created_at, record.created_at)
    if record.acknowledged_at is not None:
        assign(alert.acknowledged_at, record.acknowledged_at)
    if record.dismissed_at is not None:
        assign(alert.dismissed_at, record.dismissed_at)
    return alert


def to_alerts_wanted(request: pb.ListAlertsRequest) -> AlertsWanted:
    """Return which alerts a caller wants."""
    return AlertsWanted(
        camera_id=request.camera_id if request.HasField("camera_id") else None,
        state=_STATE_NAMES.get(request.state),
        grade=_GRADE_NAMES.get(request.severity),
        event_id=request.event_id if request.HasField("event_id") else None,
    )
