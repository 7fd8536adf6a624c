"""Requests that cost money, between a worker of calls and the real tasks service: restarts, drains and cancels."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from atelier.tasks.v1 import enums_pb2, phase_pb2, task_pb2, tasks_service_pb2
from atelier.tasks.v1.generation_pb2 import CreateGenerationTask
from atelier.tasks.v1.service_requests_pb2 import (
    SERVICE_REQUEST_STATE_ACCEPTED,
    SERVICE_REQUEST_STATE_DONE,
    SERVICE_REQUEST_STATE_FAILED,
    SERVICE_REQUEST_STATE_SENDING,
    ServiceRequest,
)

from meshkit.worker.config import WorkerSettings
from meshkit.worker.handlers import CallContext, InputRef, Output
from meshkit.worker.host import CallWork, WorkerHost
from meshkit.worker.pairs import Pair
from tests.integration.tasks.conftest import SECRET, Mesh, StartMesh, until

FAL = enums_pb2.PROVIDER_TYPE_FAL_STANDARD
GENERATION = enums_pb2.TASK_TYPE_GENERATION
COMPLETED, CANCELLED = enums_pb2.TASK_STATUS_COMPLETED, enums_pb2.TASK_STATUS_CANCELLED
STORE = ("s3_endpoint", "s3_access_key", "s3_secret_key", "s3_bucket")


@dataclass
class Provider:
    """Somebody else's service, which counts what it is paid for."""

    submitted: int = 0
    asked: list[str] = field(default_factory=list)
    called_off: list[str] = field(default_factory=list)
    take: asyncio.Event = field(default_factory=asyncio.Event)
    done: asyncio.Event = field(default_factory=asyncio.Event)


class Handler:
    """A handler of a provider that answers later."""

    def __init__(self, provider: Provider) -> None:
        self._provider = provider

    def inputs(self, spec: task_pb2.CreateTask, task: task_pb2.Task) -> Sequence[InputRef]:
        return ()

    async def run(self, context: CallContext) -> Output:
        provider = self._provider
        if context.open_requests:
            request = context.open_requests[0]
        else:
            request = ServiceRequest(
                id=str(uuid.uuid4()), provider_type=FAL, operation="submit", state=SERVICE_REQUEST_STATE_SENDING
            )
            await context.note(request)
            provider.submitted += 1
            await provider.take.wait()
            request.service_task_id, request.state = f"job-{provider.submitted}", SERVICE_REQUEST_STATE_ACCEPTED
            await context.note(request)
        try:
            provider.asked.append(request.service_task_id)
            context.begins(phase_pb2.TASK_PHASE_PROVIDER_QUEUED, position=3)
            await provider.done.wait()
        except asyncio.CancelledError:
            if context.called_off:
                provider.called_off.append(request.service_task_id)
                request.state = SERVICE_REQUEST_STATE_FAILED
                await context.note(request)
            raise
        request.state = SERVICE_REQUEST_STATE_DONE
        await context.note(request)
        return Output(task_pb2.TaskResult(), (), 0.0)


@pytest.fixture
def provider() -> Provider:
    return Provider()


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


async def worker(mesh: Mesh, provider: Provider, data: Path, stack: AsyncExitStack) -> WorkerHost:
    service = mesh.settings
    settings = WorkerSettings(
        tasks_address=mesh.running.address,
        worker_name=data.name,
        auth_secret=SECRET,
        data=data,
        nats_url=service.nats_url,
        **{name: getattr(service, name) for name in STORE},
    )
    host = WorkerHost.open(settings, ("fal",), stack)
    host.run_calls(CallWork("fal", {Pair(GENERATION, FAL): Handler(provider)}, 2))

    async def healthy(state: bool) -> None:
        assert state

    await host.start(healthy)
    return host


async def drawing(mesh: Mesh) -> str:
    detail = CreateGenerationTask(prompt="a hat", fal_app_id="fal-ai/flux/dev")
    return (await mesh.create(task_pb2.CreateTask(origin_instance="tests", provider_type=FAL, generation=detail))).id


async def becomes(mesh: Mesh, task_id: str, status: int) -> task_pb2.Task:
    async def there() -> bool:
        return (await mesh.get(task_id)).status == status

    await until(there, 60)
    return await mesh.get(task_id)


async def states(mesh: Mesh) -> list[tuple[str, str | None]]:
    return await mesh.rows("SELECT state, service_task_id FROM service_requests ORDER BY sent_at")


async def test_a_note_waits_for_a_tasks_service_that_restarts(
    start_mesh: StartMesh, provider: Provider, tmp_path: Path, stack: AsyncExitStack
) -> None:
    mesh = await start_mesh(served_providers="LOCAL,FAL_STANDARD")
    await worker(mesh, provider, tmp_path, stack)
    task_id = await drawing(mesh)

    async def sent() -> bool:
        return provider.submitted == 1

    await until(sent)
    assert await states(mesh) == [("SENDING", None)]
    await mesh.stack.aclose()
    provider.take.set()
    await asyncio.sleep(0.3)  # its first tries to note the acceptance find nobody
    assert not provider.asked
    again = await start_mesh(served_providers="LOCAL,FAL_STANDARD", listen=mesh.running.address)

    async def asked() -> bool:
        return provider.asked == ["job-1"]

    await until(asked, 60)
    assert await states(again) == [("ACCEPTED", "job-1")]
    provider.done.set()
    task = await becomes(again, task_id, COMPLETED)
    assert (task.attempt, task.retry_count, task.service_task_id, provider.submitted) == (1, 0, "job-1", 1)
    assert await states(again) == [("DONE", "job-1")]


async def test_a_worker_that_drains_leaves_its_request_to_the_next_one(
    start_mesh: StartMesh, provider: Provider, tmp_path: Path, stack: AsyncExitStack
) -> None:
    mesh = await start_mesh(served_providers="LOCAL,FAL_STANDARD")
    provider.take.set()
    first = await worker(mesh, provider, tmp_path / "first", stack)
    task_id = await drawing(mesh)

    async def asked() -> bool:
        return provider.asked == ["job-1"]

    await until(asked)
    await first.drain(0.0)
    assert (await mesh.get(task_id)).status == enums_pb2.TASK_STATUS_PENDING
    await worker(mesh, provider, tmp_path / "second", stack)
    provider.done.set()
    task = await becomes(mesh, task_id, COMPLETED)
    assert (provider.submitted, provider.asked, provider.called_off) == (1, ["job-1", "job-1"], [])
    assert (task.attempt, task.retry_count, task.service_task_id) == (2, 0, "job-1")
    assert await states(mesh) == [("DONE", "job-1")]


async def test_a_cancelled_task_calls_its_provider_off_and_the_end_of_its_request_is_kept(
    start_mesh: StartMesh, provider: Provider, tmp_path: Path, stack: AsyncExitStack
) -> None:
    mesh = await start_mesh(served_providers="LOCAL,FAL_STANDARD")
    provider.take.set()
    await worker(mesh, provider, tmp_path, stack)
    task_id = await drawing(mesh)

    async def asked() -> bool:
        return provider.asked == ["job-1"]

    await until(asked)
    await mesh.tasks().CancelTask(tasks_service_pb2.CancelTaskRequest(task_id=task_id))

    async def noted() -> bool:
        return await states(mesh) == [("FAILED", "job-1")]

    await until(noted, 60)
    assert provider.called_off == ["job-1"]
    assert (await mesh.get(task_id)).status == CANCELLED


async def test_who_watches_a_task_sees_its_place_in_the_queue_of_its_provider(
    start_mesh: StartMesh, provider: Provider, tmp_path: Path, stack: AsyncExitStack
) -> None:
    mesh = await start_mesh(served_providers="LOCAL,FAL_STANDARD")
    task_id = await drawing(mesh)
    await mesh.execute("UPDATE tasks SET progress = 60")  # as far as an earlier attempt had come
    watching = mesh.tasks().WatchTask(tasks_service_pb2.WatchTaskRequest(task_id=task_id))
    await worker(mesh, provider, tmp_path, stack)
    positions, progress = [], []
    async for event in watching:
        # Only once the watch is there: progress is told to who listens.
        provider.take.set()
        if event.phase == phase_pb2.TASK_PHASE_PROVIDER_QUEUED:
            positions.append(event.queue_position)
            progress.append(event.task.progress)
            provider.done.set()
        if event.final:
            break
    assert (positions, progress) == ([3], [60.0])
