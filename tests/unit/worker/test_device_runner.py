import asyncio
from collections.abc import Callable, Sequence
from typing import cast
from uuid import uuid4

import pytest
from atelier.inference.v1.child_pb2 import ChildDone, ChildHello, ChildJob, ChildOutput, ChildProgress, ChildResident
from atelier.inference.v1.inference_service_pb2 import ResidentModel
from atelier.tasks.v1.enums_pb2 import ERROR_CATEGORY_RESOURCE, ERROR_CATEGORY_TIMEOUT, TASK_TYPE_NOOP
from atelier.tasks.v1.worker_service_pb2 import HeartbeatRequest

from meshkit.errors import ErrorKind, MeshError
from meshkit.validation import check
from meshkit.wire import WireError
from meshkit.worker.device_runner import DeviceRunner
from meshkit.worker.pairs import Pair
from meshkit.worker.runner import Job, Withdrawn
from meshkit.worker.supervisor import ChildLost, ChildSupervisor

NOOP = Pair(TASK_TYPE_NOOP)


class Child:
    """A supervisor whose batches end when the test says so."""

    def __init__(self) -> None:
        self.ready = True
        self.healthy = True
        self.hello: ChildHello | None = None
        self.resident = ChildResident()
        self.batches: list[list[int]] = []
        self.cancelled: list[int] = []
        self.ends: list[asyncio.Future[None]] = []

    async def wait_ready(self) -> None:
        assert self.ready

    def begin(
        self, jobs: Sequence[ChildJob], on_progress: Callable[[ChildProgress], None]
    ) -> asyncio.Future[list[ChildDone]]:
        return asyncio.ensure_future(self.run(jobs, on_progress))

    async def run(self, jobs: Sequence[ChildJob], on_progress: Callable[[ChildProgress], None]) -> list[ChildDone]:
        self.batches.append([job.number for job in jobs])
        end: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.ends.append(end)
        await end
        for job in jobs:
            on_progress(ChildProgress(number=job.number, step=1, total=1))
        return [ChildDone(number=job.number, output=ChildOutput()) for job in jobs]

    def cancel(self, number: int) -> None:
        self.cancelled.append(number)

    async def end(self, index: int, error: Exception | None = None) -> None:
        await settle()
        if error is None:
            self.ends[index].set_result(None)
        else:
            self.ends[index].set_exception(error)
        await settle()


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.fixture
def child() -> Child:
    return Child()


def executor(child: Child, slots: int = 1, max_batch: int = 4) -> DeviceRunner:
    return DeviceRunner(
        cast("ChildSupervisor", child), slots=slots, max_batch=max_batch, batch_wait_seconds=0.0, room=asyncio.Event()
    )


def job(key: str | None = None) -> Job:
    return Job(NOOP, key, ChildJob(), lambda _: None)


async def test_what_is_in_memory_is_told_with_what_it_takes_and_where(child: Child) -> None:
    work = executor(child)
    assert not work.warm().sizes, "no child has told of itself"
    child.hello = ChildHello(device="cuda:0")
    child.resident.models.add(name="flux", bytes=7, loras=["a", "b"])
    warm = work.warm()
    assert (list(warm.models), list(warm.loras)) == (["flux"], ["a", "b"])
    assert [(one.name, one.bytes, one.device) for one in warm.sizes] == [("flux", 7, "cuda:0")]
    child.resident.models.extend(ResidentModel(name=str(number)) for number in range(300))
    check(HeartbeatRequest(session_id=str(uuid4()), warm=work.warm()))


async def test_compatible_jobs_that_wait_for_a_slot_run_as_one_batch(child: Child) -> None:
    work = executor(child)
    first = asyncio.create_task(work.execute(job("a")))
    await settle()
    others = [asyncio.create_task(work.execute(job("a"))) for _ in range(3)]
    await settle()
    assert (work.busy, work.waiting) == (1, 3)
    await child.end(0)
    assert first.done()
    await child.end(1)
    assert [len(batch) for batch in child.batches] == [1, 3]
    assert [(await other).number for other in others] == child.batches[1]
    assert work.busy == 0


async def test_a_waiting_job_is_withdrawn_at_once_and_a_running_one_in_the_child(child: Child) -> None:
    work = executor(child)
    running, waiting = job(), job()
    ends = [asyncio.create_task(work.execute(each)) for each in (running, waiting)]
    await settle()
    work.withdraw(waiting)
    work.withdraw(running)
    with pytest.raises(Withdrawn):
        await ends[1]
    assert child.cancelled == [running.payload.number]
    await child.end(0)
    assert ends[0].done()


async def test_a_job_that_another_took_down_runs_again_before_the_rest(child: Child) -> None:
    work = executor(child)
    victim = asyncio.create_task(work.execute(job()))
    behind = asyncio.create_task(work.execute(job()))
    await child.end(0, ChildLost("hung", ERROR_CATEGORY_TIMEOUT, collateral=True))
    assert child.batches[1] == child.batches[0]
    await child.end(1)
    await child.end(2)
    assert victim.done()
    assert behind.done()


async def test_a_job_that_lost_its_child_ends_with_that(child: Child) -> None:
    work = executor(child)
    end = asyncio.create_task(work.execute(job()))
    await child.end(0, ChildLost("died", ERROR_CATEGORY_RESOURCE))
    with pytest.raises(ChildLost):
        await end
    assert work.busy == 0


async def test_a_job_that_cannot_be_handed_over_ends_with_that(child: Child, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> asyncio.Future[list[ChildDone]]:
        raise WireError("too large")

    monkeypatch.setattr(child, "begin", refuse)
    work = executor(child)
    with pytest.raises(WireError):
        await work.execute(job())
    await settle()
    assert work.busy == 0


async def test_progress_reaches_the_job_of_its_batch_that_made_it(child: Child) -> None:
    work = executor(child)
    running = asyncio.create_task(work.execute(job()))
    seen: list[tuple[str, int]] = []

    def named(name: str) -> Job:
        return Job(NOOP, "a", ChildJob(), lambda report: seen.append((name, report.number)))

    pair = [named("x"), named("y")]
    ends = [asyncio.create_task(work.execute(each)) for each in pair]
    await child.end(0)
    await child.end(1)
    assert running.done()
    assert all(end.done() for end in ends)
    assert seen == [("x", pair[0].payload.number), ("y", pair[1].payload.number)]


async def test_a_job_that_was_withdrawn_is_not_given_to_the_next_child(child: Child) -> None:
    work = executor(child)
    withdrawn = job()
    end = asyncio.create_task(work.execute(withdrawn))
    await settle()
    work.withdraw(withdrawn)
    await child.end(0, ChildLost("hung", ERROR_CATEGORY_TIMEOUT, collateral=True))
    with pytest.raises(ChildLost):
        await end
    assert len(child.batches) == 1


async def test_nothing_starts_without_a_child(child: Child) -> None:
    child.ready = False
    work = executor(child)
    end = asyncio.create_task(work.execute(job()))
    await settle()
    assert not child.batches
    child.ready = True
    work.pump()
    await child.end(0)
    assert end.done()


async def test_a_claim_takes_a_free_slot_or_none(child: Child) -> None:
    work = executor(child, slots=2)
    async with work.claim(), work.claim():
        with pytest.raises(MeshError) as caught:
            async with work.claim():
                pass
        assert caught.value.kind is ErrorKind.EXHAUSTED
    assert work.busy == 0


async def test_a_claim_is_refused_where_no_child_comes_up(child: Child) -> None:
    child.healthy = False
    with pytest.raises(MeshError) as caught:
        async with executor(child).claim():
            pass
    assert caught.value.kind is ErrorKind.UNAVAILABLE


async def test_a_claimed_slot_is_kept_until_its_cancelled_job_has_ended(child: Child) -> None:
    work = executor(child)

    async def direct() -> None:
        async with work.claim():
            await work.execute_claimed(job())

    call = asyncio.create_task(direct())
    await settle()
    call.cancel()
    await settle()
    assert child.cancelled
    assert work.busy == 1
    await child.end(0)
    assert call.cancelled()
    assert work.busy == 0
