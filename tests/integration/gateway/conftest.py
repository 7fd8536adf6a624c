"""The gateway as it is deployed: a real HTTP server before a real gRPC server, over sockets."""

import asyncio
import io
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import grpc
import httpx
import pytest
from atelier.tasks.v1 import enums_pb2, task_pb2, tasks_service_pb2, tasks_service_pb2_grpc
from PIL import Image

from meshkit import idempotency
from meshkit.auth import TokenIssuer, TokenVerifier
from meshkit.errors import MeshError, conflict, not_found, unavailable
from meshkit.server import MeshServer
from services.gateway.composition import start
from services.gateway.config import GatewaySettings
from tests.conftest import S3Store

SECRET = "a secret for tests that is long enough"
IMAGES = "/api/v1/storage/images"
_drawn = io.BytesIO()
Image.new("RGB", (8, 8), "red").save(_drawn, "JPEG")
PREVIEW = _drawn.getvalue()
Context = grpc.aio.ServicerContext[Any, Any]


class Tasks(tasks_service_pb2_grpc.TasksServiceServicer):
    """A tasks service that keeps its tasks in a dict: what the gateway speaks to in these tests."""

    def __init__(self) -> None:
        self.tasks: dict[str, task_pb2.Task] = {}
        self.requests: list[Any] = []
        self.metadata: list[dict[str, str]] = []
        self.answers: dict[str, str] = {}
        self.watching = 0
        self.pause = asyncio.Event()
        self.hold = asyncio.Event()
        self.hold.set()
        self.held = asyncio.Event()
        self.after_version: int | None = None
        self.refusal: MeshError | None = None

    def _seen(self, request: Any, context: Context) -> None:
        self.requests.append(request)
        self.metadata.append({str(key): str(value) for key, value in context.invocation_metadata() or ()})

    async def CreateTask(self, request: Any, context: Context) -> Any:
        self._seen(request, context)
        self.held.set()
        await self.hold.wait()
        if self.refusal is not None:
            raise self.refusal
        key = idempotency.current_key()
        if key in self.answers:
            context.set_trailing_metadata((("idempotent-replayed", "true"),))
            return tasks_service_pb2.CreateTaskResponse(task=self.tasks[self.answers[key]])
        task = task_pb2.Task(
            id=str(uuid.uuid4()),
            priority=request.task.priority,
            origin_instance=request.task.origin_instance,
            status=enums_pb2.TASK_STATUS_PENDING,
            version=1,
        )
        task.created_at.GetCurrentTime()
        task.updated_at.CopyFrom(task.created_at)
        if request.task.HasField("config"):
            task.config.CopyFrom(request.task.config)
        detail = request.task.WhichOneof("detail")
        getattr(task, detail).SetInParent()
        if detail == "generation":
            task.generation.prompt = request.task.generation.prompt
            task.generation.width = request.task.generation.width
        self.tasks[task.id] = task
        if key:
            self.answers[key] = task.id
        return tasks_service_pb2.CreateTaskResponse(task=task)

    def _task(self, ident: str) -> task_pb2.Task:
        if ident not in self.tasks:
            raise not_found("Task", ident)
        return self.tasks[ident]

    async def GetTask(self, request: Any, context: Context) -> Any:
        self._seen(request, context)
        return tasks_service_pb2.GetTaskResponse(task=self._task(request.task_id))

    async def ListTasks(self, request: Any, context: Context) -> Any:
        self._seen(request, context)
        return tasks_service_pb2.ListTasksResponse(tasks=list(self.tasks.values())[request.skip :][: request.limit])

    async def ListGenerationTasks(self, request: Any, context: Context) -> Any:
        self._seen(request, context)
        return tasks_service_pb2.ListGenerationTasksResponse(tasks=self.tasks.values())

    async def GetGenerationTask(self, request: Any, context: Context) -> Any:
        self._seen(request, context)
        return tasks_service_pb2.GetGenerationTaskResponse(task=self._task(request.task_id))

    async def UpdateGenerationTask(self, request: Any, context: Context) -> Any:
        self._seen(request, context)
        return tasks_service_pb2.UpdateGenerationTaskResponse(task=self._task(request.task_id))

    async def CancelGenerationTask(self, request: Any, context: Context) -> Any:
        self._seen(request, context)
        return tasks_service_pb2.CancelGenerationTaskResponse(task=self._task(request.task_id))

    async def UpdateTask(self, request: Any, context: Context) -> Any:
        self._seen(request, context)
        return tasks_service_pb2.UpdateTaskResponse(task=self._task(request.task_id))

    async def DeleteTask(self, request: Any, context: Context) -> Any:
        self._seen(request, context)
        raise conflict("The task executes", "TASK_EXECUTING")

    async def CancelTask(self, request: Any, context: Context) -> Any:
        self._seen(request, context)
        raise RuntimeError("a secret of the service")

    async def CleanupTask(self, request: Any, context: Context) -> Any:
        self._seen(request, context)
        return tasks_service_pb2.CleanupTaskResponse(task=self._task(request.task_id), deleted_paths=["a/b.png"])

    async def GetCatalog(self, request: Any, context: Context) -> Any:
        self._seen(request, context)
        types = [enums_pb2.TASK_TYPE_GENERATION, enums_pb2.TASK_TYPE_IMAGE_ADJUSTER]
        return tasks_service_pb2.GetCatalogResponse(task_types=types)

    async def ListTaskAttempts(self, request: Any, context: Context) -> Any:
        self._seen(request, context)
        raise unavailable("The database is not reachable")

    async def WatchTask(self, request: Any, context: Context) -> AsyncIterator[Any]:
        self._seen(request, context)
        task = self._task(request.task_id)
        self.after_version = request.after_version if request.HasField("after_version") else None
        self.watching += 1
        try:
            for version in range((self.after_version or 0) + 1, 4):
                response = tasks_service_pb2.WatchTaskResponse(task=task, step=version, total_steps=3)
                response.task.version = version
                response.preview = PREVIEW
                response.final = version == 3
                yield response
                if self.pause.is_set():
                    await asyncio.Event().wait()
        finally:
            self.watching -= 1


@dataclass
class Mesh:
    """A running gateway and what is behind it."""

    url: str
    tasks: Tasks
    server: MeshServer
    issuer: TokenIssuer
    stopping: asyncio.Event
    stack: AsyncExitStack
    clients: list[httpx.AsyncClient] = field(default_factory=list)

    def token(self, tenant: str = "acme", scopes: tuple[str, ...] = ("read", "write"), ttl: float = 60) -> str:
        return self.issuer.issue("ada", tenant, scopes, ttl)

    def client(self, tenant: str = "acme", scopes: tuple[str, ...] = ("read", "write")) -> httpx.AsyncClient:
        headers = {"authorization": f"Bearer {self.token(tenant, scopes)}"}
        client = httpx.AsyncClient(base_url=self.url, headers=headers, timeout=60)
        self.clients.append(client)
        return client


StartMesh = Callable[..., Any]


@pytest.fixture
async def start_mesh() -> AsyncIterator[StartMesh]:
    """Start a gateway with settings of the test's own."""
    meshes: list[Mesh] = []

    async def start_(**options: Any) -> Mesh:
        stack = AsyncExitStack()
        tasks = Tasks()  # type: ignore[abstract] # what it lacks answers UNIMPLEMENTED, as later methods will
        options.setdefault("image_wait_seconds", 120)  # a busy machine takes its time
        base = GatewaySettings(listen="127.0.0.1:0", auth_secret=SECRET, shutdown_grace_seconds=2, **options)
        server = MeshServer(
            base,
            servicers=[(tasks_service_pb2_grpc.add_TasksServiceServicer_to_server, tasks)],
            verifier=TokenVerifier(secret=SECRET),
        )
        port = await server.start()
        stack.push_async_callback(server.stop, 0)
        settings = base.model_copy(update={"addresses": {**base.addresses, "tasks": f"127.0.0.1:{port}"}})
        running = await start(settings, stack)
        mesh = Mesh(f"http://{running.address}", tasks, server, TokenIssuer(SECRET), running.stopping, stack)
        meshes.append(mesh)
        return mesh

    yield start_
    for mesh in meshes:
        for client in mesh.clients:
            await client.aclose()
        await mesh.stack.aclose()


@pytest.fixture
async def mesh(start_mesh: StartMesh) -> Mesh:
    """A gateway without an object store."""
    result: Mesh = await start_mesh()
    return result


@pytest.fixture
async def stored(start_mesh: StartMesh, s3: S3Store) -> Mesh:
    """A gateway with a real object store, in a bucket of its own."""
    result: Mesh = await start_mesh(**s3_options(s3))
    return result


def s3_options(s3: S3Store) -> dict[str, Any]:
    return {
        "s3_endpoint": s3.endpoint,
        "s3_access_key": s3.access_key,
        "s3_secret_key": s3.secret_key,
        "s3_bucket": s3.bucket(),
    }


def picture(kind: str = "PNG", size: tuple[int, int] = (40, 30), color: str = "red") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, color).save(out, kind)
    return out.getvalue()


async def save(client: httpx.AsyncClient, path: str, data: bytes) -> dict[str, Any]:
    answer = await client.post(f"{IMAGES}/{path}", files={"file": ("x.png", data, "text/html")})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 -- what is waited for is in another task
            await asyncio.sleep(0.01)
