"""What the service tells the mesh and webhooks: the documented events, as rows for the outbox and as deliveries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from atelier.events.v1 import events_pb2
from google.protobuf.message import Message

from meshkit import eventjson
from meshkit.fetcher import check_url
from meshkit.moments import assign
from meshkit.outbox import EVENT_TYPE_HEADER, OutboxEvent, event_headers
from meshkit.spelling import enum_names
from services.tasks.convert import CATEGORY, KIND, STATUS, to_task
from services.tasks.domain import TERMINAL, TaskRecord, TaskStatus
from services.tasks.media import media_of
from services.tasks.webhooks.domain import MediaMembers, NewDelivery

# Events of a workflow's steps have subjects of their own, so that workflows does not receive those of all tasks.
SUBJECT = "atelier.tasks.v1.task"
STEP_SUBJECT = "atelier.tasks.v1.step"
EVERY_SUBJECT = "atelier.tasks.v1.*.*"
PROGRESS_SUBJECT = "atelier.progress"
JOB_SUBJECT = "atelier.tasks.v1.job"
WAKE_SUBJECT = "atelier.wake"
CANCEL_SUBJECT = "atelier.cancel"
# On core NATS, at once after the commit: the same as the outbox tells a little later and for certain.
STEP_ENDED_SUBJECT = "atelier.ended.step"
# NATS takes messages of up to a megabyte; ours are far smaller.
MAX_TOLD_TASK_BYTES = 64 * 1024

_WHAT = {
    TaskStatus.PENDING.value: "requeued",
    TaskStatus.EXECUTING.value: "started",
    TaskStatus.COMPLETED.value: "completed",
    TaskStatus.FAILED.value: "failed",
    TaskStatus.CANCELLED.value: "cancelled",
}

_TASK_EVENTS: Mapping[str, type[Message]] = {
    "task_created": events_pb2.TaskCreatedEvent,
    "task_status_update": events_pb2.TaskStatusEvent,
}


def created(record: TaskRecord) -> OutboxEvent:
    """Return a task was accepted."""
    event = events_pb2.TaskCreatedEvent(
        event_type=events_pb2.EVENT_TYPE_TASK_CREATED,
        task_id=str(record.id),
        status=record.status,
        origin_instance=record.origin_instance,
        task_type=record.task_type,
    )
    if record.origin_zone is not None:
        event.origin_zone = record.origin_zone
    assign(event.timestamp, record.created_at)
    assign(event.created_at, record.created_at)
    return _outbox("created", record, event, "task_created")


def changed(record: TaskRecord) -> OutboxEvent:
    """Return a task changed its state."""
    return _outbox(_WHAT[record.status], record, _status_event(record), "task_status_update")


def job_changed(record: TaskRecord) -> OutboxEvent | None:
    """Return that a job of another service ended or is queued again; None for any other change."""
    if record.status == TaskStatus.EXECUTING:
        return None
    event = events_pb2.JobEvent(
        job_id=str(record.id), kind=KIND[record.kind], status=STATUS[record.status], attempt=record.attempt
    )
    if record.errors and record.status in (TaskStatus.FAILED, TaskStatus.PENDING):
        event.error_message = record.errors[-1]
    if record.error_category is not None:
        event.error_category = CATEGORY[record.error_category]
    if record.completed_at is not None:
        assign(event.completed_at, record.completed_at)
    headers = event_headers(
        version=record.version, tenant=record.tenant, event_type="job_update", traceparent=record.traceparent
    )
    what = "ended" if record.state in TERMINAL else "requeued"
    return OutboxEvent(f"{JOB_SUBJECT}.{what}", event.SerializeToString(), headers)


def step_ended(record: TaskRecord) -> bytes | None:
    """Return the notice of a step's end; None for a task of no workflow, or one too large."""
    if record.workflow_id is None or record.state not in TERMINAL:
        return None
    event = _status_event(record)
    return event.SerializeToString() if event.HasField("task") else None


def _status_event(record: TaskRecord) -> events_pb2.TaskStatusEvent:
    event = events_pb2.TaskStatusEvent(
        event_type=events_pb2.EVENT_TYPE_TASK_STATUS_UPDATE,
        task_id=str(record.id),
        status=STATUS[record.status],
        origin_instance=record.origin_instance,
        task_type=record.task_type,
        progress=record.progress,
    )
    if record.origin_zone is not None:
        event.origin_zone = record.origin_zone
    assign(event.timestamp, record.updated_at)
    if record.started_at is not None:
        assign(event.started_at, record.started_at)
    if record.completed_at is not None:
        assign(event.completed_at, record.completed_at)
    if record.errors and record.status in (TaskStatus.FAILED, TaskStatus.PENDING):
        event.error_message = record.errors[-1]
    if record.error_category is not None:
        event.error_category = CATEGORY[record.error_category]
    if record.workflow_id is not None and record.state in TERMINAL:
        task = to_task(record)
        if task.ByteSize() <= MAX_TOLD_TASK_BYTES:
            event.task.CopyFrom(task)
    return event


def delivery(record: TaskRecord, url: str, event: OutboxEvent) -> NewDelivery:
    """Return a task's event on its way to the task's webhook."""
    message = _TASK_EVENTS[event.headers[EVENT_TYPE_HEADER]].FromString(event.payload)
    return to_delivery(
        message,
        event_id=event.event_id,
        tenant=record.tenant,
        entity_id=record.id,
        version=record.version,
        url=url,
        media=media_of(record) if record.status == TaskStatus.COMPLETED else {},
    )


def to_delivery(
    event: Any,
    *,
    event_id: UUID,
    tenant: str,
    entity_id: UUID,
    version: int,
    url: str,
    media: MediaMembers | None = None,
) -> NewDelivery:
    """Return an event on its way to an address.

    Args:
        event: A message that has an `event_type`.
        event_id: Identifier of the event.
        tenant: Tenant that it belongs to.
        entity_id: The entity that it is about.
        version: Version of that.
        url: The address, well formed.
        media: Members that become addresses of stored objects when it is sent.
    """
    target = check_url(url)
    return NewDelivery(
        id=event_id,
        tenant=tenant,
        entity_id=entity_id,
        entity_version=version,
        event_type=enum_names(events_pb2.EventType.DESCRIPTOR).by_number[event.event_type],
        url=url,
        target=f"{target.host}:{target.port}",
        body=eventjson.encode(event),
        media=media or {},
    )


def _outbox(what: str, record: TaskRecord, event: Any, event_type: str) -> OutboxEvent:
    headers = event_headers(
        version=record.version, tenant=record.tenant, event_type=event_type, traceparent=record.traceparent
    )
    subject = f"{SUBJECT if record.workflow_id is None else STEP_SUBJECT}.{what}"
    return OutboxEvent(subject=subject, payload=event.SerializeToString(), headers=headers)
