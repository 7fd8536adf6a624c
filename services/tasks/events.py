"""What the service tells the mesh: the documented events, as rows for the outbox."""

from __future__ import annotations

from typing import Any

from atelier.events.v1 import events_pb2

from meshkit.outbox import OutboxEvent
from services.tasks.convert import CATEGORY, STATUS
from services.tasks.domain import Status, TaskRecord

SUBJECT = "atelier.tasks.v1.task"
PROGRESS_SUBJECT = "atelier.progress"
WAKE_SUBJECT = "atelier.wake"
CANCEL_SUBJECT = "atelier.cancel"

_WHAT = {
    Status.PENDING.value: "requeued",
    Status.EXECUTING.value: "started",
    Status.COMPLETED.value: "completed",
    Status.FAILED.value: "failed",
    Status.CANCELLED.value: "cancelled",
}


def created(record: TaskRecord) -> OutboxEvent:
    """A task was accepted."""
    event = events_pb2.TaskCreatedEvent(
        event_type=events_pb2.EVENT_TYPE_TASK_CREATED,
        task_id=str(record.id),
        status=record.status,
        origin_instance=record.origin_instance,
        task_type=record.task_type,
    )
    if record.origin_zone is not None:
        event.origin_zone = record.origin_zone
    event.timestamp.FromDatetime(record.created_at)
    event.created_at.FromDatetime(record.created_at)
    return _outbox(f"{SUBJECT}.created", record, event, "task_created")


def changed(record: TaskRecord) -> OutboxEvent:
    """A task changed its state."""
    event = events_pb2.TaskStatusEvent(
        event_type=events_pb2.EVENT_TYPE_TASK_STATUS_UPDATE,
        task_id=str(record.id),
        status=STATUS[record.status],  # type: ignore[arg-type]  # enum numbers are ints on the wire
        origin_instance=record.origin_instance,
        task_type=record.task_type,
        progress=record.progress,
    )
    if record.origin_zone is not None:
        event.origin_zone = record.origin_zone
    event.timestamp.FromDatetime(record.updated_at)
    if record.started_at is not None:
        event.started_at.FromDatetime(record.started_at)
    if record.completed_at is not None:
        event.completed_at.FromDatetime(record.completed_at)
    if record.errors and record.status in (Status.FAILED, Status.PENDING):
        event.error_message = record.errors[-1]
    if record.error_category is not None:
        event.error_category = CATEGORY[record.error_category]  # type: ignore[assignment]
    return _outbox(f"{SUBJECT}.{_WHAT[record.status]}", record, event, "task_status_update")


def _outbox(subject: str, record: TaskRecord, event: Any, event_type: str) -> OutboxEvent:
    headers = {
        "Atelier-Version": str(record.version),
        "Atelier-Tenant": record.tenant,
        "Atelier-Event-Type": event_type,
    }
    if record.traceparent:
        headers["traceparent"] = record.traceparent
    return OutboxEvent(subject=subject, payload=event.SerializeToString(), headers=headers)
