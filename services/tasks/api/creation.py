"""From a caller's request to a task that can be written: every check, default and draw."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any
from uuid import UUID

from atelier.tasks.v1 import providers_pb2, task_pb2, tasks_service_pb2

from meshkit import tracing
from meshkit.access import Caller
from meshkit.catalog import ProviderSpec, TaskTypeSpec, provider_of_config, type_of_detail
from meshkit.errors import forbidden, invalid
from services.tasks.api.applications import fold_application, refuse_calls
from services.tasks.catalog import Catalog
from services.tasks.domain import Fallback, TaskRecord, new_task
from services.tasks.identifiers import time_ordered_id
from services.tasks.inputs.validator import AcceptedInput, InputValidator
from services.tasks.providers.gates import key_of

# A JSON client, whose numbers are doubles, can repeat what it was told.
_SEED_BITS = 53
# Before a model's name among the keys of affinity, which are paths of adapters else.
MODEL_KEY = "model:"
TENANT_PATH = "task.origin_tenant_id"
_WORKFLOW = "workflow_id"


class TaskPreparer:
    """Makes tasks of requests.

    Args:
        catalog: What is served.
        inputs: Checks inputs and moves them into place.
        clock: Gives the present, in UTC.
    """

    def __init__(self, catalog: Catalog, inputs: InputValidator, clock: Callable[[], datetime]) -> None:
        self._catalog = catalog
        self._inputs = inputs
        self._clock = clock

    async def prepare(
        self, request: tasks_service_pb2.CreateTaskRequest, caller: Caller
    ) -> tuple[TaskRecord, list[AcceptedInput]]:
        """Check a request; its inputs are checked, not yet written.

        Args:
            request: The request; its message is changed on the way.
            caller: Who asks.

        Returns:
            The task to write and its inputs.

        Raises:
            MeshError: `INVALID` with the members that do not hold, `FORBIDDEN` for another's tenant.
        """
        spec = request.task
        task_type = self._catalog.type_of(spec)
        tenant = caller.tenant_of(spec.origin_tenant_id, TENANT_PATH)
        if (request.HasField("task_id") or request.HasField("workflow_id")) and not caller.is_service:
            raise forbidden("Only a service may name a task's identifier or workflow", reason="SERVICE_ONLY")
        provider, queue = self._route(spec, task_type)
        if spec.HasField("webhook_url"):
            self._inputs.check_address(spec.webhook_url, "task.webhook_url")
        now = self._clock()
        task_id = UUID(request.task_id) if request.HasField("task_id") else time_ordered_id(now)
        detail = getattr(spec, task_type.detail)
        adapters = await self._inputs.check_adapters(task_type, detail, tenant, f"task.{task_type.detail}")
        accepted = await self._inputs.accept(task_type, detail, tenant, task_id)
        for field in task_type.seeds:
            if not detail.HasField(field):
                setattr(detail, field, secrets.randbits(_SEED_BITS))
        if task_type.seed_in_config and spec.config.fields["seed"].WhichOneof("kind") in (None, "null_value"):
            spec.config.update({"seed": secrets.randbits(_SEED_BITS)})
        keep_paths(detail, task_type, accepted)
        _set_workflow(detail, request)
        body = _body(spec, task_type, accepted, request)
        spec.origin_tenant_id = tenant
        spec.queue_name = queue
        trace = tracing.current()
        record = new_task(
            task_id=task_id,
            tenant=tenant,
            task_type=task_type.name,
            priority=spec.priority,
            queue_name=queue,
            provider_type=provider.name,
            now=now,
            origin_instance=spec.origin_instance,
            origin_zone=spec.origin_zone if spec.HasField("origin_zone") else None,
            origin_reference=spec.origin_reference if spec.HasField("origin_reference") else None,
            workflow_id=UUID(request.workflow_id) if request.HasField("workflow_id") else None,
            webhook_url=spec.webhook_url if spec.HasField("webhook_url") else None,
            timeout_seconds=task_type.timeout_seconds,
            warm_keys=warm_keys(adapters, body),
            traceparent=trace.traceparent if trace is not None else "",
            spec=spec.SerializeToString(),
            body=body.SerializeToString(),
            fallback=Fallback.AVAILABLE if body.HasField("fallback_provider_type") else None,
            gate_key=key_of(provider, spec.provider_config),
        )
        return record, accepted

    def _route(self, spec: task_pb2.CreateTask, task_type: TaskTypeSpec) -> tuple[ProviderSpec, str]:
        provider = self._catalog.provider_of(spec.provider_type, task_type, "task.provider_type")
        queue = self._catalog.queue_of(spec.queue_name if spec.HasField("queue_name") else None, provider)
        detail = getattr(spec, task_type.detail)
        spec.active_provider_capabilities[:] = self._catalog.relied_on(
            spec.active_provider_capabilities, detail, task_type, provider, "task.active_provider_capabilities"
        )
        needed = _needed(spec, task_type)
        self._catalog.check_fields(needed, provider, task_type)
        for capability in needed.values():
            if capability not in spec.active_provider_capabilities:
                spec.active_provider_capabilities.append(capability)
        self._catalog.check_config(spec.config, task_type, provider, "task.config", detail)
        fallback = None
        if spec.HasField("provider_config"):
            check_config(spec.provider_config, provider, "task.provider_config")
            refuse_calls(spec.provider_config, "task.provider_config")
            self._catalog.check_network(spec.provider_config, "task.provider_config")
        if spec.HasField("fallback_provider_type"):
            fallback = self._catalog.provider_of(spec.fallback_provider_type, task_type, "task.fallback_provider_type")
            spec.fallback_provider_capabilities[:] = self._catalog.relied_on(
                spec.fallback_provider_capabilities, detail, task_type, fallback, "task.fallback_provider_capabilities"
            )
            self._catalog.check_fields(needed, fallback, task_type)
            self._catalog.check_config(spec.config, task_type, fallback, "task.config", detail)
            if spec.HasField("fallback_provider_config"):
                check_config(spec.fallback_provider_config, fallback, "task.fallback_provider_config")
                refuse_calls(spec.fallback_provider_config, "task.fallback_provider_config")
                self._catalog.check_network(spec.fallback_provider_config, "task.fallback_provider_config")
        elif spec.HasField("fallback_provider_config") or spec.fallback_provider_capabilities:
            raise invalid("task.fallback_provider_type", "Field required where a fallback is described", "missing")
        fold_application(spec, task_type, provider, fallback)
        return provider, queue


def _needed(spec: task_pb2.CreateTask, task_type: TaskTypeSpec) -> dict[str, str]:
    """Return the fields that the task sets and not every provider can follow, with the capability that each takes."""
    set_here = {field.name for field, _ in getattr(spec, task_type.detail).ListFields()}
    return {field: capability for field, capability in task_type.capabilities.items() if field in set_here}


def check_config(config: providers_pb2.ProviderConfig, provider: ProviderSpec, path: str) -> None:
    """Refuse settings of another provider.

    Raises:
        MeshError: `INVALID`.
    """
    chosen = provider_of_config(config)
    if chosen is not None and chosen is not provider:
        raise invalid(path, f"holds settings of {chosen.name}, the provider is {provider.name}", "provider_config")


def _body(
    spec: task_pb2.CreateTask,
    task_type: TaskTypeSpec,
    accepted: list[AcceptedInput],
    request: tasks_service_pb2.CreateTaskRequest,
) -> task_pb2.Task:
    """Return the members of the task that no column holds."""
    body = task_pb2.Task()
    if spec.HasField("config"):
        body.config.CopyFrom(spec.config)
    if spec.HasField("provider_config"):
        body.provider_config.CopyFrom(spec.provider_config)
    if spec.active_provider_capabilities:
        body.active_provider_capabilities.extend(spec.active_provider_capabilities)
    if spec.HasField("fallback_provider_type"):
        body.fallback_provider_type = spec.fallback_provider_type
    if spec.HasField("fallback_provider_config"):
        body.fallback_provider_config.CopyFrom(spec.fallback_provider_config)
    if spec.fallback_provider_capabilities:
        body.fallback_provider_capabilities.extend(spec.fallback_provider_capabilities)
    public = getattr(body, task_type.detail)
    public.SetInParent()
    copy_shared(getattr(spec, task_type.detail), public, shared_fields(task_type.detail))
    show_paths(public, task_type, accepted)
    _set_workflow(public, request)
    return body


def warm_keys(adapters: Sequence[str], body: task_pb2.Task) -> list[str]:
    """Return the affinity keys: the adapters, and the base model that the task's `config` names."""
    keys = list(adapters)
    if body.HasField("config") and "model" in body.config.fields and body.config.fields["model"].string_value:
        keys.append(MODEL_KEY + body.config.fields["model"].string_value)
    return keys


@lru_cache
def shared_fields(detail: str) -> frozenset[str]:
    """Names of the fields of a type's Create message that its public message has too, by name and kind.

    Those of inputs are left out, for they may hold files, and so is the workflow, which only a service names.
    """
    source = task_pb2.CreateTask.DESCRIPTOR.fields_by_name[detail].message_type
    target = task_pb2.Task.DESCRIPTOR.fields_by_name[detail].message_type
    task_type = type_of_detail(detail)
    assert source is not None, "details are messages"
    assert target is not None, "details are messages"
    assert task_type is not None, "each detail is a task type's"
    apart = {one.field for image in task_type.inputs for one in image.sources} | {_WORKFLOW}
    return frozenset(
        field.name
        for field in source.fields
        if field.name not in apart
        and (other := target.fields_by_name.get(field.name)) is not None
        and other.type == field.type
        and other.is_repeated == field.is_repeated
    )


def copy_shared(source: Any, target: Any, names: Collection[str]) -> None:
    """Copy what is set between messages that share these fields by name and kind."""
    for field, value in source.ListFields():
        name = field.name
        if name not in names:
            continue
        if field.is_repeated:
            getattr(target, name).MergeFrom(value)
        elif field.message_type is not None:
            getattr(target, name).CopyFrom(value)
        else:
            setattr(target, name, value)


def keep_paths(detail: Any, task_type: TaskTypeSpec, accepted: Sequence[AcceptedInput]) -> None:
    """Leave in a Create message the paths and addresses of its inputs alone: it goes into a row."""
    for image in task_type.inputs:
        for source in image.sources:
            detail.ClearField(source.field)
        _put(detail, image.kept.field, [item.path for item in accepted if item.input is image], many=image.many)


def show_paths(public: Any, task_type: TaskTypeSpec, accepted: Sequence[AcceptedInput]) -> None:
    """Set the members of a public message that show where its inputs lie."""
    for image in task_type.inputs:
        paths = [item.path for item in accepted if item.input is image]
        _put(public, image.public, paths, many=image.many)
        if image.first is not None:
            _put(public, image.first, paths, many=False)


def _put(message: Any, field: str, paths: Sequence[str], *, many: bool) -> None:
    if many:
        getattr(message, field).extend(paths)
    elif paths:
        setattr(message, field, paths[0])


def _set_workflow(detail: Any, request: tasks_service_pb2.CreateTaskRequest) -> None:
    """Set the workflow that a service names; one that the task itself names could be anybody's."""
    if _WORKFLOW not in detail.DESCRIPTOR.fields_by_name:
        return
    detail.ClearField(_WORKFLOW)
    if request.HasField("workflow_id"):
        setattr(detail, _WORKFLOW, request.workflow_id)
