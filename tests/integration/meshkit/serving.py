"""A server of tasks that behaves as a test says, and channels to it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from atelier.tasks.v1 import task_pb2
from atelier.tasks.v1 import tasks_service_pb2 as tasks
from atelier.tasks.v1.tasks_service_pb2_grpc import TasksServiceServicer, add_TasksServiceServicer_to_server

from meshkit.auth import TokenIssuer, TokenVerifier
from meshkit.channel import MeshChannel
from meshkit.config import MeshSettings
from meshkit.errors import MeshError
from meshkit.server import MeshServer

SECRET = "s" * 32
SERVICE = "atelier.tasks.v1.TasksService"
Task = task_pb2.Task


class Servicer(TasksServiceServicer):
    """Does what the test says, and remembers its calls."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.behave: Callable[[Any, Any], Any] = lambda request, _context: tasks.GetTaskResponse(
            task=Task(id=request.task_id)
        )
        self.cancelled = asyncio.Event()

    async def _call(self, request: Any, context: Any) -> Any:
        self.calls.append(request)
        result = self.behave(request, context)
        return await result if asyncio.iscoroutine(result) else result

    GetTask = CreateTask = UpdateTask = CancelTask = ListTasks = _call

    async def WatchTask(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self.calls.append(request)
        try:
            async for item in self.behave(request, context):
                yield item
        finally:
            self.cancelled.set()


class Mesh:
    """A server with a servicer, and channels to it."""

    def __init__(self, **more: Any) -> None:
        self.servicer = Servicer()  # type: ignore[abstract] # the rest stays unserved
        self.settings = MeshSettings(auth_secret=SECRET, max_message_bytes=1024 * 1024, **more)
        self.server = self.make("127.0.0.1:0")

    def make(self, listen: str) -> MeshServer:
        return MeshServer(
            self.settings,
            servicers=[(add_TasksServiceServicer_to_server, self.servicer)],
            verifier=TokenVerifier.from_settings(self.settings),
            listen=listen,
        )

    def channel(self, *scopes: str, tenant: str = "acme", **options: Any) -> MeshChannel:
        token = TokenIssuer(SECRET).issue("alice", tenant, scopes, 60)
        return MeshChannel(self.server.address, lambda: token, **options)


async def failure(awaitable: Awaitable[Any]) -> MeshError:
    with pytest.raises(MeshError) as caught:
        await awaitable
    return caught.value
