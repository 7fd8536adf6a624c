"""Between rows and messages of the contract."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from uuid import UUID

from atelier.tasks.v1 import enums_pb2, service_requests_pb2, task_pb2, tasks_service_pb2, worker_service_pb2
from google.protobuf.timestamp_pb2 import Timestamp

from meshkit.moments import assign, duration_of, seconds_of
from meshkit.spelling import value_names, value_numbers
from services.tasks.catalog import QUEUES, Catalog, prefix_of
from services.tasks.devices import GpuReading, WarmModel
from services.tasks.domain import (
    AttemptRecord,
    AttemptRef,
    Fallback,
    JobKind,
    TaskRecord,
    WorkerLoad,
)
from services.tasks.fallbacks import tell_fallback
from services.tasks.service_requests import ServiceRequestEffect, ServiceRequestNote, ServiceRequestState

STATUS = value_numbers(enums_pb2.TaskStatus.DESCRIPTOR)
TASK_TYPE = value_numbers(enums_pb2.TaskType.DESCRIPTOR)
PROVIDER = value_numbers(enums_pb2.ProviderType.DESCRIPTOR)
CATEGORY = value_numbers(enums_pb2.ErrorCategory.DESCRIPTOR)
OUTCOME = value_numbers(tasks_service_pb2.AttemptOutcome.DESCRIPTOR)
KIND = value_numbers(worker_service_pb2.JobKind.DESCRIPTOR)
STATUS_NAME = value_names(enums_pb2.TaskStatus.DESCRIPTOR)
TASK_TYPE_NAME = value_names(enums_pb2.TaskType.DESCRIPTOR)
KIND_NAME = value_names(worker_service_pb2.JobKind.DESCRIPTOR)
PROVIDER_NAME = value_names(enums_pb2.ProviderType.DESCRIPTOR)
_REQUEST_STATE = value_numbers(service_requests_pb2.ServiceRequestState.DESCRIPTOR)
_REQUEST_STATE_NAME = value_names(service_requests_pb2.ServiceRequestState.DESCRIPTOR)
_EFFECT = value_numbers(service_requests_pb2.ServiceRequestEffect.DESCRIPTOR)
_EFFECT_NAME = value_names(service_requests_pb2.ServiceRequestEffect.DESCRIPTOR)
_OPTIONAL_TEXTS = ("origin_zone", "origin_reference", "executor_type", "executor_instance")
_MOMENTS = ("created_at", "updated_at", "started_at", "completed_at", "deleted_at", "last_resume_attempt")
CATEGORY_NAME = value_names(enums_pb2.ErrorCategory.DESCRIPTOR)


def timestamp(moment: datetime) -> Timestamp:
    """Return a moment as the wire has it."""
    result = Timestamp()
    assign(result, moment)
    return result


def moment(value: Timestamp) -> datetime:
    """Return a moment off the wire, in UTC."""
    return value.ToDatetime(tzinfo=UTC)


def to_task(record: TaskRecord) -> task_pb2.Task:
    """Return a task as callers see it."""
    task = task_pb2.Task()
    write_task(task, record)
    return task


def write_task(task: task_pb2.Task, record: TaskRecord) -> None:
    """Write a task as callers see it into an empty message, which may be a member of another: a copy less."""
    _read_stored(task, record)
    ident = str(record.id)
    task.id = ident
    task.priority = record.priority
    task.origin_instance = record.origin_instance
    task.origin_tenant_id = record.tenant
    task.status = STATUS[record.status]
    task.celery_task_id = ident
    task.provider_type = PROVIDER[record.provider_type]
    task.errors.extend(record.errors)
    if record.error_category is not None:
        task.error_category = CATEGORY[record.error_category]
    task.retry_count = record.retry_count
    task.progress = record.progress
    task.queue_name = record.queue_name
    task.version = record.version
    task.attempt = record.attempt
    task.is_deleted = record.is_deleted
    task.is_resumed = record.is_resumed
    task.resume_attempt_count = record.resume_attempt_count
    if record.workflow_id is not None:
        task.workflow_id = str(record.workflow_id)
    for name in _OPTIONAL_TEXTS:
        text = getattr(record, name)
        if text is not None:
            setattr(task, name, text)
    for name in _MOMENTS:
        value = getattr(record, name)
        if value is not None:
            assign(getattr(task, name), value)


def _merge_result(task: task_pb2.Task, result: task_pb2.TaskResult) -> None:
    field = result.WhichOneof("detail")
    if field is not None and field == task.WhichOneof("detail"):
        getattr(task, field).MergeFrom(getattr(result, field))


def fold_result(record: TaskRecord) -> task_pb2.Task:
    """Return the stored members of a task with its result among them, to be changed and stored again."""
    task = task_pb2.Task()
    _read_stored(task, record)
    return task


def _read_stored(task: task_pb2.Task, record: TaskRecord) -> None:
    task.ParseFromString(record.body)
    if record.result is not None:
        result = task_pb2.TaskResult.FromString(record.result)
        task.warnings.extend(result.warnings)
        _merge_result(task, result)
        if record.fallback == Fallback.TAKEN and (detail := task.WhichOneof("detail")) is not None:
            tell_fallback(getattr(task, detail))


def to_attempt(attempt: AttemptRecord) -> tasks_service_pb2.TaskAttempt:
    """One attempt as callers see it."""
    message = tasks_service_pb2.TaskAttempt(attempt=attempt.attempt, executor_instance=attempt.executor_instance)
    assign(message.started_at, attempt.started_at)
    if attempt.ended_at is not None:
        assign(message.ended_at, attempt.ended_at)
    if attempt.outcome is not None:
        message.outcome = OUTCOME[attempt.outcome]
    if attempt.error is not None:
        message.error = attempt.error
    if attempt.error_category is not None:
        message.error_category = CATEGORY[attempt.error_category]
    return message


def to_lease(record: TaskRecord, requests: Sequence[ServiceRequestNote] = ()) -> worker_service_pb2.Lease:
    """Return a leased task as its worker sees it, with its requests to providers that have not ended."""
    lease = worker_service_pb2.Lease(
        job_id=str(record.id),
        attempt=record.attempt,
        kind=KIND[record.kind],
        queue_name=record.queue_name,
        tenant=record.tenant,
        traceparent=record.traceparent,
        service_requests=[to_service_request(note) for note in requests],
    )
    lease.spec.ParseFromString(record.spec)
    if record.kind == JobKind.TASK:
        lease.result_prefix = f"{prefix_of(record.task_type, record.id)}{record.attempt}/"
        write_task(lease.task, record)
    lease.timeout.FromMilliseconds(int(record.timeout_seconds * 1000))
    return lease


def from_service_request(request: service_requests_pb2.ServiceRequest) -> ServiceRequestNote:
    """Return a request to a provider off the wire."""
    return ServiceRequestNote(
        id=UUID(request.id),
        provider_type=PROVIDER_NAME[request.provider_type],
        target=request.target,
        operation=request.operation,
        state=ServiceRequestState(_REQUEST_STATE_NAME[request.state]),
        service_task_id=request.service_task_id or None,
        resume=request.resume.SerializeToString() if request.HasField("resume") else None,
        http_status=request.http_status if request.HasField("http_status") else None,
        category=CATEGORY_NAME.get(request.category),
        message=request.message or None,
        effect=ServiceRequestEffect(_EFFECT_NAME[request.effect]) if request.effect else None,
        retry_after=seconds_of(request.retry_after) if request.HasField("retry_after") else None,
        sent_at=moment(request.sent_at) if request.HasField("sent_at") else None,
        ended_at=moment(request.ended_at) if request.HasField("ended_at") else None,
        cost=request.cost if request.HasField("cost") else None,
        currency=request.currency or None,
    )


def to_service_request(note: ServiceRequestNote) -> service_requests_pb2.ServiceRequest:
    """Return a request to a provider for the wire."""
    request = service_requests_pb2.ServiceRequest(
        id=str(note.id),
        provider_type=PROVIDER[note.provider_type],
        target=note.target,
        operation=note.operation,
        state=_REQUEST_STATE[note.state],
        service_task_id=note.service_task_id or "",
        http_status=note.http_status,
        message=note.message or "",
        cost=note.cost,
        currency=note.currency or "",
        attempt=note.attempt,
    )
    if note.resume is not None:
        request.resume.ParseFromString(note.resume)
    if note.category is not None:
        request.category = CATEGORY[note.category]
    if note.effect is not None:
        request.effect = _EFFECT[note.effect]
    if note.retry_after is not None:
        request.retry_after.CopyFrom(duration_of(note.retry_after))
    if note.sent_at is not None:
        assign(request.sent_at, note.sent_at)
    if note.ended_at is not None:
        assign(request.ended_at, note.ended_at)
    return request


def from_load(load: worker_service_pb2.WorkerLoad, warm: worker_service_pb2.WarmState) -> WorkerLoad:
    """Return what a worker tells of itself off the wire, with what it holds in memory."""
    return WorkerLoad(
        memory_bytes=load.memory_bytes,
        completed=dict(load.completed),
        pid=load.pid,
        child_pids=list(load.child_pids),
        started=load.started_at.ToDatetime(tzinfo=UTC).timestamp(),
        rusage=dict(load.rusage),
        models=[WarmModel(one.name, one.bytes, one.device) for one in warm.sizes],
        gpus=[_from_gpu(one) for one in load.gpus],
        fault=load.fault,
    )


def _from_gpu(gpu: worker_service_pb2.GpuReading) -> GpuReading:
    return GpuReading(
        gpu.uuid,
        gpu.name,
        gpu.utilization if gpu.HasField("utilization") else None,
        gpu.used_bytes if gpu.HasField("used_bytes") else None,
        gpu.total_bytes if gpu.HasField("total_bytes") else None,
        gpu.temperature if gpu.HasField("temperature") else None,
        gpu.power_watts if gpu.HasField("power_watts") else None,
    )


def from_ref(ref: worker_service_pb2.AttemptRef) -> AttemptRef:
    """Return an attempt off the wire."""
    return AttemptRef(UUID(ref.job_id), ref.attempt)


def to_ref(ref: AttemptRef) -> worker_service_pb2.AttemptRef:
    """Return an attempt for the wire."""
    return worker_service_pb2.AttemptRef(job_id=str(ref.job_id), attempt=ref.attempt)


def to_catalog(catalog: Catalog, *, internal: bool) -> tasks_service_pb2.GetCatalogResponse:
    """Return what is served.

    Args:
        catalog: What is served.
        internal: Whether the types for tests are named too: to services, which check steps by them.
    """
    names = catalog.served_types if internal else catalog.public_types
    return tasks_service_pb2.GetCatalogResponse(
        task_types=[TASK_TYPE[name] for name in names],
        providers=[
            tasks_service_pb2.ServedProvider(
                provider_type=PROVIDER[name],
                capabilities=sorted(catalog.capabilities(name)),
            )
            for name in sorted(catalog.served_providers)
        ],
        queues=sorted(QUEUES),
    )
