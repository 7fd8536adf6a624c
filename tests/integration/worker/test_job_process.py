"""A long job in a process of its own: what it says, how it is paused, cancelled and lost."""

import asyncio
import sys
from pathlib import Path

import psutil
import pytest
from atelier.inference.v1.child_pb2 import ChildJob, ChildMessage
from atelier.tasks.v1.enums_pb2 import ERROR_CATEGORY_RESOURCE, ERROR_CATEGORY_TIMEOUT

from meshkit.worker.job_process import JobProcess
from meshkit.worker.supervisor import ChildLimits, ChildLost, ChildNotStarted

COMMAND = [sys.executable, "-m", "tests.unit.worker.long_child"]


class Hearer:
    """Takes messages; an event tells of the first of a kind."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, str]] = []
        self.first: dict[str, asyncio.Event] = {}

    def has(self, kind: str) -> asyncio.Event:
        return self.first.setdefault(kind, asyncio.Event())

    async def __call__(self, message: ChildMessage) -> None:
        self.messages.append((message.kind, message.text))
        self.has(message.kind).set()


def process(command: list[str] | None = None, **limits: float) -> JobProcess:
    return JobProcess(
        command or COMMAND,
        limits=ChildLimits(memory_bytes=1 << 30, sample_seconds=0.05, **limits),
        stop_seconds=0.3,
    )


async def test_all_that_a_job_says_is_taken_in_order_before_its_end() -> None:
    hearer, steps = Hearer(), []
    done = await process().run(
        ChildJob(job_id="short"), on_progress=lambda report: steps.append(report.step), on_message=hearer
    )
    assert list(done.output.errors) == ["made"]
    assert hearer.messages == [("step", "1"), ("step", "2"), ("step", "3")]
    assert steps


async def test_a_job_hears_what_it_is_told_and_stops_where_another_goes_on() -> None:
    child, hearer = process(), Hearer()
    run = asyncio.create_task(child.run(ChildJob(job_id="long"), on_message=hearer))
    await hearer.has("step").wait()
    child.say("sample", "a red dress")
    await hearer.has("heard").wait()
    assert ("heard", "a red dress") in hearer.messages
    child.pause()
    done = await run
    assert done.HasField("cancelled")
    assert hearer.messages[-1][0] == "state"
    assert child.pid is None


async def test_a_pause_that_comes_before_the_child_is_ready_is_heard() -> None:
    child, hearer = process(), Hearer()
    run = asyncio.create_task(child.run(ChildJob(job_id="long"), on_message=hearer))
    await asyncio.sleep(0)
    child.pause()
    assert (await run).HasField("cancelled")
    assert hearer.messages[-1][0] == "state"


@pytest.mark.parametrize("job_id", ["long", "stuck"])
async def test_a_run_that_is_cancelled_leaves_no_process(job_id: str) -> None:
    child, hearer = process(), Hearer()
    run = asyncio.create_task(child.run(ChildJob(job_id=job_id), on_message=hearer))
    await hearer.has("step").wait()
    pid = child.pid
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert pid is not None
    assert not psutil.pid_exists(pid)


async def test_a_child_that_dies_or_is_silent_for_too_long_is_lost_and_not_started_again() -> None:
    causes: list[str] = []
    for job_id, category, seconds in (("dies", ERROR_CATEGORY_RESOURCE, 60), ("stuck", ERROR_CATEGORY_TIMEOUT, 0.3)):
        limits = ChildLimits(1 << 30, sample_seconds=0.05, first_step_seconds=seconds, step_seconds=seconds)
        child = JobProcess(COMMAND, limits=limits, on_lost=causes.append, stop_seconds=0.3)
        with pytest.raises(ChildLost) as lost:
            await child.run(ChildJob(job_id=job_id), on_message=Hearer())
        assert lost.value.category == category
        assert child.pid is None
    assert causes == ["died", "deadline"]


async def test_a_child_that_does_not_start_is_told() -> None:
    with pytest.raises(ChildLost, match="did not start"):
        await process(["false"]).run(ChildJob(), on_message=Hearer())


async def test_an_error_in_what_takes_the_messages_ends_the_job() -> None:
    async def refuse(message: ChildMessage) -> None:
        raise ValueError(message.text)

    child = process()
    with pytest.raises(ValueError, match="1"):
        await child.run(ChildJob(job_id="long"), on_message=refuse)
    assert child.pid is None


async def test_a_child_that_does_not_start_says_why_and_a_probe_tells_when_it_does(tmp_path: Path) -> None:
    package = tmp_path / "package"
    lacking = (
        "import pathlib, runpy, sys\n"
        f"pathlib.Path({str(package)!r}).exists() or __import__('no_such_package')\n"
        "runpy.run_module('tests.unit.worker.long_child', run_name='__main__')\n"
    )
    command = [sys.executable, "-c", lacking]
    with pytest.raises(ChildNotStarted) as lost:
        await process(command).run(ChildJob(job_id="short"), on_message=Hearer())
    assert lost.value.fault.endswith("ModuleNotFoundError: No module named 'no_such_package'")
    assert await process(command).probe() == lost.value.fault
    package.touch()
    assert not await process(command).probe()
