"""A worker that calls providers, beside its device or without one."""

import socket
import sys
import types
import uuid
from collections.abc import Sequence

import httpx
import pytest
from atelier.tasks.v1.enums_pb2 import PROVIDER_TYPE_FAL_STANDARD, PROVIDER_TYPE_LOCAL, TASK_TYPE_NOOP
from atelier.tasks.v1.noop_pb2 import CreateNoopTask, NoopTaskPublic
from atelier.tasks.v1.task_pb2 import CreateTask, Task, TaskResult
from atelier.tasks.v1.worker_service_pb2 import JOB_KIND_TASK, ServedPair

from meshkit.worker.handlers import InputRef, Output, TaskContext
from services.inference import providers
from tests.integration.inference.conftest import StartWorker
from tests.integration.inference.fake_tasks import FakeTasksService


class Handler:
    def inputs(self, spec: CreateTask, task: Task) -> Sequence[InputRef]:
        return ()

    async def run(self, context: TaskContext) -> Output:
        return Output(TaskResult(noop=NoopTaskPublic(payload=f"called: {context.spec.noop.payload}")), (), 0.0)


@pytest.fixture(autouse=True)
def provider(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("throwaway_provider")
    module.handlers = lambda kit: {TASK_TYPE_NOOP: Handler()}  # type: ignore[attr-defined] # a module made here
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(providers._MODULES, "FAL_STANDARD", module.__name__)


def pair(provider: int) -> ServedPair:
    return ServedPair(task_type=TASK_TYPE_NOOP, provider_type=provider, job_kind=JOB_KIND_TASK)  # type: ignore[arg-type] # one of two numbers


async def test_the_device_and_a_queue_of_calls_have_a_session_each(
    tasks: FakeTasksService, start_worker: StartWorker
) -> None:
    await start_worker(worker_name="w", worker_providers="LOCAL,FAL_STANDARD", worker_slots=2, worker_calls=9)
    await tasks.until(lambda: len(tasks.opened) == 2)
    opened = {request.name: request for request in tasks.opened}
    assert list(opened["w"].pairs) == [pair(PROVIDER_TYPE_LOCAL)]
    assert list(opened["w/fal"].pairs) == [pair(PROVIDER_TYPE_FAL_STANDARD)]
    assert [(list(each.queues), each.slots) for each in (opened["w"], opened["w/fal"])] == [
        (["inference"], 2),
        (["fal"], 9),
    ]


async def test_a_worker_without_a_device_has_no_child(tasks: FakeTasksService, start_worker: StartWorker) -> None:
    worker = await start_worker(worker_providers="FAL_STANDARD")
    spec = CreateTask(
        origin_instance="test", provider_type=PROVIDER_TYPE_FAL_STANDARD, noop=CreateNoopTask(payload="hello")
    )
    job = tasks.add(spec=spec)
    await tasks.until(lambda: tasks.completions(job))
    assert tasks.completions(job)[0].result.noop.payload == "called: hello"
    with pytest.raises(ValueError, match="not enough values"):
        worker.child()


async def test_a_worker_with_a_public_address_takes_webhooks_of_fal(
    tasks: FakeTasksService, start_worker: StartWorker
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        door = f"127.0.0.1:{free.getsockname()[1]}"
    await start_worker(
        worker_providers="FAL_STANDARD",
        fal_key="k",
        fal_webhook_url="https://atelier.example",
        fal_webhook_listen=door,
    )
    async with httpx.AsyncClient() as client:
        assert (await client.post(f"http://{door}/webhooks/fal/{uuid.uuid4()}", content=b"{}")).status_code == 400
