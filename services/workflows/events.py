"""What the service tells the mesh: the documented event, as a row for the outbox."""

from __future__ import annotations

from atelier.events.v1 import events_pb2

from meshkit.moments import assign
from meshkit.outbox import OutboxEvent, event_headers
from services.workflows.domain import WorkflowRecord

SUBJECT = "atelier.workflows.v1.workflow"
TASK_ENDED = tuple(f"atelier.tasks.v1.step.{what}" for what in ("completed", "failed", "cancelled"))

TRAINING_ENDED = tuple(f"atelier.training.v1.training.{what}" for what in ("completed", "failed", "cancelled"))
TASK_ENDED_NOTICE = "atelier.ended.step"


def status_update(record: WorkflowRecord) -> events_pb2.BaseEvent:
    """Return the documented event of a workflow as it stands."""
    event = events_pb2.BaseEvent(
        event_type=events_pb2.EVENT_TYPE_WORKFLOW_STATUS_UPDATE,
        task_id=str(record.id),
        status=record.status.value,
        origin_instance=record.origin_instance,
    )
    if record.origin_zone is not None:
        event.origin_zone = record.origin_zone
    assign(event.timestamp, record.updated_at)
    event.metadata.update(
        {
            "name": record.name,
            "progress": record.progress,
            "completed_steps": record.completed_steps,
            "total_steps": record.total_steps,
            "current_step": record.current_step,
            "error_message": record.error_message,
        }
    )
    return event


def changed(record: WorkflowRecord) -> OutboxEvent:
    """Return a workflow changed its state, or got further."""
    event = status_update(record)
    headers = event_headers(
        version=record.version,
        tenant=record.tenant,
        event_type="workflow_status_update",
        traceparent=record.traceparent,
    )
    return OutboxEvent(f"{SUBJECT}.{record.status.value.lower()}", event.SerializeToString(), headers)
