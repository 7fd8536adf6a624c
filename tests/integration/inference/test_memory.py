"""Every type in turn on one worker: the budget holds for all families together, and the process does not grow."""

import io
from typing import Any

import pytest
from atelier.inference.v1.inference_service_pb2 import DescribeRequest, RunRequest
from atelier.inference.v1.inference_service_pb2_grpc import InferenceServiceStub
from atelier.tasks.v1.task_pb2 import CreateTask
from google.protobuf.json_format import ParseDict

from meshkit.catalog import TASK_TYPES
from services.tasks.catalog import TASK_TYPES_WITH_HANDLERS
from tests.e2e.bodies import body, photo
from tests.integration.inference.conftest import StartWorker
from tests.integration.inference.fake_tasks import TENANT, FakeTasksService

# Room for the largest network and little beside it, so that each round loads and unloads.
_BUDGET = 1250 << 20
_SETTLED_ROUND = 3
_ROUNDS = 5


def request(task_type: str, picture: str) -> RunRequest:
    fields: dict[str, Any] = body(task_type, picture)
    del fields["task_type"]
    if config := fields.pop("provider_config", None):
        fields["provider_config"] = {"local": {"rembg_model": config["rembg_model"]}}
    detail = TASK_TYPES[task_type].detail
    own = CreateTask.DESCRIPTOR.fields_by_name[detail].message_type
    assert own is not None
    inner = {name: fields.pop(name) for name in list(fields) if name in own.fields_by_name}
    return RunRequest(task=ParseDict({**fields, detail: inner}, CreateTask()))


@pytest.mark.long
@pytest.mark.timeout(1200)
async def test_types_in_turn_stay_within_the_budget_and_give_memory_back(
    tasks: FakeTasksService, start_worker: StartWorker
) -> None:
    worker = await start_worker(
        worker_task_types=",".join(TASK_TYPES_WITH_HANDLERS),
        device="cpu",
        torch_threads=1,
        model_budget_bytes=_BUDGET,
        step_deadline_seconds=120,
        first_step_deadline_seconds=300,
    )
    content = io.BytesIO()
    photo(128).save(content, "PNG")
    await worker.objects.put(TENANT, "photo.png", content.getvalue(), "image/png")
    families: set[str] = set()
    levels: list[int] = []
    async with worker.channel() as channel:
        stub = channel.stub(InferenceServiceStub)
        for _ in range(_ROUNDS):
            for task_type in TASK_TYPES_WITH_HANDLERS:
                answers = [answer async for answer in stub.Run(request(task_type, "photo.png"), timeout=300)]
                assert answers[-1].HasField("result"), task_type
                models = (await stub.Describe(DescribeRequest())).models
                assert sum(model.bytes for model in models) <= _BUDGET, task_type
                assert not any(model.pinned for model in models), task_type
                families |= {model.family for model in models}
            levels.append(worker.child().memory_info().rss)
    assert {"flux", "upscaler", "vision", "cutout"} <= families
    assert levels[-1] < 1.1 * levels[_SETTLED_ROUND - 1], [level >> 20 for level in levels]
