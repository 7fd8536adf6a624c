import asyncio
from pathlib import Path
from typing import Any, cast

import pytest
from atelier.inference.v1.child_pb2 import ChildJob
from atelier.tasks.v1.task_pb2 import Task
from atelier.training.v1.trainer_service_pb2 import ResumeState, TrainingSpec

from meshkit.errors import not_found
from meshkit.worker.handlers import WorkerUnfit
from meshkit.worker.job_context import JobContext
from meshkit.worker.supervisor import ChildNotStarted
from services.training.trainer.attempt import TrainerTools, TrainingAttempt, _ungrouped
from services.training.trainer.service_calls import AttemptLost
from tests.unit.training.trainer.fakes import FakeStore


class Tools:
    """A store, and nothing that trains."""

    def __init__(self) -> None:
        self.objects = FakeStore()
        self.calls = None

    def process(self) -> Any:
        return Unstarted()


class Unstarted:
    """A child that does not start."""

    async def run(self, job: ChildJob, **_: Any) -> Any:
        raise ChildNotStarted("lacks a package")


def attempt(folder: Path, tools: Tools) -> TrainingAttempt:
    spec = TrainingSpec(tenant="acme", folder="t/", resume=ResumeState(step=3, objects=["t/state/a", "t/state/b"]))
    context = JobContext(ChildJob(job_id="j", task=Task(attempt=2), folder=str(folder)), lambda _: None)
    return TrainingAttempt(context, spec, cast("TrainerTools", tools))


async def test_a_state_is_brought_back_whole(tmp_path: Path) -> None:
    tools = Tools()
    tools.objects.objects = {"t/state/a": b"a", "t/state/b": b"b"}
    one, resume = attempt(tmp_path / "2", tools), tmp_path / "2" / "resume"
    assert await one._found(one._bring_state(resume), resume)
    assert await asyncio.to_thread(lambda: sorted(path.name for path in resume.iterdir())) == ["a", "b"]


async def test_without_a_part_of_its_state_a_training_begins_anew_and_says_so(tmp_path: Path) -> None:
    tools = Tools()
    tools.objects.objects = {"t/state/a": b"a"}
    tools.objects.missing = not_found("object", "t/state/b")
    one, resume = attempt(tmp_path / "2", tools), tmp_path / "2" / "resume"
    assert not await one._found(one._bring_state(resume), resume)
    assert not await asyncio.to_thread(resume.exists)
    assert one._reports._lines == ["The state of an earlier attempt is not in the store any more; it is made anew."]


async def test_a_child_that_does_not_start_is_the_workers_fault_and_not_the_trainings(tmp_path: Path) -> None:
    with pytest.raises(WorkerUnfit) as unfit:
        await attempt(tmp_path, Tools())._run_child()
    assert unfit.value.fault == "lacks a package"


async def test_of_what_parts_of_the_work_raise_the_first_is_raised() -> None:
    async def work() -> None:
        async def refused() -> None:
            raise AttemptLost

        async with asyncio.TaskGroup() as group:
            group.create_task(refused())

    with pytest.raises(AttemptLost):
        await _ungrouped(work())
