"""Messages that are larger than a side takes."""

from atelier.tasks.v1 import task_pb2
from atelier.tasks.v1 import tasks_service_pb2 as tasks
from atelier.tasks.v1.generation_pb2 import CreateGenerationTask
from atelier.tasks.v1.task_pb2 import Task

from meshkit.client import TasksClient
from meshkit.errors import ErrorKind
from tests.integration.meshkit.serving import Mesh, failure

ID = "00000000-0000-4000-8000-000000000000"


async def test_messages_beyond_the_limit_are_too_large(mesh: Mesh) -> None:
    mesh.servicer.behave = lambda _r, _c: tasks.GetTaskResponse(task=Task(origin_instance="x" * 2_000_000))
    async with mesh.channel("read", "write") as channel:
        assert (await failure(TasksClient(channel).get(ID))).kind in {ErrorKind.TOO_LARGE, ErrorKind.INTERNAL}
        large = task_pb2.CreateTask(origin_instance="i", generation=CreateGenerationTask(prompt="x" * 2_000_000))
        assert (await failure(TasksClient(channel).create(large))).kind is ErrorKind.TOO_LARGE


async def test_a_request_beyond_its_own_limit_is_refused_before_anything_looks_at_it() -> None:
    mesh = Mesh(max_request_bytes=100_000)
    await mesh.server.start()
    large = task_pb2.CreateTask(origin_instance="i", generation=CreateGenerationTask(prompt="x" * 200_000))
    for scopes in (("read", "write"), ()):
        async with mesh.channel(*scopes) as channel:
            assert (await failure(TasksClient(channel).create(large))).kind is ErrorKind.TOO_LARGE
    async with mesh.channel("read") as channel:
        mesh.servicer.behave = lambda _r, _c: tasks.GetTaskResponse(task=Task(origin_instance="x" * 200_000))
        assert len((await TasksClient(channel).get(ID)).origin_instance) == 200_000, "an answer may be larger"
    assert len(mesh.servicer.calls) == 1
    await mesh.server.stop(0)
