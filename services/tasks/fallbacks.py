"""What becomes of a task when its fallback takes over. Pure: no database, no clock."""

from __future__ import annotations

from typing import Any, NamedTuple

from atelier.tasks.v1 import task_pb2

from meshkit.catalog import PROVIDERS, TASK_TYPES, provider_numbered
from services.tasks.domain import TaskRecord, lane_of
from services.tasks.providers.gates import key_of

_APPLICATION = "fal_app_id"
_USED = "fallback_used"


class TakenOver(NamedTuple):
    """What changes of a task.

    Attributes:
        provider_type: Who executes it now.
        lane: What a worker must run to be given it, and what the provider counts by.
        queue_name: Queue of that provider; one that the caller named was the first provider's.
        spec: The stored request, as if the caller had named this provider.
        body: The stored members: settings and capabilities are the fallback's, and no request at a provider is named.
    """

    provider_type: str
    lane: str
    queue_name: str
    spec: bytes
    body: bytes


def taken_over(record: TaskRecord) -> TakenOver:
    """Return a task as its fallback executes it; what its caller said of the fallback stays to be read."""
    spec, body = task_pb2.CreateTask.FromString(record.spec), task_pb2.Task.FromString(record.body)
    provider = provider_numbered(body.fallback_provider_type)
    spec.provider_type = provider.number
    spec.queue_name = provider.queue
    detail = TASK_TYPES[record.task_type].detail
    former = PROVIDERS[record.provider_type]
    message: Any
    for message in (spec, body):
        message.ClearField("provider_config")
        if body.HasField("fallback_provider_config"):
            message.provider_config.CopyFrom(body.fallback_provider_config)
        message.active_provider_capabilities[:] = body.fallback_provider_capabilities
        settings = getattr(message.provider_config, provider.config)
        _copy(settings, getattr(message, detail), _APPLICATION)
    body.ClearField("service_task_id")
    if former.service_task_id is not None:
        _copy(task_pb2.Task(), getattr(body, detail), former.service_task_id)
    return TakenOver(
        provider.name,
        lane_of(record.task_type, provider.name, key=key_of(provider, body.provider_config)),
        provider.queue,
        spec.SerializeToString(),
        body.SerializeToString(),
    )


def tell_fallback(detail: Any) -> None:
    """Note in a result of a type that tells it that the fallback has made it."""
    if _USED in detail.DESCRIPTOR.fields_by_name:
        setattr(detail, _USED, True)


def _copy(source: Any, target: Any, name: str) -> None:
    """Give a member to a message that has such a member; clear it where the source has none."""
    if name not in target.DESCRIPTOR.fields_by_name:
        return
    target.ClearField(name)
    if name in source.DESCRIPTOR.fields_by_name and source.HasField(name):
        setattr(target, name, getattr(source, name))
