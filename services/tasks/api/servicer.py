"""TasksService over gRPC: decode, call, encode."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any
from uuid import UUID

import grpc
from atelier.tasks.v1 import tasks_service_pb2, tasks_service_pb2_grpc

from meshkit.access import Caller
from meshkit.catalog import provider_numbered
from meshkit.idempotency import REPLAYED, IdempotencyKey
from services.tasks.api.quotas import TenantQuotas
from services.tasks.api.service import TasksService
from services.tasks.api.watch import TaskWatchers
from services.tasks.catalog import Catalog
from services.tasks.convert import STATUS_NAME, TASK_TYPE_NAME, to_attempt, to_catalog, to_service_request, write_task
from services.tasks.domain import TaskStatus
from services.tasks.media import ShowTask
from services.tasks.providers.convert import to_providers, to_state
from services.tasks.providers.domain import GateName
from services.tasks.providers.service import ProviderDesk
from services.tasks.store import TaskFilter

Context = grpc.aio.ServicerContext[Any, Any]
GENERATION = "GENERATION"


class TasksServicer(tasks_service_pb2_grpc.TasksServiceServicer):
    """Answers callers.

    Args:
        tasks: The use cases.
        watchers: Follows tasks.
        catalog: What is served.
        quotas: The limits of tenants.
        show: Makes of a row what callers see.
        providers: What stands before providers.
    """

    def __init__(
        self,
        tasks: TasksService,
        watchers: TaskWatchers,
        catalog: Catalog,
        *,
        quotas: TenantQuotas,
        show: ShowTask,
        providers: ProviderDesk,
    ) -> None:
        self._tasks = tasks
        self._watchers = watchers
        self._catalog = catalog
        self._quotas = quotas
        self._show = show
        self._providers = providers

    async def CreateTask(
        self, request: tasks_service_pb2.CreateTaskRequest, context: Context
    ) -> tasks_service_pb2.CreateTaskResponse:
        key = IdempotencyKey.of_call("CreateTask", request)
        answer, replayed = await self._tasks.create(request, Caller.of_call(), key)
        if replayed:
            context.set_trailing_metadata(REPLAYED)
        if isinstance(answer, bytes):
            return tasks_service_pb2.CreateTaskResponse.FromString(answer)
        response = tasks_service_pb2.CreateTaskResponse()
        write_task(response.task, answer)
        return response

    async def GetLimits(
        self, request: tasks_service_pb2.GetLimitsRequest, context: Context
    ) -> tasks_service_pb2.GetLimitsResponse:
        del request, context
        tenant = Caller.of_call().require_tenant()
        response = tasks_service_pb2.GetLimitsResponse(tenant=tenant)
        for limit in await self._quotas.limits(tenant):
            response.limits.add(name=limit.name, most=limit.most, used=limit.used, per_process=limit.per_process)
        return response

    async def GetTask(
        self, request: tasks_service_pb2.GetTaskRequest, context: Context
    ) -> tasks_service_pb2.GetTaskResponse:
        del context
        record = await self._tasks.get(UUID(request.task_id), Caller.of_call())
        return tasks_service_pb2.GetTaskResponse(task=self._show(record))

    async def ListTasks(
        self, request: tasks_service_pb2.ListTasksRequest, context: Context
    ) -> tasks_service_pb2.ListTasksResponse:
        del context
        task_type = TASK_TYPE_NAME.get(request.task_type, "") if request.HasField("task_type") else None
        records = await self._tasks.list_tasks(
            _filter(request, task_type), Caller.of_call(), request.skip, request.limit
        )
        return tasks_service_pb2.ListTasksResponse(tasks=[self._show(record) for record in records])

    async def UpdateTask(
        self, request: tasks_service_pb2.UpdateTaskRequest, context: Context
    ) -> tasks_service_pb2.UpdateTaskResponse:
        del context
        record = await self._tasks.update(
            UUID(request.task_id), request.update, list(request.update_mask.paths), Caller.of_call()
        )
        return tasks_service_pb2.UpdateTaskResponse(task=self._show(record))

    async def DeleteTask(
        self, request: tasks_service_pb2.DeleteTaskRequest, context: Context
    ) -> tasks_service_pb2.DeleteTaskResponse:
        del context
        record = await self._tasks.delete(UUID(request.task_id), Caller.of_call())
        return tasks_service_pb2.DeleteTaskResponse(task=self._show(record))

    async def CleanupTask(
        self, request: tasks_service_pb2.CleanupTaskRequest, context: Context
    ) -> tasks_service_pb2.CleanupTaskResponse:
        del context
        record, deleted = await self._tasks.cleanup(UUID(request.task_id), Caller.of_call())
        return tasks_service_pb2.CleanupTaskResponse(task=self._show(record), deleted_paths=deleted)

    async def CancelTask(
        self, request: tasks_service_pb2.CancelTaskRequest, context: Context
    ) -> tasks_service_pb2.CancelTaskResponse:
        del context
        record = await self._tasks.cancel(UUID(request.task_id), Caller.of_call())
        return tasks_service_pb2.CancelTaskResponse(task=self._show(record))

    async def WatchTask(
        self, request: tasks_service_pb2.WatchTaskRequest, context: Context
    ) -> AsyncIterator[tasks_service_pb2.WatchTaskResponse]:
        del context
        async for response in self._watchers.watch(UUID(request.task_id), Caller.of_call(), request.after_version):
            yield response

    async def UpdateGenerationTask(
        self, request: tasks_service_pb2.UpdateGenerationTaskRequest, context: Context
    ) -> tasks_service_pb2.UpdateGenerationTaskResponse:
        del context
        record = await self._tasks.update(
            UUID(request.task_id), request.update, list(request.update_mask.paths), Caller.of_call(), GENERATION
        )
        return tasks_service_pb2.UpdateGenerationTaskResponse(task=self._show(record))

    async def GetGenerationTask(
        self, request: tasks_service_pb2.GetGenerationTaskRequest, context: Context
    ) -> tasks_service_pb2.GetGenerationTaskResponse:
        del context
        record = await self._tasks.get(UUID(request.task_id), Caller.of_call(), GENERATION)
        return tasks_service_pb2.GetGenerationTaskResponse(task=self._show(record))

    async def ListGenerationTasks(
        self, request: tasks_service_pb2.ListGenerationTasksRequest, context: Context
    ) -> tasks_service_pb2.ListGenerationTasksResponse:
        del context
        records = await self._tasks.list_tasks(
            _filter(request, GENERATION), Caller.of_call(), request.skip, request.limit
        )
        return tasks_service_pb2.ListGenerationTasksResponse(tasks=[self._show(record) for record in records])

    async def CancelGenerationTask(
        self, request: tasks_service_pb2.CancelGenerationTaskRequest, context: Context
    ) -> tasks_service_pb2.CancelGenerationTaskResponse:
        del context
        record = await self._tasks.cancel(UUID(request.task_id), Caller.of_call(), GENERATION)
        return tasks_service_pb2.CancelGenerationTaskResponse(task=self._show(record))

    async def ListTaskAttempts(
        self, request: tasks_service_pb2.ListTaskAttemptsRequest, context: Context
    ) -> tasks_service_pb2.ListTaskAttemptsResponse:
        del context
        attempts = await self._tasks.attempts(UUID(request.task_id), Caller.of_call())
        return tasks_service_pb2.ListTaskAttemptsResponse(attempts=[to_attempt(attempt) for attempt in attempts])

    async def ListServiceRequests(
        self, request: tasks_service_pb2.ListServiceRequestsRequest, context: Context
    ) -> tasks_service_pb2.ListServiceRequestsResponse:
        del context
        notes = await self._tasks.service_requests(UUID(request.task_id), Caller.of_call())
        # What it takes to go on with a request may hold signed addresses.
        return tasks_service_pb2.ListServiceRequestsResponse(
            service_requests=[to_service_request(replace(note, resume=None)) for note in notes]
        )

    async def ListProviders(
        self, request: tasks_service_pb2.ListProvidersRequest, context: Context
    ) -> tasks_service_pb2.ListProvidersResponse:
        del request, context
        gates, running = await self._providers.gates(Caller.of_call())
        return to_providers(self._catalog, gates, running, self._providers.limits)

    async def ResetProviderBreaker(
        self, request: tasks_service_pb2.ResetProviderBreakerRequest, context: Context
    ) -> tasks_service_pb2.ResetProviderBreakerResponse:
        del context
        name = GateName(provider_numbered(request.provider_type).name, request.key)
        before, now = await self._providers.reset(name)
        return tasks_service_pb2.ResetProviderBreakerResponse(previous_state=to_state(before), new_state=to_state(now))

    async def GetCatalog(
        self, request: tasks_service_pb2.GetCatalogRequest, context: Context
    ) -> tasks_service_pb2.GetCatalogResponse:
        del request, context
        return to_catalog(self._catalog, internal=Caller.of_call().is_service)


def _filter(request: Any, task_type: str | None) -> TaskFilter:
    def text(name: str) -> str | None:
        return getattr(request, name) if request.HasField(name) else None

    has_workflow = "workflow_id" in request.DESCRIPTOR.fields_by_name and request.HasField("workflow_id")
    status = STATUS_NAME.get(request.status) if request.HasField("status") else None
    return TaskFilter(
        tenant=text("origin_tenant_id"),
        status=TaskStatus(status) if status is not None else None,
        task_type=task_type,
        workflow_id=UUID(request.workflow_id) if has_workflow else None,
        origin_instance=text("origin_instance"),
        origin_zone=text("origin_zone"),
        include_deleted=request.include_deleted,
    )
