"""Tasks done by calls to another service: through the real tasks service, the real store, and HTTP."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from atelier.tasks.v1 import enums_pb2, task_pb2, tasks_service_pb2
from atelier.tasks.v1.generation_pb2 import CreateGenerationTask, GenerationTaskPublic

from meshkit.objects import ObjectStore
from meshkit.worker.config import WorkerSettings
from meshkit.worker.handlers import InputRef, Output, OutputFile, TaskContext, TaskFailed
from meshkit.worker.host import CallWork, WorkerHost
from meshkit.worker.pairs import Pair
from tests.integration.tasks.conftest import SECRET, Mesh, StartMesh, outcomes, until

FAL = enums_pb2.PROVIDER_TYPE_FAL_STANDARD
PAIR = Pair(enums_pb2.TASK_TYPE_GENERATION, FAL)
COMPLETED, FAILED = enums_pb2.TASK_STATUS_COMPLETED, enums_pb2.TASK_STATUS_FAILED


@dataclass
class Provider:
    """Somebody else's service: answers a POST with its prompt, once it is let go."""

    port: int = 0
    go: asyncio.Event = field(default_factory=asyncio.Event)
    waiting: int = 0
    most: int = 0
    left: int = 0
    refusals: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(head.partition("content-length:")[2].partition("\r\n")[0])
        prompt = json.loads(await reader.readexactly(length))["prompt"]
        self.waiting += 1
        self.most = max(self.most, self.waiting)
        going, gone = asyncio.ensure_future(self.go.wait()), asyncio.ensure_future(reader.read())
        try:
            await asyncio.wait({going, gone}, return_when=asyncio.FIRST_COMPLETED)
            if gone.done():
                self.left += 1
                return
            body, status = f"picture of {prompt}".encode(), b"200 OK"
            if self.refusals:
                self.refusals -= 1
                body, status = b"", b"503 Busy"
            answer = b"HTTP/1.1 %s\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%s" % (status, len(body), body)
            writer.write(answer)
            await writer.drain()
        finally:
            self.waiting -= 1
            for each in (going, gone):
                each.cancel()
            writer.close()


class Handler:
    """A provider's handler as short as one can be."""

    def __init__(self, provider: Provider) -> None:
        self._url = f"http://127.0.0.1:{provider.port}/generate"

    def inputs(self, spec: task_pb2.CreateTask, task: task_pb2.Task) -> Sequence[InputRef]:
        return ()

    async def run(self, context: TaskContext) -> Output:
        context.progress(1, 2)
        async with httpx.AsyncClient(timeout=30, trust_env=False) as client:
            response = await client.post(self._url, json={"prompt": context.spec.generation.prompt})
        if response.status_code != httpx.codes.OK:
            raise TaskFailed("The provider is busy.", enums_pb2.ERROR_CATEGORY_PROVIDER, retryable=True)
        (context.folder / "image.png").write_bytes(response.content)
        return Output(
            task_pb2.TaskResult(generation=GenerationTaskPublic(seed=7)),
            (OutputFile("image.png", "image/png", "result_image_path"),),
            0.0,
        )


@asynccontextmanager
async def served() -> AsyncIterator[Provider]:
    provider = Provider()
    server = await asyncio.start_server(provider.serve, "127.0.0.1", 0)
    provider.port = server.sockets[0].getsockname()[1]
    async with server:
        yield provider


@pytest.fixture
async def provider() -> AsyncIterator[Provider]:
    async with served() as provider:
        yield provider


@pytest.fixture
async def mesh(start_mesh: StartMesh) -> Mesh:
    return await start_mesh(served_providers="LOCAL,FAL_STANDARD")


StartWorker = Callable[..., Awaitable[WorkerHost]]


@pytest.fixture
async def start_worker(mesh: Mesh, provider: Provider, tmp_path: Path) -> AsyncIterator[StartWorker]:
    async with AsyncExitStack() as stack:

        async def start(slots: int = 2, other: Provider | None = None) -> WorkerHost:
            service = mesh.settings
            settings = WorkerSettings(
                tasks_address=mesh.running.address,
                worker_name="caller",
                auth_secret=SECRET,
                data=tmp_path,
                nats_url=service.nats_url,
                **{name: getattr(service, name) for name in STORE},
            )
            host = WorkerHost.open(settings, ("fal", "fashn"), stack)
            host.run_calls(CallWork("fal", {PAIR: Handler(provider)}, slots))
            if other is not None:
                host.run_calls(CallWork("fashn", {PAIR: Handler(other)}, slots))

            async def healthy(state: bool) -> None:
                assert state

            await host.start(healthy)
            stack.push_async_callback(host.drain, 5.0)
            return host

        yield start


STORE = ("s3_endpoint", "s3_access_key", "s3_secret_key", "s3_bucket")


async def generation(mesh: Mesh, prompt: str, queue: str | None = None) -> str:
    task = task_pb2.CreateTask(
        origin_instance="tests",
        provider_type=FAL,
        queue_name=queue,
        generation=CreateGenerationTask(prompt=prompt, fal_app_id="fal-ai/flux/dev"),
    )
    return (await mesh.create(task)).id


async def ended(mesh: Mesh, task_id: str) -> task_pb2.Task:
    async def over() -> bool:
        return (await mesh.get(task_id)).status in (COMPLETED, FAILED, enums_pb2.TASK_STATUS_CANCELLED)

    await until(over, 60)
    return await mesh.get(task_id)


async def calls(provider: Provider, count: int) -> None:
    async def there() -> bool:
        return provider.waiting == count

    await until(there)


async def test_a_task_is_done_by_a_call_and_its_file_stored(
    mesh: Mesh, provider: Provider, start_worker: StartWorker, tmp_path: Path
) -> None:
    await start_worker()
    task_id = await generation(mesh, "a dress")
    await calls(provider, 1)

    async def half() -> bool:
        return (await mesh.get(task_id)).progress == 50.0

    await until(half)
    provider.go.set()
    task = await ended(mesh, task_id)
    assert task.status == COMPLETED
    assert task.generation.result_image_path == f"generations/{task_id}/1/image.png"
    objects = ObjectStore.from_settings(mesh.settings)
    try:
        assert await objects.get("acme", task.generation.result_image_path) == b"picture of a dress"
    finally:
        await objects.close()

    async def clean() -> bool:
        return not list((tmp_path / "attempts").glob("*/*"))

    await until(clean)


async def test_a_queue_has_as_many_calls_under_way_as_it_has_slots(
    mesh: Mesh, provider: Provider, start_worker: StartWorker
) -> None:
    await start_worker(slots=3)
    tasks = [await generation(mesh, str(number)) for number in range(8)]
    await calls(provider, 3)
    provider.go.set()
    assert {(await ended(mesh, task_id)).status for task_id in tasks} == {COMPLETED}
    assert provider.most == 3


async def test_slow_calls_of_one_queue_take_no_slots_of_another(
    mesh: Mesh, provider: Provider, start_worker: StartWorker
) -> None:
    async with served() as quick:
        quick.go.set()
        await start_worker(slots=1, other=quick)
        slow = [await generation(mesh, "a dress") for _ in range(2)]
        await calls(provider, 1)
        done = [await generation(mesh, str(number), "fashn") for number in range(3)]
        assert {(await ended(mesh, task_id)).status for task_id in done} == {COMPLETED}
        assert provider.waiting == 1
        provider.go.set()
        assert {(await ended(mesh, task_id)).status for task_id in slow} == {COMPLETED}


async def test_a_cancelled_task_hangs_up(mesh: Mesh, provider: Provider, start_worker: StartWorker) -> None:
    await start_worker()
    task_id = await generation(mesh, "a dress")
    await calls(provider, 1)
    await mesh.tasks().CancelTask(tasks_service_pb2.CancelTaskRequest(task_id=task_id))
    await calls(provider, 0)
    assert provider.left == 1
    provider.go.set()
    following = await generation(mesh, "a coat")
    assert (await ended(mesh, following)).status == COMPLETED


async def test_a_call_past_its_tasks_time_limit_is_hung_up_and_fails_the_attempt(
    mesh: Mesh, provider: Provider, start_worker: StartWorker
) -> None:
    task_id = await generation(mesh, "a dress")
    await mesh.execute("UPDATE tasks SET timeout_seconds = 4, retry_count = 100 WHERE id = %s", task_id)
    await start_worker()
    await calls(provider, 1)
    task = await ended(mesh, task_id)
    assert (task.status, task.error_category) == (FAILED, enums_pb2.ERROR_CATEGORY_TIMEOUT)
    await calls(provider, 0)
    assert provider.left == 1


async def test_a_provider_that_is_busy_costs_an_attempt_and_is_asked_again(
    mesh: Mesh, provider: Provider, start_worker: StartWorker
) -> None:
    provider.refusals = 1
    provider.go.set()
    await start_worker()
    task_id = await generation(mesh, "a dress")

    async def retried() -> bool:
        await mesh.running.maintenance.promote()
        return bool((await mesh.get(task_id)).status == COMPLETED)

    await until(retried, 60)
    assert await outcomes(mesh, task_id) == ["FAILED", "COMPLETED"]


async def test_a_drain_lets_a_call_end(mesh: Mesh, provider: Provider, start_worker: StartWorker) -> None:
    host = await start_worker(slots=1)
    running, waiting = await generation(mesh, "a dress"), await generation(mesh, "a coat")
    await calls(provider, 1)
    draining = asyncio.create_task(host.drain(60))
    await asyncio.sleep(0.1)
    provider.go.set()
    await draining
    assert (await ended(mesh, running)).status == COMPLETED
    assert (await mesh.get(waiting)).status == enums_pb2.TASK_STATUS_PENDING
