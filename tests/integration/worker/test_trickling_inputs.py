"""Pictures that a server sends as slowly as it likes: they hold places for inputs, and nobody's slot."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from atelier.tasks.v1 import enums_pb2, task_pb2, tasks_service_pb2
from atelier.tasks.v1.generation_pb2 import CreateGenerationTask

from meshkit.worker.config import WorkerSettings
from meshkit.worker.handlers import InputRef, Output, TaskContext
from meshkit.worker.host import CallWork, WorkerHost
from tests.integration.tasks.conftest import SECRET, Mesh, StartMesh, until
from tests.integration.worker.test_call_runner import COMPLETED, FAL, PAIR, STORE

PER_TENANT = 2


class Trickle:
    """A server that sends a picture a byte at a time, and never all of it."""

    def __init__(self) -> None:
        self.port = 0
        self.open = 0
        self.most = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        self.open += 1
        self.most = max(self.most, self.open)
        try:
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: image/png\r\ncontent-length: 1000000\r\n\r\n")
            for _ in range(10_000):
                writer.write(b"\x89")
                await writer.drain()
                await asyncio.wait({asyncio.ensure_future(reader.read())}, timeout=0.05)
                if reader.at_eof():
                    return
        except ConnectionError:
            return
        finally:
            self.open -= 1
            writer.close()


@asynccontextmanager
async def trickling() -> AsyncIterator[Trickle]:
    trickle = Trickle()
    server = await asyncio.start_server(trickle.serve, "127.0.0.1", 0)
    trickle.port = server.sockets[0].getsockname()[1]
    async with server:
        yield trickle


class Handler:
    """Asks for the picture that a prompt names, where it names one, and is done with it at once."""

    def inputs(self, spec: task_pb2.CreateTask, task: task_pb2.Task) -> Sequence[InputRef]:
        prompt = spec.generation.prompt
        return [InputRef("reference", prompt, "image")] if prompt.startswith("http") else []

    async def run(self, context: TaskContext) -> Output:
        return Output(task_pb2.TaskResult(), (), 0.0)


@pytest.fixture
async def mesh(start_mesh: StartMesh, tmp_path: Path) -> AsyncIterator[Mesh]:
    """A mesh with one worker of one slot."""
    mesh = await start_mesh(served_providers="LOCAL,FAL_STANDARD")
    async with AsyncExitStack() as stack:
        settings = WorkerSettings(
            tasks_address=mesh.running.address,
            worker_name="caller",
            auth_secret=SECRET,
            data=tmp_path,
            nats_url=mesh.settings.nats_url,
            fetch_allow_private=("127.0.0.0/8",),
            worker_fetches=6,
            worker_fetches_per_tenant=PER_TENANT,
            **{name: getattr(mesh.settings, name) for name in STORE},
        )
        host = WorkerHost.open(settings, ("fal",), stack)
        host.run_calls(CallWork("fal", {PAIR: Handler()}, 1))

        async def healthy(state: bool) -> None:
            assert state

        await host.start(healthy)
        stack.push_async_callback(host.drain, 0.1)
        yield mesh


async def generation(mesh: Mesh, tenant: str, prompt: str) -> str:
    task = task_pb2.CreateTask(
        origin_instance="tests",
        provider_type=FAL,
        generation=CreateGenerationTask(prompt=prompt, fal_app_id="fal-ai/flux/dev"),
    )
    return (await mesh.create(task, tenant)).id


async def test_pictures_that_trickle_keep_no_other_tenant_waiting(mesh: Mesh) -> None:
    async with trickling() as trickle:
        slow = [await generation(mesh, "slow", f"http://127.0.0.1:{trickle.port}/{n}") for n in range(12)]

        async def share_taken() -> bool:
            return trickle.open == PER_TENANT

        await until(share_taken)
        for number in range(5):
            task_id = await generation(mesh, "quick", f"a dress {number}")

            async def done(task_id: str = task_id) -> bool:
                return (await mesh.get(task_id, "quick")).status == COMPLETED

            await until(done)
        assert trickle.most == PER_TENANT
        waiting = [(await mesh.get(task_id, "slow")).status for task_id in slow]
        assert enums_pb2.TASK_STATUS_COMPLETED not in waiting
        assert waiting.count(enums_pb2.TASK_STATUS_PENDING) >= 12 - PER_TENANT - 1, (
            "they wait where others can take them"
        )


async def test_a_tenant_whose_pictures_trickle_gets_the_next_place_when_one_is_given_up(mesh: Mesh) -> None:
    async with trickling() as trickle:
        first = [await generation(mesh, "slow", f"http://127.0.0.1:{trickle.port}/{n}") for n in range(PER_TENANT)]

        async def share_taken() -> bool:
            return trickle.open == PER_TENANT

        await until(share_taken)
        plain = await generation(mesh, "slow", "a dress")
        for task_id in first:
            await mesh.tasks("slow").CancelTask(tasks_service_pb2.CancelTaskRequest(task_id=task_id))

        async def done() -> bool:
            return (await mesh.get(plain, "slow")).status == COMPLETED

        await until(done)
        await until(lambda: _closed(trickle))


async def _closed(trickle: Trickle) -> bool:
    return trickle.open == 0
