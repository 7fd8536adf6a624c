"""Typed clients of the mesh's gRPC services.

What every service and every internal caller uses. A `MeshChannel` brings round robin, retries, a deadline for every
call, the caller's token, the trace, and errors as `MeshError`; a client turns its methods into plain functions.

    tokens = ServiceTokens(TokenIssuer(secret), "nightly-report", scopes=("read",), tenant="acme")
    async with MeshChannel("dns:///tasks:9101", tokens.token) as channel:
        task = await TasksClient(channel).get(task_id)
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Sequence
from contextlib import aclosing
from typing import Protocol, TypeVar

from atelier.inference.v1 import inference_service_pb2 as inference
from atelier.inference.v1.inference_service_pb2_grpc import InferenceServiceStub
from atelier.tasks.v1 import enums_pb2, task_pb2
from atelier.tasks.v1 import tasks_service_pb2 as tasks
from atelier.tasks.v1 import worker_service_pb2 as workers
from atelier.tasks.v1.tasks_service_pb2_grpc import TasksServiceStub
from atelier.tasks.v1.worker_service_pb2_grpc import WorkerServiceStub
from google.protobuf import field_mask_pb2

from meshkit.channel import MeshChannel, MeshStream, Metadata, call_metadata
from meshkit.errors import ErrorKind, MeshError

__all__ = ["InferenceClient", "MeshChannel", "MeshStream", "TasksClient", "WorkerClient", "call_metadata"]

_RequestT_contra = TypeVar("_RequestT_contra", contravariant=True)
_ResponseT_co = TypeVar("_ResponseT_co", covariant=True)

_TERMINAL = frozenset({enums_pb2.TASK_STATUS_COMPLETED, enums_pb2.TASK_STATUS_FAILED, enums_pb2.TASK_STATUS_CANCELLED})
_REWATCH_PAUSE_SECONDS = 0.5


class _Rpc(Protocol[_RequestT_contra, _ResponseT_co]):
    """A unary call."""

    def __call__(self, request: _RequestT_contra, /, *, timeout: float | None = None) -> Awaitable[_ResponseT_co]:
        """Make the call."""


class TasksClient:
    """Tasks: create, read, change, watch.

    Args:
        channel: Channel to the tasks service.
        tenant: Tenant that a service acts for; ignored from any other caller.
    """

    def __init__(self, channel: MeshChannel, *, tenant: str | None = None) -> None:
        self._stub = channel.stub(TasksServiceStub)
        self._metadata: Metadata = call_metadata(tenant=tenant)

    async def create(
        self,
        task: task_pb2.CreateTask,
        *,
        idempotency_key: str | None = None,
        task_id: str | None = None,
        timeout_seconds: float | None = None,
    ) -> task_pb2.Task:
        """Create a task; a lost connection is retried without creating it twice.

        Args:
            task: What to do.
            idempotency_key: The caller's key where it has one; a random one is used otherwise.
            task_id: Identifier to give it; only a service may name one.
            timeout_seconds: Deadline of the call.

        Returns:
            The task as accepted.
        """
        request = tasks.CreateTaskRequest(task=task, task_id=task_id)
        key = idempotency_key or secrets.token_hex(16)
        metadata = (*self._metadata, *call_metadata(idempotency_key=key))
        return (await self._stub.CreateTask(request, metadata=metadata, timeout=timeout_seconds)).task

    async def get(self, task_id: str) -> task_pb2.Task:
        """Return a task as it stands.

        Raises:
            MeshError: `NOT_FOUND` where this caller has no such task.
        """
        request = tasks.GetTaskRequest(task_id=task_id)
        return (await self._stub.GetTask(request, metadata=self._metadata)).task

    async def list(self, request: tasks.ListTasksRequest | None = None) -> Sequence[task_pb2.Task]:
        """Tasks, newest first.

        Args:
            request: Filters and page; the first hundred where absent.
        """
        return (await self._stub.ListTasks(request or tasks.ListTasksRequest(), metadata=self._metadata)).tasks

    async def update(self, task_id: str, update: task_pb2.TaskUpdate, paths: Sequence[str]) -> task_pb2.Task:
        """Change members of a task.

        Args:
            task_id: The task.
            update: New values.
            paths: Members to change; a named one that is unset in `update` is cleared.
        """
        mask = field_mask_pb2.FieldMask(paths=paths)
        request = tasks.UpdateTaskRequest(task_id=task_id, update=update, update_mask=mask)
        return (await self._stub.UpdateTask(request, metadata=self._metadata)).task

    async def cancel(self, task_id: str) -> task_pb2.Task:
        """Cancel a task; cancelling it again changes nothing.

        Raises:
            MeshError: `CONFLICT` where it has completed or failed.
        """
        request = tasks.CancelTaskRequest(task_id=task_id)
        return (await self._stub.CancelTask(request, metadata=self._metadata)).task

    async def cleanup(self, task_id: str) -> tasks.CleanupTaskResponse:
        """Delete a task's files and hide it from lists."""
        return await self._stub.CleanupTask(tasks.CleanupTaskRequest(task_id=task_id), metadata=self._metadata)

    async def delete(self, task_id: str) -> task_pb2.Task:
        """Delete a task and its files."""
        request = tasks.DeleteTaskRequest(task_id=task_id)
        return (await self._stub.DeleteTask(request, metadata=self._metadata)).task

    async def attempts(self, task_id: str) -> Sequence[tasks.TaskAttempt]:
        """Return attempts made at a task, oldest first."""
        request = tasks.ListTaskAttemptsRequest(task_id=task_id)
        return (await self._stub.ListTaskAttempts(request, metadata=self._metadata)).attempts

    async def watch(
        self, task_id: str, after_version: int | None = None
    ) -> AsyncGenerator[tasks.WatchTaskResponse, None]:
        """Follow a task until it ends; a broken stream resumes where it broke off.

        Args:
            task_id: The task.
            after_version: Version of the last state seen.

        Yields:
            States and progress; the last one has `final` set.
        """
        while True:
            request = tasks.WatchTaskRequest(task_id=task_id, after_version=after_version)
            responses = self._stub.WatchTask(request, metadata=self._metadata)
            try:
                async for response in responses:
                    after_version = response.task.version or after_version
                    yield response
                    if response.final:
                        return
            except MeshError as error:
                if error.kind is not ErrorKind.UNAVAILABLE:
                    raise
            finally:
                responses.cancel()
            await asyncio.sleep(_REWATCH_PAUSE_SECONDS)

    async def wait(self, task_id: str, timeout_seconds: float | None = None) -> task_pb2.Task:
        """Wait until a task ended.

        Args:
            task_id: The task.
            timeout_seconds: How long at most.

        Returns:
            The task in its last state.

        Raises:
            TimeoutError: It had not ended by then.
        """
        async with asyncio.timeout(timeout_seconds):
            async with aclosing(self.watch(task_id)) as states:
                async for state in states:
                    if state.task.status in _TERMINAL:
                        return await self.get(task_id)
        return await self.get(task_id)


class WorkerClient:
    """A worker's side of the scheduler; each method is the RPC of its name.

    Args:
        channel: Channel to the tasks service.
    """

    def __init__(self, channel: MeshChannel) -> None:
        stub = channel.stub(WorkerServiceStub)
        self.OpenSession: _Rpc[workers.OpenSessionRequest, workers.OpenSessionResponse] = stub.OpenSession
        self.Lease: _Rpc[workers.LeaseRequest, workers.LeaseResponse] = stub.Lease
        self.Heartbeat: _Rpc[workers.HeartbeatRequest, workers.HeartbeatResponse] = stub.Heartbeat
        self.Report: _Rpc[workers.ReportRequest, workers.ReportResponse] = stub.Report
        self.Complete: _Rpc[workers.CompleteRequest, workers.CompleteResponse] = stub.Complete
        self.CompleteMany: _Rpc[workers.CompleteManyRequest, workers.CompleteManyResponse] = stub.CompleteMany
        self.Fail: _Rpc[workers.FailRequest, workers.FailResponse] = stub.Fail
        self.NoteServiceRequest: _Rpc[workers.NoteServiceRequestRequest, workers.NoteServiceRequestResponse] = (
            stub.NoteServiceRequest
        )
        self.Release: _Rpc[workers.ReleaseRequest, workers.ReleaseResponse] = stub.Release
        self.CloseSession: _Rpc[workers.CloseSessionRequest, workers.CloseSessionResponse] = stub.CloseSession


class InferenceClient:
    """A worker's inference without a queue.

    Args:
        channel: Channel to the inference service.
        tenant: Tenant that a service acts for.
    """

    def __init__(self, channel: MeshChannel, *, tenant: str | None = None) -> None:
        self._stub = channel.stub(InferenceServiceStub)
        self._metadata: Metadata = call_metadata(tenant=tenant)

    def run(
        self, task: task_pb2.CreateTask, *, previews: bool = False, timeout_seconds: float | None = None
    ) -> AsyncIterator[inference.RunResponse]:
        """Run a task on the worker at once.

        Args:
            task: What to do.
            previews: Whether to send small pictures on the way.
            timeout_seconds: Deadline of the whole run.

        Returns:
            Progress, and last the result with its files.

        Raises:
            MeshError: `EXHAUSTED`, on the first item, where no slot is free.
        """
        request = inference.RunRequest(task=task, previews=previews)
        return aiter(self._stub.Run(request, metadata=self._metadata, timeout=timeout_seconds))

    async def describe(self) -> inference.DescribeResponse:
        """Return what the worker is and holds."""
        return await self._stub.Describe(inference.DescribeRequest(), metadata=self._metadata)
