"""The worker's composition in the test's process; its child is a real one, its tasks service a fake."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from atelier.tasks.v1.worker_service_pb2_grpc import add_WorkerServiceServicer_to_server

from meshkit import auth, lifecycle
from meshkit.channel import MeshChannel
from meshkit.config import MeshSettings
from meshkit.objects import ObjectStore
from meshkit.server import MeshServer
from services.inference import composition
from services.inference.config import InferenceSettings
from tests.conftest import S3Store
from tests.integration.inference.fake_tasks import TENANT, FakeTasksService

SECRET = "a secret of tests, long enough for HS256"  # pragma: allowlist secret


@dataclass
class Worker:
    tasks: FakeTasksService
    address: str
    data: Path
    stop: asyncio.Event
    ended: asyncio.Task[None]
    objects: ObjectStore

    def child(self) -> psutil.Process:
        [child] = [each for each in psutil.Process().children() if "services.inference.child" in each.cmdline()]
        return child

    def channel(self, scopes: tuple[str, ...] = ("read", "write"), tenant: str = TENANT) -> MeshChannel:
        token = auth.TokenIssuer(SECRET).issue("tester", tenant, scopes, 600)
        return MeshChannel(self.address, lambda: token)

    def leftovers(self) -> list[Path]:
        """What attempts left on the disk."""
        return list((self.data / "attempts").glob("*/*/*"))


StartWorker = Callable[..., Awaitable[Worker]]


@pytest.fixture
async def tasks() -> FakeTasksService:
    return FakeTasksService()


@pytest.fixture
async def start_worker(
    tasks: FakeTasksService, s3: S3Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> AsyncIterator[StartWorker]:
    """Starts a worker of NOOP tasks with the given settings, in this process."""
    async with AsyncExitStack() as stack:
        environment = worker_environment(s3, tmp_path)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        settings = MeshSettings()
        objects = ObjectStore.from_settings(settings)
        stack.push_async_callback(objects.close)
        await objects.ensure_bucket()
        server = await stack.enter_async_context(served(tasks, settings))
        monkeypatch.setenv("ATELIER_TASKS_ADDRESS", server.address)

        async def start(**settings: object) -> Worker:
            for name, value in settings.items():
                monkeypatch.setenv(f"ATELIER_{name.upper()}", str(value))
            port_file = tmp_path / "port"
            port_file.unlink(missing_ok=True)
            monkeypatch.setenv("ATELIER_PORT_FILE", str(port_file))
            stop = asyncio.Event()
            ended = asyncio.create_task(_run(stop))

            async def end() -> None:
                stop.set()
                await ended

            stack.push_async_callback(end)
            await tasks.until(lambda: port_file.exists() or ended.done())
            if ended.done():
                ended.result()
            return Worker(tasks, port_file.read_text().strip(), tmp_path / "data", stop, ended, objects)

        yield start


async def _run(stop: asyncio.Event) -> None:
    async with AsyncExitStack() as stack:
        settings = InferenceSettings()
        running = await composition.start(settings, stack)
        lifecycle.announce(running.address, settings.port_file)
        await stop.wait()


def worker_environment(s3: S3Store, folder: Path) -> dict[str, str]:
    return {
        "ATELIER_AUTH_SECRET": SECRET,
        "ATELIER_S3_ENDPOINT": s3.endpoint,
        "ATELIER_S3_ACCESS_KEY": s3.access_key,
        "ATELIER_S3_SECRET_KEY": s3.secret_key,
        "ATELIER_S3_BUCKET": s3.bucket(),
        "ATELIER_WORKER_TASK_TYPES": "NOOP",
        "ATELIER_DATA": str(folder / "data"),
        "ATELIER_SHUTDOWN_GRACE_SECONDS": "5",
        "ATELIER_STEP_DEADLINE_SECONDS": "2",
        "ATELIER_FIRST_STEP_DEADLINE_SECONDS": "2",
    }


@asynccontextmanager
async def served(tasks: FakeTasksService, settings: MeshSettings) -> AsyncIterator[MeshServer]:
    server = MeshServer(
        settings,
        servicers=[(add_WorkerServiceServicer_to_server, tasks)],
        verifier=auth.TokenVerifier.from_settings(settings),
    )
    await server.start()
    try:
        yield server
    finally:
        await server.stop(0)
