import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from atelier.inference.v1.child_pb2 import ChildJob, ChildProgress
from atelier.tasks.v1.enums_pb2 import (
    ERROR_CATEGORY_INTERNAL,
    ERROR_CATEGORY_PROVIDER,
    PROVIDER_TYPE_FAL_STANDARD,
    TASK_TYPE_NOOP,
)
from atelier.tasks.v1.noop_pb2 import NoopTaskPublic
from atelier.tasks.v1.task_pb2 import CreateTask, Task, TaskResult

from meshkit import tracing
from meshkit.worker.call_runner import CallRunner
from meshkit.worker.handlers import (
    InputRef,
    Output,
    OutputFile,
    PausableContext,
    TaskCancelled,
    TaskContext,
    TaskFailed,
    WorkerUnfit,
)
from meshkit.worker.pacing import Pauses
from meshkit.worker.pairs import Pair
from meshkit.worker.runner import Job, Withdrawn

PAIR = Pair(TASK_TYPE_NOOP, PROVIDER_TYPE_FAL_STANDARD)


class Handler:
    """Awaits what the test gives it, and counts who is inside."""

    def __init__(self, body: Callable[[Any], Awaitable[Output]]) -> None:
        self._body = body
        self.inside = 0
        self.most = 0
        self.cancelled = 0

    def inputs(self, spec: CreateTask, task: Task) -> Sequence[InputRef]:
        return ()

    async def run(self, context: TaskContext) -> Output:
        self.inside += 1
        self.most = max(self.most, self.inside)
        try:
            return await self._body(context)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.inside -= 1


class Gate:
    """Where calls wait until the test lets them through."""

    def __init__(self) -> None:
        self.open = asyncio.Event()

    async def __call__(self, context: TaskContext) -> Output:
        await self.open.wait()
        return output(context.job_id)


def output(payload: str) -> Output:
    return Output(TaskResult(noop=NoopTaskPublic(payload=payload)), (), 0.0)


def job(name: str = "j", folder: Path = Path("/nowhere")) -> Job:
    return Job(PAIR, None, ChildJob(job_id=name, folder=str(folder)), lambda _: None)


def runner(handler: Handler, slots: int = 2, grace: float = 5.0) -> CallRunner:
    return CallRunner({PAIR: handler}, slots=slots, room=asyncio.Event(), grace_seconds=grace)


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_calls_run_beside_each_other_in_as_many_slots_as_there_are() -> None:
    gate = Gate()
    handler = Handler(gate)
    work = runner(handler, slots=3)
    ends = [asyncio.create_task(work.execute(job(str(number)))) for number in range(8)]
    await settle()
    assert (handler.inside, work.busy) == (3, 3)
    gate.open.set()
    done = await asyncio.gather(*ends)
    assert [each.output.result.noop.payload for each in done] == [str(number) for number in range(8)]
    assert handler.most == 3
    assert work.busy == 0


async def test_a_free_slot_is_told() -> None:
    room, gate = asyncio.Event(), Gate()
    work = CallRunner({PAIR: Handler(gate)}, slots=1, room=room)
    end = asyncio.create_task(work.execute(job()))
    await settle()
    assert not room.is_set()
    gate.open.set()
    await end
    assert room.is_set()


async def test_a_call_that_waits_is_withdrawn_at_once() -> None:
    handler = Handler(Gate())
    work = runner(handler, slots=1)
    running, waiting = job("running"), job("waiting")
    ends = [asyncio.create_task(work.execute(each)) for each in (running, waiting)]
    await settle()
    work.withdraw(waiting)
    with pytest.raises(Withdrawn):
        await ends[1]
    assert handler.inside == 1
    ends[0].cancel()
    await settle()


async def test_a_call_that_runs_is_cancelled_in_its_handler() -> None:
    handler = Handler(Gate())
    work = runner(handler)
    running = job()
    end = asyncio.create_task(work.execute(running))
    await settle()
    work.withdraw(running)
    assert (await end).WhichOneof("outcome") == "cancelled"
    assert (handler.cancelled, work.busy) == (1, 0)


async def test_a_call_that_is_withdrawn_before_its_first_step_ends_too() -> None:
    handler = Handler(Gate())
    work = runner(handler)
    running = job()
    end = asyncio.create_task(work.execute(running))
    await asyncio.sleep(0)
    work.withdraw(running)
    assert (await end).WhichOneof("outcome") == "cancelled"
    assert work.busy == 0


async def test_a_result_that_is_there_at_the_cancel_counts() -> None:
    async def finish(context: TaskContext) -> Output:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return output("made in time")
        raise AssertionError

    work = runner(Handler(finish))
    running = job()
    end = asyncio.create_task(work.execute(running))
    await settle()
    work.withdraw(running)
    assert (await end).output.result.noop.payload == "made in time"


async def test_a_handler_that_ignores_the_cancel_loses_its_attempt_and_keeps_its_slot_while_it_lives() -> None:
    let_go = asyncio.Event()

    async def stubborn(context: TaskContext) -> Output:
        while not let_go.is_set():
            try:
                await let_go.wait()
            except asyncio.CancelledError:
                continue
        return output("late")

    work = runner(Handler(stubborn), slots=1, grace=0.02)
    running = job()
    end = asyncio.create_task(work.execute(running))
    await settle()
    work.withdraw(running)
    assert (await asyncio.wait_for(end, 60)).WhichOneof("outcome") == "cancelled"
    assert work.busy == 1
    let_go.set()
    async with asyncio.timeout(60):
        while work.busy:  # noqa: ASYNC110 -- the runner tells of room before it, and of nothing else
            await asyncio.sleep(0.01)


async def test_a_caller_that_is_cancelled_takes_its_call_with_it() -> None:
    handler = Handler(Gate())
    work = runner(handler)
    end = asyncio.create_task(work.execute(job()))
    await settle()
    end.cancel()
    await settle()
    assert (handler.cancelled, work.busy) == (1, 0)


@pytest.mark.parametrize(
    ("error", "category", "retryable"),
    [
        (TaskFailed("The provider is full.", ERROR_CATEGORY_PROVIDER, retryable=True), ERROR_CATEGORY_PROVIDER, True),
        (ZeroDivisionError("secret text"), ERROR_CATEGORY_INTERNAL, True),
    ],
)
async def test_an_error_ends_its_own_call_without_a_librarys_text(
    error: Exception, category: int, retryable: bool
) -> None:
    async def fail(context: TaskContext) -> Output:
        raise error

    done = await runner(Handler(fail)).execute(job())
    assert (done.failure.category, done.failure.retryable) == (category, retryable)
    assert "secret" not in done.failure.message


async def test_a_pair_without_a_handler_is_a_fault_of_the_mesh() -> None:
    work = CallRunner({}, slots=1, room=asyncio.Event())
    assert (await work.execute(job())).failure.category == ERROR_CATEGORY_INTERNAL


async def test_a_handler_reports_progress_and_writes_files_into_the_attempts_folder(tmp_path: Path) -> None:
    async def write(context: TaskContext) -> Output:
        context.progress(1, 2)
        (context.folder / "a.txt").write_text("made")
        return Output(TaskResult(noop=NoopTaskPublic()), (OutputFile("a.txt", "text/plain", "result_path"),), 0.0)

    seen: list[ChildProgress] = []
    one = Job(PAIR, None, ChildJob(job_id="j", folder=str(tmp_path / "1")), seen.append)
    done = await runner(Handler(write)).execute(one)
    assert [(report.step, report.total) for report in seen] == [(1, 2)]
    assert (tmp_path / "1" / "a.txt").read_text() == "made"
    assert [(file.name, file.field) for file in done.output.files] == [("a.txt", "result_path")]


async def test_each_call_bears_the_trace_of_its_own_attempt() -> None:
    gate = Gate()
    seen: list[str] = []

    async def note(context: TaskContext) -> Output:
        trace = tracing.current()
        assert trace is not None
        seen.append(trace.trace_id)
        return await gate(context)

    work = runner(Handler(note), slots=1)
    traces = [tracing.new() for _ in range(3)]

    async def attempt(trace: tracing.Trace) -> None:
        tracing.use(trace)
        await work.execute(job())

    ends = [asyncio.create_task(attempt(trace)) for trace in traces]
    gate.open.set()
    await asyncio.gather(*ends)
    assert seen == [trace.trace_id for trace in traces]


async def test_close_cancels_what_still_runs() -> None:
    handler = Handler(Gate())
    work = runner(handler)
    end = asyncio.create_task(work.execute(job()))
    await settle()
    await work.close()
    assert handler.cancelled == 1
    assert (await end).WhichOneof("outcome") == "cancelled"


async def test_a_job_that_runs_is_asked_to_stop_where_another_goes_on() -> None:
    asked = asyncio.Event()

    async def body(context: PausableContext) -> Output:
        context.on_pause(asked.set)
        await asked.wait()
        raise TaskCancelled

    work = CallRunner({PAIR: Handler(body)}, slots=1, room=asyncio.Event(), pausable=True)
    runs, waits = job("runs"), job("waits")
    ends = [asyncio.create_task(work.execute(one)) for one in (runs, waits)]
    await settle()
    assert work.pause(runs)
    assert not work.pause(waits)
    assert (await ends[0]).HasField("cancelled")
    assert not work.pause(runs)
    work.withdraw(waits)
    await asyncio.gather(*ends, return_exceptions=True)


async def test_a_call_of_a_provider_is_not_asked_to_stop() -> None:
    gate = Gate()
    work, call = runner(Handler(gate)), job()
    end = asyncio.create_task(work.execute(call))
    await settle()
    assert not work.pause(call)
    gate.open.set()
    assert (await end).output.result.noop.payload == "j"


async def test_a_worker_that_cannot_do_its_work_takes_none_until_its_probe_says_that_it_can() -> None:
    faults, slept, changes = ["lacks a package", ""], list[float](), list[tuple[bool, str]]()
    waits = asyncio.Event()

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        await waits.wait()

    async def probe() -> str:
        return faults.pop(0)

    async def unfit(_: TaskContext) -> Output:
        raise WorkerUnfit("lacks a package")

    room = asyncio.Event()
    calls = CallRunner(
        {PAIR: Handler(unfit)},
        slots=1,
        room=room,
        probe=probe,
        on_change=lambda: changes.append((calls.healthy, calls.fault)),
        pauses=Pauses(sleep=sleep),
    )
    assert calls.ready
    with pytest.raises(WorkerUnfit):
        await calls.execute(job())
    assert not calls.ready
    assert changes == [(False, "lacks a package")]
    room.clear()
    waits.set()
    await room.wait()
    assert len(slept) == 2, "it was asked after each wait"
    assert calls.ready
    assert changes[-1] == (True, "")
    await calls.close()
