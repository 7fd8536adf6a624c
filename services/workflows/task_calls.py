"""The tasks service as this one needs it: called with a token of the mesh, in the name of a workflow's tenant."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from uuid import UUID

from atelier.tasks.v1 import jobs_service_pb2, task_pb2, tasks_service_pb2, webhooks_service_pb2
from atelier.tasks.v1.jobs_service_pb2_grpc import JobsServiceStub
from atelier.tasks.v1.tasks_service_pb2_grpc import TasksServiceStub
from atelier.tasks.v1.webhooks_service_pb2_grpc import WebhookServiceStub
from google.protobuf.message import Message

from meshkit.catalog import PROVIDERS, TASK_TYPES
from meshkit.channel import DEFAULT_DEADLINE_SECONDS, MeshChannel, call_metadata
from meshkit.errors import MeshError
from meshkit.logging import get_logger
from meshkit.repeating import repeated
from services.workflows.definition import ServedCatalog
from services.workflows.domain import WorkflowRecord

_log = get_logger(__name__)


class TaskCalls:
    """Calls the tasks service.

    Args:
        channel: Channel to it.
        catalog_ttl_seconds: How long its catalog is believed.
        clock: Monotonic seconds.
    """

    def __init__(
        self, channel: MeshChannel, *, catalog_ttl_seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stub = channel.stub(TasksServiceStub)
        self._webhooks = channel.stub(WebhookServiceStub)
        self._jobs = channel.stub(JobsServiceStub)
        self._ttl = catalog_ttl_seconds
        self._clock = clock
        self._served: ServedCatalog | None = None
        self._asked = 0.0

    async def served(self) -> ServedCatalog:
        """Return what it serves; the last answer where it does not answer now.

        Raises:
            MeshError: `UNAVAILABLE` where it never did.
        """
        if self._served is not None and self._clock() - self._asked < self._ttl:
            return self._served
        try:
            answer = await self._stub.GetCatalog(tasks_service_pb2.GetCatalogRequest(), timeout=5.0)
        except MeshError as error:
            if self._served is None:
                raise
            _log.warning("catalog_unavailable", reason=error.reason)
            return self._served
        self._served, self._asked = _served(answer), self._clock()
        return self._served

    async def create(self, task: task_pb2.CreateTask, task_id: UUID, workflow_id: UUID, tenant: str) -> None:
        """Make a task of this identifier, or find that it exists."""
        request = tasks_service_pb2.CreateTaskRequest(task=task, task_id=str(task_id), workflow_id=str(workflow_id))
        metadata = call_metadata(tenant=tenant)
        await repeated(
            lambda left: self._stub.CreateTask(request, timeout=left, metadata=metadata), DEFAULT_DEADLINE_SECONDS
        )

    async def get(self, task_id: UUID, tenant: str) -> task_pb2.Task:
        """Return a task as it stands."""
        request = tasks_service_pb2.GetTaskRequest(task_id=str(task_id))
        return (await self._stub.GetTask(request, metadata=call_metadata(tenant=tenant))).task

    async def cancel(self, task_id: UUID, tenant: str) -> None:
        """Cancel a task."""
        request = tasks_service_pb2.CancelTaskRequest(task_id=str(task_id))
        await self._stub.CancelTask(request, metadata=call_metadata(tenant=tenant))

    async def cleanup(self, task_id: UUID, tenant: str) -> Sequence[str]:
        """Delete a task's files and hide it; the paths that were deleted."""
        request = tasks_service_pb2.CleanupTaskRequest(task_id=str(task_id))
        return list((await self._stub.CleanupTask(request, metadata=call_metadata(tenant=tenant))).deleted_paths)

    async def forget_all(self, workflow_id: UUID) -> bool:
        """Delete all tasks of a workflow, rows and files; whether none stays."""
        request = jobs_service_pb2.ForgetJobsRequest(workflow_id=str(workflow_id))
        while True:
            answer = await self._jobs.ForgetJobs(request, timeout=30.0)
            if not answer.kept_ids or not answer.forgotten:
                return not answer.kept_ids

    async def enqueue_webhook(self, event: Message, event_id: UUID, workflow: WorkflowRecord) -> None:
        """Hand a webhook of a workflow in; the tasks service delivers it and accepts each event once."""
        request = webhooks_service_pb2.EnqueueRequest(
            event_id=str(event_id),
            entity_id=str(workflow.id),
            entity_version=workflow.version,
            url=workflow.webhook_url or "",
            traceparent=workflow.traceparent,
        )
        request.event.Pack(event)
        await self._webhooks.Enqueue(request, metadata=call_metadata(tenant=workflow.tenant))


def _served(answer: tasks_service_pb2.GetCatalogResponse) -> ServedCatalog:
    # What a newer tasks service serves beyond this contract can be named in no definition.
    capabilities = {one.provider_type: one.capabilities for one in answer.providers}
    return ServedCatalog.of(
        [name for name, spec in TASK_TYPES.items() if spec.number in answer.task_types],
        {name: capabilities[spec.number] for name, spec in PROVIDERS.items() if spec.number in capabilities},
        answer.queues,
    )
