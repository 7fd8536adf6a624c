"""The monitoring service with the gateway before it, and processes whose loops it supervises."""

import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from atelier.tasks.v1 import enums_pb2, worker_service_pb2
from atelier.tasks.v1.generation_pb2 import CreateGenerationTask
from atelier.tasks.v1.task_pb2 import CreateTask
from atelier.tasks.v1.tasks_service_pb2 import CreateTaskRequest
from atelier.tasks.v1.tasks_service_pb2_grpc import TasksServiceStub
from atelier.tasks.v1.worker_service_pb2_grpc import WorkerServiceStub

from meshkit.auth import TokenIssuer
from meshkit.bus import Bus
from meshkit.channel import MeshChannel
from meshkit.loops import Loops
from meshkit.supervision import LoopReporter
from services.gateway import composition as gateway
from services.gateway.config import GatewaySettings
from services.monitoring import composition as monitoring
from services.monitoring.config import MonitoringSettings
from services.tasks import composition as tasks
from services.tasks.config import TasksSettings
from tests.conftest import S3Store

SECRET = "tests-only-tests-only-tests-only-tests-only"


@dataclass
class Mesh:
    """A running monitoring service and who talks to it."""

    monitoring: monitoring.MonitoringRuntime
    gateway: str
    stack: AsyncExitStack
    nats_url: str
    issuer: TokenIssuer = field(default_factory=lambda: TokenIssuer(SECRET))

    def http(self, *scopes: str) -> httpx.AsyncClient:
        token = self.issuer.issue("somebody", "acme", scopes or ("read", "operator"), 600)
        client = httpx.AsyncClient(
            base_url=f"{self.gateway}/api/system", headers={"authorization": f"Bearer {token}"}, timeout=60
        )
        self.stack.push_async_callback(client.aclose)
        return client

    async def process(self, loops: Loops, role: str) -> None:
        """Run loops as a process of their own would: with a connection to NATS, and reports."""
        bus = Bus(self.nats_url)
        await bus.connect(60)
        self.stack.push_async_callback(bus.close)
        await self.stack.enter_async_context(loops)
        await self.stack.enter_async_context(LoopReporter(bus, loops, role))


StartMesh = Callable[..., Awaitable[Mesh]]


@pytest.fixture
async def start_mesh(mesh_dsn: str, nats_url: str) -> AsyncIterator[StartMesh]:
    async with AsyncExitStack() as outer:

        async def begin(**settings: Any) -> Mesh:
            shared: dict[str, Any] = {
                "listen": "127.0.0.1:0",
                "auth_secret": SECRET,
                "shutdown_grace_seconds": 0.2,
            }
            stack = await outer.enter_async_context(AsyncExitStack())
            stores = {"database_url": mesh_dsn, "nats_url": nats_url}
            running = await monitoring.start(MonitoringSettings(**(shared | stores | settings)), stack)
            addresses = {"monitoring": running.address, "tasks": settings.get("tasks_address", "")}
            bus = settings.get("nats_url", nats_url)
            front = await gateway.start(GatewaySettings(**shared, addresses=addresses, nats_url=bus), stack)
            return Mesh(running, f"http://{front.address}", stack, bus)

        yield begin


@pytest.fixture
async def mesh(start_mesh: StartMesh) -> Mesh:
    return await start_mesh()


async def start_tasks(stack: AsyncExitStack, s3: S3Store, **settings: Any) -> tasks.TasksRuntime:
    """Start a tasks service that serves what this machine and fal make."""
    shared: dict[str, Any] = {
        "listen": "127.0.0.1:0",
        "s3_endpoint": s3.endpoint,
        "s3_access_key": s3.access_key,
        "s3_secret_key": s3.secret_key,
        "s3_bucket": s3.bucket(),
        "auth_secret": SECRET,
        "public_url": "http://gateway.test",
        "served_providers": ("LOCAL", "FAL_STANDARD"),
        "shutdown_grace_seconds": 0.2,
    }
    return await tasks.start(TasksSettings(**(shared | settings)), stack)


async def open_breaker(runtime: tasks.TasksRuntime, key: str) -> None:
    """Open the breaker of an application of fal."""
    async with runtime.database.transaction() as conn:
        await conn.execute(
            "INSERT INTO provider_gates (provider, key, state, failure_count, opened_at, last_failure_at) "
            "VALUES ('FAL_STANDARD', %s, 'open', 5, now() - interval '10 s', now() - interval '10 s')",
            (key,),
        )


@dataclass
class Whole:
    """A mesh with a tasks service; its workflows service hangs, its training service is away."""

    mesh: Mesh
    tasks: tasks.TasksRuntime

    async def open_breaker(self, key: str) -> None:
        await open_breaker(self.tasks, key)

    async def create_task(self) -> None:
        """Create a task."""
        token = self.mesh.issuer.issue("somebody", "acme", ("write",), 600)
        channel = MeshChannel(self.tasks.address, lambda: token)
        self.mesh.stack.push_async_callback(channel.close)
        task = CreateTask(origin_instance="tests", generation=CreateGenerationTask(prompt="a dune"))
        await channel.stub(TasksServiceStub).CreateTask(CreateTaskRequest(task=task))

    async def worker(self) -> tuple[Any, str]:
        """Open a worker's session; returns a stub and the session."""
        token = self.mesh.issuer.issue("worker", "", ("worker",), 600)
        channel = MeshChannel(self.tasks.address, lambda: token)
        self.mesh.stack.push_async_callback(channel.close)
        stub = channel.stub(WorkerServiceStub)
        pair = worker_service_pb2.ServedPair(
            task_type=enums_pb2.TASK_TYPE_GENERATION, provider_type=enums_pb2.PROVIDER_TYPE_LOCAL
        )
        request = worker_service_pb2.OpenSessionRequest(
            name="w/0", kind="inference", queues=["inference"], slots=1, pairs=[pair]
        )
        return stub, (await stub.OpenSession(request)).session_id


@pytest.fixture
def silent() -> Iterator[str]:
    """An address that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
async def whole(start_mesh: StartMesh, mesh_dsn: str, nats_url: str, s3: S3Store, silent: str) -> AsyncIterator[Whole]:
    async with AsyncExitStack() as stack:
        behind = await start_tasks(
            stack,
            s3,
            database_url=mesh_dsn,
            nats_url=nats_url,
            provider_limits={"FAL_STANDARD/app": {"failure_threshold": 7}},
            lease_ttl_seconds=600,
        )
        mesh = await start_mesh(tasks_address=behind.address, workflows_address=silent, training_address="127.0.0.1:1")
        yield Whole(mesh, behind)
