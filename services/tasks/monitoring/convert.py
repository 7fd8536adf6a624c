"""Between rows and the messages of monitoring."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

from atelier.tasks.v1 import monitoring_service_pb2 as pb
from atelier.tasks.v1 import task_pb2, worker_service_pb2
from google.protobuf import json_format
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct

from meshkit.catalog import MediaKind, type_of_detail
from meshkit.freeform import MAX_WHOLE
from meshkit.identifiers import ids_beginning_with
from meshkit.media_urls import MediaLinks
from meshkit.moments import assign
from meshkit.spelling import enum_names
from services.tasks.convert import (
    CATEGORY_NAME,
    PROVIDER,
    PROVIDER_NAME,
    STATUS,
    STATUS_NAME,
    TASK_TYPE,
    TASK_TYPE_NAME,
    to_task,
)
from services.tasks.domain import ErrorCategory, TaskRecord, TaskStatus
from services.tasks.monitoring.celery import CeleryStats
from services.tasks.monitoring.domain import (
    RATE_MINUTES,
    Cursor,
    Fleet,
    ListedRow,
    ListedTask,
    QueueFigures,
    TaskCounts,
    TaskQuery,
    WorkerFigures,
    WorkFigures,
)
from services.tasks.monitoring.requeues import RequeueReport
from services.tasks.service_requests import ServiceRequestNote

_COPIED = (
    "status",
    "progress",
    "origin_instance",
    "queue_name",
    "priority",
    "retry_count",
    "is_resumed",
    "resume_attempt_count",
)
_OPTIONAL = (
    "provider_type",
    "origin_zone",
    "origin_tenant_id",
    "origin_reference",
    "celery_task_id",
    "service_task_id",
    "executor_type",
    "executor_instance",
)
_MOMENTS = ("created_at", "updated_at", "started_at", "completed_at", "last_resume_attempt")
# Whoever asks wants to see such a file in a page; adapters and parameters are none.
_SHOWN = {MediaKind.IMAGE: "image", MediaKind.VIDEO: "video"}


def to_query(request: pb.ListMonitoredTasksRequest) -> TaskQuery | None:
    """Return what is asked for; None where no task can match."""
    search = _text(request, "search")
    ids = ids_beginning_with(search) if search is not None else None
    if search is not None and ids is None:
        return None
    size = request.page_size
    return TaskQuery(
        tenant=_text(request, "origin_tenant_id"),
        status=STATUS_NAME.get(request.status) if request.HasField("status") else None,
        task_type=TASK_TYPE_NAME.get(request.task_type) if request.HasField("task_type") else None,
        provider_type=PROVIDER_NAME.get(request.provider_type) if request.HasField("provider_type") else None,
        origin_instance=_text(request, "origin_instance"),
        origin_zone=_text(request, "origin_zone"),
        created_after=_moment(request, "created_after"),
        created_before=_moment(request, "created_before"),
        ids=ids,
        sort_by=request.sort_by,
        descending=request.sort_order == "desc",
        skip=(request.page - 1) * size,
        limit=size,
    )


def to_rows_query(request: pb.ListTaskRowsRequest) -> TaskQuery:
    """Return what is asked for, and one task more: it tells whether others follow.

    Raises:
        MeshError: `INVALID` for a cursor that is none.
    """
    cursor = _text(request, "cursor")
    return TaskQuery(
        tenant=_text(request, "origin_tenant_id"),
        status=STATUS_NAME.get(request.status) if request.HasField("status") else None,
        task_type=TASK_TYPE_NAME.get(request.task_type) if request.HasField("task_type") else None,
        provider_type=PROVIDER_NAME.get(request.provider_type) if request.HasField("provider_type") else None,
        origin_instance=_text(request, "origin_instance"),
        origin_zone=_text(request, "origin_zone"),
        after=Cursor.parse(cursor) if cursor is not None else None,
        limit=request.page_size + 1,
    )


def to_requeue_query(request: pb.RequeueTasksRequest) -> tuple[TaskQuery, ErrorCategory | None]:
    """Return which failed tasks are meant, and for what they failed.

    Raises:
        MeshError: `INVALID` for a cursor that is none.
    """
    cursor = _text(request, "cursor")
    query = TaskQuery(
        tenant=_text(request, "tenant"),
        task_type=TASK_TYPE_NAME.get(request.task_type) if request.HasField("task_type") else None,
        provider_type=PROVIDER_NAME.get(request.provider_type) if request.HasField("provider_type") else None,
        created_after=_moment(request, "created_after"),
        created_before=_moment(request, "created_before"),
        after=Cursor.parse(cursor) if cursor is not None else None,
    )
    named = CATEGORY_NAME.get(request.error_category) if request.HasField("error_category") else None
    return query, ErrorCategory(named) if named is not None else None


def to_requeues(report: RequeueReport) -> pb.RequeueTasksResponse:
    """Return what became of failed tasks."""
    return pb.RequeueTasksResponse(
        matched=report.matched,
        requeued=[
            pb.RequeuedTask(task_id=str(one.task_id), new_task_id=str(one.new_task_id)) for one in report.requeued
        ],
        refused=[pb.RefusedRequeue(task_id=str(one.task_id), reason=one.reason) for one in report.refused],
        next_cursor=None if report.next is None else str(report.next),
    )


def to_rows(rows: Sequence[ListedRow], page_size: int) -> pb.ListTaskRowsResponse:
    """Return tasks in short; of those that were found, one more may follow."""
    response = pb.ListTaskRowsResponse()
    for row in rows[:page_size]:
        item = response.items.add(
            id=str(row.id), task_type=TASK_TYPE[row.task_type], status=STATUS[row.status], progress=row.progress
        )
        assign(item.created_at, row.created_at)
    if len(rows) > page_size:
        last = rows[page_size - 1]
        response.next_cursor = str(Cursor(last.created_at, last.id))
    return response


def to_item(task: ListedTask) -> pb.TaskListItem:
    """Return a task among others."""
    item = pb.TaskListItem(
        id=str(task.id),
        task_type=TASK_TYPE[task.task_type],
        provider_type=PROVIDER[task.provider_type],
        status=STATUS[task.status],
        progress=task.progress,
        origin_instance=task.origin_instance,
        origin_zone=task.origin_zone,
        origin_tenant_id=task.tenant,
        has_error=task.has_error,
    )
    for name in ("created_at", "started_at", "completed_at"):
        if (moment := getattr(task, name)) is not None:
            assign(getattr(item, name), moment)
    _write_duration(item, task.started_at, task.completed_at)
    return item


def to_detail(record: TaskRecord, requests: Sequence[ServiceRequestNote]) -> pb.GetMonitoredTaskResponse:
    """Return a task with all that concerns its execution."""
    task = to_task(record)
    detail = pb.GetMonitoredTaskResponse(
        id=task.id,
        task_type=TASK_TYPE[record.task_type],
        webhook_url=record.webhook_url,
        errors=task.errors,
        service_requests=[_logged(request) for request in requests],
    )
    for name in _COPIED:
        setattr(detail, name, getattr(task, name))
    for name in _OPTIONAL:
        if task.HasField(name):  # type: ignore[arg-type]  # names of the message
            setattr(detail, name, getattr(task, name))
    for name in _MOMENTS:
        if task.HasField(name):  # type: ignore[arg-type]  # names of the message
            getattr(detail, name).CopyFrom(getattr(task, name))
    if task.HasField("config"):
        detail.config.CopyFrom(task.config)
    _write_duration(detail, record.started_at, record.completed_at)
    if (field := task.WhichOneof("detail")) is not None:
        detail.task_data.update(_plain(getattr(task, field)))
    else:
        detail.task_data.SetInParent()
    return detail


def to_media(record: TaskRecord, links: MediaLinks) -> pb.GetTaskMediaResponse:
    """Return the pictures and films of a task; none that a cleanup has deleted."""
    response = pb.GetTaskMediaResponse(task_id=str(record.id))
    task: task_pb2.Task = to_task(record)
    spec = type_of_detail(task.WhichOneof("detail"))
    if spec is None or record.is_deleted:
        return response
    detail = getattr(task, spec.detail)

    def items(name: str, media: MediaKind) -> list[pb.MediaItem]:
        value = getattr(detail, name)
        paths = [value] if isinstance(value, str) else list(value)
        return [
            # What a caller gave as an address is shown by it: it is no object of the mesh.
            pb.MediaItem(
                name=name, path=path, url=path if _is_address(path) else links.url(record.tenant, path), media_type=kind
            )
            for path in paths
            if path and (kind := _SHOWN.get(media)) is not None
        ]

    for given in spec.inputs:
        response.inputs.extend(items(given.public, given.media))
    for output in spec.outputs:
        response.outputs.extend(items(output.field, output.media))
    return response


def to_stats(counts: TaskCounts) -> pb.GetTaskStatsResponse:
    """Return tasks, counted; every state is there."""
    return pb.GetTaskStatsResponse(
        total_tasks=counts.total,
        by_status={status.value: counts.by_status.get(status.value, 0) for status in TaskStatus},
        by_provider=counts.by_provider,
        by_task_type=counts.by_task_type,
        tasks_last_hour=counts.last_hour,
        tasks_last_24h=counts.last_day,
    )


def to_queues(figures: Sequence[QueueFigures], at: datetime) -> pb.GetQueueStatsResponse:
    """Return the queues."""
    response = pb.GetQueueStatsResponse(
        queues=[
            pb.QueueStats(
                name=one.name,
                depth=one.pending,
                active_workers=one.workers,
                active_tasks=one.active,
                reserved_tasks=one.reserved,
                avg_wait_time_ms=one.wait_ms,
                tasks_completed_last_hour=one.completed,
            )
            for one in figures
        ],
        total_pending=sum(one.pending for one in figures),
        total_active=sum(one.active for one in figures),
    )
    assign(response.timestamp, at)
    return response


def to_workers(fleet: Fleet) -> pb.GetWorkerStatsResponse:
    """Return the workers."""
    response = pb.GetWorkerStatsResponse(
        workers=[_worker(one) for one in fleet.workers],
        total_workers=len(fleet.workers),
        total_capacity=fleet.capacity,
        total_active=fleet.active,
        total_utilization_pct=100.0 * fleet.active / fleet.capacity if fleet.capacity else 0.0,
        workers_at_capacity=len(fleet.workers) - fleet.with_capacity,
    )
    assign(response.timestamp, fleet.at)
    return response


def to_health(fleet: Fleet, queues: Sequence[str]) -> pb.GetWorkersHealthResponse:
    """Return whether there are workers, and for which of these queues."""
    served, unserved = fleet.served(queues)
    response = pb.GetWorkersHealthResponse(
        healthy=fleet.with_capacity > 0,
        total_workers=len(fleet.workers),
        workers_with_capacity=fleet.with_capacity,
        queues_with_workers=served,
        queues_without_workers=unserved,
    )
    assign(response.timestamp, fleet.at)
    return response


def _worker(one: WorkerFigures) -> pb.WorkerInfo:
    return pb.WorkerInfo(
        name=one.name,
        queues=one.queues,
        concurrency=one.slots,
        active_tasks=one.active,
        utilization_pct=one.utilization_pct,
        has_capacity=one.has_capacity,
        cordoned=one.cordoned,
        tasks_completed_total=sum(one.load.completed.values()) if one.load is not None else 0,
        tasks_per_minute=one.completed_lately / RATE_MINUTES,
        memory_mb=one.load.memory_bytes / 1e6 if one.load is not None else None,
        fault=one.fault or None,
    )


def _logged(request: ServiceRequestNote) -> Struct:
    """Return a request to a provider as operators see it: neither what was sent nor a credential is kept of it."""
    seconds = (
        (request.ended_at - request.sent_at).total_seconds()
        if request.sent_at is not None and request.ended_at is not None
        else None
    )
    entry = Struct()
    entry.update(
        {
            "id": str(request.id),
            "provider_type": request.provider_type,
            "target": request.target or None,
            "operation": request.operation,
            "status": request.state.value,
            "service_task_id": request.service_task_id,
            "http_status": request.http_status,
            "error_category": request.category,
            "message": request.message,
            "attempt": request.attempt,
            "sent_at": request.sent_at.isoformat() if request.sent_at is not None else None,
            "duration_ms": seconds * 1000 if seconds is not None else None,
            "cost": request.cost,
            "currency": request.currency,
        }
    )
    return entry


def _plain(message: Message) -> dict[str, Any]:
    """Return a message as JSON values, members that are unset among them as null."""
    found: dict[str, Any] = {}
    whole = json_format.MessageToDict(message, preserving_proto_field_name=True)
    for field in message.DESCRIPTOR.fields:
        if field.is_repeated:
            found[field.name] = whole.get(field.name, [])
        elif field.has_presence and not message.HasField(field.name):
            found[field.name] = None
        elif field.enum_type is not None:
            found[field.name] = enum_names(field.enum_type).by_number.get(getattr(message, field.name))
        elif field.message_type is not None:
            found[field.name] = whole[field.name]
        else:
            value = getattr(message, field.name)
            # A double does not hold it: as text, as everywhere.
            found[field.name] = str(value) if isinstance(value, int) and abs(value) > MAX_WHOLE else value
    return found


def _write_duration(message: Any, begun: datetime | None, ended: datetime | None) -> None:
    if begun is not None and ended is not None:
        # Earlier releases could write an end before the beginning.
        message.duration_ms = max(0.0, (ended - begun).total_seconds() * 1000)


def _is_address(path: str) -> bool:
    return urlsplit(path).scheme in ("http", "https")


def _text(request: Any, name: str) -> str | None:
    return (getattr(request, name) or None) if request.HasField(name) else None


def _moment(request: Any, name: str) -> datetime | None:
    return getattr(request, name).ToDatetime(tzinfo=UTC) if request.HasField(name) else None


def to_celery_stats(stats: CeleryStats | None) -> pb.GetCeleryStatsResponse:
    """Return what Celery's `inspect` would; None where no worker answers."""
    response = pb.GetCeleryStatsResponse()
    if stats is not None:
        for name, by_worker in stats._asdict().items():
            getattr(response, name).update(by_worker)
    return response


def to_work_figures(figures: WorkFigures) -> pb.GetWorkFiguresResponse:
    """Return how fast tasks are done, and what workers tell."""
    response = pb.GetWorkFiguresResponse(waiting=figures.waiting)
    if figures.times is not None:
        response.times.avg_ms, response.times.p95_ms, response.times.p99_ms = figures.times
    for name, load in figures.workers:
        worker = response.workers.add(
            name=name,
            completed=load.completed,
            models=[
                worker_service_pb2.WarmModel(name=one.name, bytes=one.bytes, device=one.device) for one in load.models
            ],
            gpus=[worker_service_pb2.GpuReading(**asdict(one)) for one in load.gpus],
        )
        assign(worker.started_at, datetime.fromtimestamp(load.started, UTC))
    return response
