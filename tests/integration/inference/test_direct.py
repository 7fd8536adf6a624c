"""`InferenceService`: direct execution in the slots that leased work uses."""

import asyncio
import base64
import io
from typing import Any

import pytest
from atelier.inference.v1.inference_service_pb2 import DescribeRequest, RunRequest, RunResponse
from atelier.inference.v1.inference_service_pb2_grpc import InferenceServiceStub
from atelier.tasks.v1.generation_pb2 import CreateGenerationTask
from atelier.tasks.v1.image_adjuster_pb2 import CreateImageAdjusterTask
from atelier.tasks.v1.noop_pb2 import CreateNoopTask
from atelier.tasks.v1.task_pb2 import CreateTask
from PIL import Image

from meshkit.errors import ErrorKind, MeshError
from tests.integration.inference.conftest import StartWorker, Worker
from tests.integration.inference.fake_tasks import FakeTasksService


def request(**noop: Any) -> RunRequest:
    return RunRequest(task=CreateTask(origin_instance="test", noop=CreateNoopTask(**noop)))


async def ready(worker: Worker, tasks: FakeTasksService) -> None:
    job = tasks.add()
    await tasks.until(lambda: tasks.completions(job))


async def run(worker: Worker, scopes: tuple[str, ...] = ("read", "write"), **noop: Any) -> list[RunResponse]:
    async with worker.channel(scopes) as channel:
        return [answer async for answer in channel.stub(InferenceServiceStub).Run(request(**noop), timeout=120)]


async def becomes(worker: Worker, busy: int) -> None:
    """Waits until so many slots are in use."""
    async with worker.channel() as channel, asyncio.timeout(60):
        describe = channel.stub(InferenceServiceStub).Describe
        while (await describe(DescribeRequest())).busy_slots != busy:  # noqa: ASYNC110 -- the worker tells nobody
            await asyncio.sleep(0.02)


async def test_a_run_streams_progress_and_ends_with_result_and_files(
    tasks: FakeTasksService, start_worker: StartWorker
) -> None:
    worker = await start_worker()
    answers = await run(worker, steps=5, step_ms=200, payload="hi", result_bytes=12)
    *progress, last = answers
    # Of what a busy machine has not taken yet the newest is told.
    steps = [answer.step for answer in progress]
    assert steps
    assert steps == sorted(set(steps) & {1, 2, 3, 4, 5})
    assert not any(answer.HasField("result") for answer in progress)
    assert last.result.noop.payload == "hi"
    [file] = last.files
    assert (file.name, file.data) == ("result.bin", bytes(12))
    assert last.result.noop.result_path == "result.bin"
    assert not worker.leftovers()


async def test_a_run_is_refused_while_leased_work_has_every_slot(
    tasks: FakeTasksService, start_worker: StartWorker
) -> None:
    worker = await start_worker()
    job = tasks.add(steps=100, step_ms=50)
    await tasks.until(lambda: tasks.progress)
    with pytest.raises(MeshError) as caught:
        await run(worker)
    assert caught.value.kind is ErrorKind.EXHAUSTED
    await tasks.until(lambda: tasks.completions(job))
    assert (await run(worker))[-1].HasField("result")


async def test_leased_work_waits_for_a_slot_that_a_run_has(tasks: FakeTasksService, start_worker: StartWorker) -> None:
    worker = await start_worker()
    await ready(worker, tasks)
    direct = asyncio.create_task(run(worker, steps=100, step_ms=50))
    await becomes(worker, 1)
    job = tasks.add()
    await tasks.until(lambda: tasks.active([job]))
    assert not tasks.completions(job)
    await direct
    await tasks.until(lambda: tasks.completions(job))


async def test_a_client_that_leaves_frees_its_slot_within_a_step(
    tasks: FakeTasksService, start_worker: StartWorker
) -> None:
    worker = await start_worker()
    await ready(worker, tasks)
    async with worker.channel() as channel:
        answers = channel.stub(InferenceServiceStub).Run(request(steps=10_000, step_ms=50), timeout=60)
        await anext(aiter(answers))
        answers.cancel()
    await becomes(worker, 0)
    assert not worker.leftovers()
    assert (await run(worker))[-1].HasField("result")


async def test_a_failure_is_told_as_a_status(tasks: FakeTasksService, start_worker: StartWorker) -> None:
    worker = await start_worker()
    with pytest.raises(MeshError) as caught:
        await run(worker, failures=1)
    assert (caught.value.kind, caught.value.reason) == (ErrorKind.INTERNAL, "TASK_FAILED")
    with pytest.raises(MeshError) as caught:
        await run(worker, fault="exit")
    assert caught.value.kind is ErrorKind.UNAVAILABLE
    assert not worker.leftovers()


async def test_a_run_needs_the_scope_write(tasks: FakeTasksService, start_worker: StartWorker) -> None:
    worker = await start_worker()
    with pytest.raises(MeshError) as caught:
        await run(worker, ("read",))
    assert caught.value.kind is ErrorKind.FORBIDDEN


async def test_a_run_is_validated_as_a_create_is(tasks: FakeTasksService, start_worker: StartWorker) -> None:
    worker = await start_worker()
    with pytest.raises(MeshError) as caught:
        await run(worker, fault="nonsense")
    assert caught.value.kind is ErrorKind.INVALID
    assert [violation.path for violation in caught.value.violations] == ["task.noop.fault"]


async def test_the_worker_describes_itself(tasks: FakeTasksService, start_worker: StartWorker) -> None:
    worker = await start_worker(worker_name="w7", worker_slots=3, worker_queues="inference,training")
    await ready(worker, tasks)
    async with worker.channel() as channel:
        answer = await channel.stub(InferenceServiceStub).Describe(DescribeRequest())
    assert (answer.name, answer.slots, answer.busy_slots, answer.device) == ("w7", 3, 0, "cpu")
    assert (list(answer.task_types), list(answer.queues)) == (["NOOP"], ["inference", "training"])


async def test_models_of_all_families_share_the_budget_and_are_described(
    tasks: FakeTasksService, start_worker: StartWorker
) -> None:
    """The three need 381 MiB: FLUX 15, the upscaler 333, the networks that find subjects 33."""
    worker = await start_worker(
        worker_task_types="GENERATION,IMAGE_ADJUSTER",
        device="cpu",
        torch_threads=1,
        model_budget_bytes=369 << 20,
        step_deadline_seconds=60,
        first_step_deadline_seconds=100,
    )
    shown = io.BytesIO()
    picture = Image.new("RGB", (64, 48), (225, 220, 210))
    picture.paste((180, 40, 50), (20, 10, 40, 30))
    picture.save(shown, "PNG")
    generation = CreateTask(generation=CreateGenerationTask(prompt="a red dress", width=64, height=64, seed=1))
    generation.config.update({"steps": 1})
    adjuster = CreateTask(
        image_adjuster=CreateImageAdjusterTask(
            input_image="data:image/png;base64," + base64.b64encode(shown.getvalue()).decode(),
            mode="pad",
            margin_top=0.3,
        )
    )
    async with worker.channel() as channel:
        stub = channel.stub(InferenceServiceStub)

        async def held_after(task: CreateTask) -> dict[str, str]:
            task.origin_instance = "test"
            answers = [answer async for answer in stub.Run(RunRequest(task=task), timeout=100)]
            assert answers[-1].files[0].data.startswith(b"\x89PNG")
            models = (await stub.Describe(DescribeRequest())).models
            assert sum(model.bytes for model in models) <= 369 << 20
            assert not any(model.pinned for model in models)
            return {model.family: model.name for model in models}

        flux, upscaler, vision = {"flux": "garments"}, {"upscaler": "span"}, {"vision": "mediapipe"}
        assert await held_after(generation) == flux | upscaler
        assert await held_after(adjuster) == flux | vision
        assert await held_after(generation) == flux | upscaler


async def test_a_need_above_the_budget_is_refused_with_its_figures(
    tasks: FakeTasksService, start_worker: StartWorker
) -> None:
    worker = await start_worker(
        worker_task_types="GENERATION", device="cpu", model_budget_bytes=100 << 20, first_step_deadline_seconds=100
    )
    generation = CreateTask(origin_instance="test", generation=CreateGenerationTask(prompt="a", width=64, height=64))
    async with worker.channel() as channel:
        with pytest.raises(MeshError) as caught:
            _ = [answer async for answer in channel.stub(InferenceServiceStub).Run(RunRequest(task=generation))]
    assert caught.value.kind is ErrorKind.UNAVAILABLE
    assert caught.value.message == "The model span needs 333 MiB, and this worker's budget is 100 MiB."
