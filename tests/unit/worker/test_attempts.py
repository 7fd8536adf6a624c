"""What becomes of an attempt between its lease and its end, with a runner and a service that do as they are told."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, cast

import pytest
from atelier.inference.v1.child_pb2 import ChildCancelled, ChildDone, ChildFailure, ChildFile, ChildJob, ChildOutput
from atelier.tasks.v1.enums_pb2 import (
    ERROR_CATEGORY_INTERNAL,
    ERROR_CATEGORY_RATE_LIMIT,
    ERROR_CATEGORY_RESOURCE,
    ERROR_CATEGORY_TIMEOUT,
    ERROR_CATEGORY_VALIDATION,
)
from atelier.tasks.v1.noop_pb2 import CreateNoopTask, NoopTaskPublic
from atelier.tasks.v1.service_requests_pb2 import ServiceRequest
from atelier.tasks.v1.task_pb2 import CreateTask, TaskResult
from atelier.tasks.v1.worker_service_pb2 import Lease, WarmState

from meshkit.errors import invalid
from meshkit.moments import duration_of
from meshkit.objects import ObjectStore
from meshkit.worker.attempts import Attempts
from meshkit.worker.ends import AttemptEnds, ReportOutcome
from meshkit.worker.handlers import TaskFailed, WorkerUnfit
from meshkit.worker.held import HeldLease, HeldLeases
from meshkit.worker.input_places import InputPlaces
from meshkit.worker.pacing import Pauses
from meshkit.worker.pairs import Pair
from meshkit.worker.preparer import JobPreparer
from meshkit.worker.request_notes import RequestNotes
from meshkit.worker.runner import Job, JobLost, Withdrawn
from meshkit.worker.session import WorkerSession
from tests.unit.worker.scripted import Clock, Service

DONE = ChildDone(output=ChildOutput(result=TaskResult(noop=NoopTaskPublic(payload="made"))), device_seconds=1.5)


class FakeRunner:
    """Runs one job a slot, which ends when the test says how."""

    def __init__(self, slots: int = 1) -> None:
        self.slots = slots
        self.ready = True
        self.healthy = True
        self.fault = ""
        self.jobs: list[Job] = []
        self.withdrawn: list[Job] = []
        self.pausable = False
        self.asked: list[Job] = []

    @property
    def busy(self) -> int:
        return sum(1 for job in self.jobs if job.started and not job.ended.done())

    def warm(self) -> WarmState:
        return WarmState()

    def start(self) -> None: ...

    async def close(self) -> None: ...

    async def execute(self, job: Job, *, expected_peers: bool = True) -> ChildDone:
        self.jobs.append(job)
        if self.busy < self.slots:
            job.started = True
            job.on_start()
        return await job.ended

    def withdraw(self, job: Job) -> None:
        self.withdrawn.append(job)
        if not job.started:
            job.ended.set_exception(Withdrawn())

    def pause(self, job: Job) -> bool:
        if self.pausable:
            self.asked.append(job)
        return self.pausable


class FakePreparer:
    def __init__(self) -> None:
        self.released = 0
        self.error: Exception | None = None
        self.go = asyncio.Event()
        self.go.set()
        self.remote = False

    def fetches(self, pair: Pair, spec: CreateTask, task: Any) -> bool:
        return self.remote

    async def prepare(self, pair: Pair, spec: CreateTask, task: Any, tenant: str, progressed: Any) -> Job:
        await self.go.wait()
        if self.error is not None:
            raise self.error
        return Job(pair, None, ChildJob(folder="/nowhere"), progressed)

    async def release(self, job: Job) -> None:
        self.released += 1


class FakeEnds:
    """Remembers how attempts ended."""

    def __init__(self) -> None:
        self.said: list[tuple[Any, ...]] = []
        self.retry_after: float | None = None
        self.outcome: ReportOutcome | Exception = ReportOutcome.TAKEN

    async def complete(self, held: HeldLease, result: TaskResult, objects: Any, done: ChildDone) -> ReportOutcome:
        if isinstance(self.outcome, Exception):
            raise self.outcome
        self.said.append(("completed", result.noop.payload, done.device_seconds, *done.output.errors))
        return self.outcome

    async def fail(
        self,
        held: HeldLease,
        message: str,
        category: int,
        *,
        retryable: bool,
        retry_after: float | None,
        done: ChildDone | None,
    ) -> bool:
        self.retry_after = retry_after
        self.said.append(("failed", category, retryable))
        return True

    async def tell_use(self, held: HeldLease, done: ChildDone) -> None:
        self.said.append(("used", done.device_seconds))

    async def release(self, attempts: list[HeldLease]) -> None:
        self.said.append(("released",))


class Rig:
    def __init__(self, slots: int = 1, prefetch: int = 1) -> None:
        self.now = 100.0
        self.room = asyncio.Event()
        self.runner, self.preparer, self.ends = FakeRunner(slots), FakePreparer(), FakeEnds()
        self.clock = Clock()
        self.service = Service(self.clock)
        self.session = WorkerSession("s", 15.0, 5.0, 1000.0)
        self.attempts = Attempts(
            cast("JobPreparer", self.preparer),
            self.runner,
            cast("ObjectStore", None),
            HeldLeases(self.room),
            cast("AttemptEnds", self.ends),
            room=self.room,
            prefetch=prefetch,
            places=InputPlaces(3, 2),
            notes=RequestNotes(self.service, Pauses(sleep=self.clock.sleep)),
            clock=lambda: self.now,
        )

    async def lease(
        self,
        job_id: str = "j",
        limit: float = 0.0,
        tenant: str = "acme",
        requests: Sequence[ServiceRequest] = (),
    ) -> HeldLease:
        lease = Lease(
            job_id=job_id,
            attempt=1,
            tenant=tenant,
            spec=CreateTask(noop=CreateNoopTask()),
            service_requests=requests,
        )
        if limit:
            lease.timeout.CopyFrom(duration_of(limit))
        held = HeldLease(lease, self.session)
        self.attempts.accept(held)
        await settle()
        return held

    async def end(self, outcome: ChildDone | Exception, index: int = 0) -> None:
        ended = self.runner.jobs[index].ended
        if isinstance(outcome, Exception):
            ended.set_exception(outcome)
        else:
            ended.set_result(outcome)
        await settle()


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.fixture
async def rig() -> Rig:
    return Rig()


async def test_an_attempt_is_completed_and_its_job_released(rig: Rig) -> None:
    await rig.lease()
    assert len(rig.attempts) == 1
    await rig.end(DONE)
    assert rig.ends.said == [("completed", "made", 1.5)]
    assert (rig.preparer.released, len(rig.attempts)) == (1, 0)
    assert rig.room.is_set()


async def test_what_went_wrong_with_parts_is_reported_with_the_result(rig: Rig) -> None:
    await rig.lease()
    await rig.end(ChildDone(output=ChildOutput(errors=["input[1]: too dark"])))
    assert rig.ends.said == [("completed", "", 0.0, "input[1]: too dark")]


@pytest.mark.parametrize(
    ("outcome", "said"),
    [
        (
            ChildDone(failure=ChildFailure(message="no", category=ERROR_CATEGORY_VALIDATION)),
            ("failed", ERROR_CATEGORY_VALIDATION, False),
        ),
        (JobLost("gone", ERROR_CATEGORY_RESOURCE), ("failed", ERROR_CATEGORY_RESOURCE, True)),
        (RuntimeError("a fault of the worker"), ("failed", ERROR_CATEGORY_INTERNAL, True)),
        (ChildDone(cancelled=ChildCancelled()), ("failed", ERROR_CATEGORY_INTERNAL, True)),
        (
            ChildDone(output=ChildOutput(files=[ChildFile(name="../a.png")])),
            ("failed", ERROR_CATEGORY_INTERNAL, True),
        ),
    ],
)
async def test_whatever_a_runner_says_ends_the_attempt_once(
    rig: Rig, outcome: ChildDone | Exception, said: tuple[Any, ...]
) -> None:
    await rig.lease()
    await rig.end(outcome)
    assert rig.ends.said == [said]
    assert rig.preparer.released == 1


async def test_inputs_that_cannot_be_had_fail_the_attempt(rig: Rig) -> None:
    rig.preparer.error = TaskFailed("image: broken", ERROR_CATEGORY_VALIDATION, retryable=False)
    await rig.lease()
    assert rig.ends.said == [("failed", ERROR_CATEGORY_VALIDATION, False)]


async def test_a_wait_that_a_provider_asks_for_is_told_with_the_failure(rig: Rig) -> None:
    await rig.lease()
    failure = ChildFailure(message="slower", category=ERROR_CATEGORY_RATE_LIMIT, retryable=True, retry_after_seconds=7)
    await rig.end(ChildDone(failure=failure))
    assert rig.ends.said == [("failed", ERROR_CATEGORY_RATE_LIMIT, True)]
    assert rig.ends.retry_after == 7.0


@pytest.mark.parametrize(
    ("why", "called_off"), [("ended", True), ("given_up", False), ("expired", False), ("drain", False)]
)
async def test_a_provider_is_called_off_only_where_nobody_goes_on(rig: Rig, why: str, *, called_off: bool) -> None:
    held = await rig.lease()
    rig.attempts._stop(next(iter(rig.attempts._attempts)), why) if why == "drain" else held.lose(why)
    assert rig.runner.jobs[0].calls.called_off is called_off


async def test_a_provider_is_called_off_at_the_time_limit(rig: Rig) -> None:
    await rig.lease(limit=60.0)
    await passes(rig, 61.0)
    assert rig.runner.jobs[0].calls.called_off


async def test_a_job_has_the_requests_that_were_left_open(rig: Rig) -> None:
    await rig.lease(requests=(ServiceRequest(id="r", service_task_id="at the provider"),))
    assert [each.service_task_id for each in rig.runner.jobs[0].calls.open] == ["at the provider"]


async def test_a_result_that_the_service_never_takes_fails_for_good(rig: Rig) -> None:
    rig.ends.outcome = invalid("objects[0].path", "is wrong")
    await rig.lease()
    await rig.end(DONE)
    assert rig.ends.said == [("failed", ERROR_CATEGORY_INTERNAL, False)]


async def test_a_lost_lease_stops_the_job_and_is_confirmed(rig: Rig) -> None:
    held = await rig.lease()
    held.lose("given_up")
    assert rig.runner.withdrawn == rig.runner.jobs
    await rig.end(ChildDone(cancelled=ChildCancelled()))
    assert rig.ends.said == [("released",)]


async def test_what_a_cancelled_job_has_used_is_told(rig: Rig) -> None:
    held = await rig.lease()
    held.lose("ended")
    await rig.end(ChildDone(cancelled=ChildCancelled(), device_seconds=2.5, device="cpu"))
    assert rig.ends.said == [("used", 2.5), ("released",)]


async def test_a_lease_that_is_lost_while_inputs_are_fetched_stops_the_fetch(rig: Rig) -> None:
    rig.preparer.go.clear()
    held = await rig.lease()
    held.lose("given_up")
    await settle()
    assert rig.ends.said == [("released",)]
    assert not rig.runner.jobs


async def passes(rig: Rig, seconds: float) -> None:
    """Lets the limits of attempts pass; the timer itself is the loop's."""
    rig.now += seconds
    rig.attempts._ring()
    await settle()


async def test_a_running_attempt_past_its_limit_fails_and_a_waiting_one_goes_back(rig: Rig) -> None:
    await rig.lease("runs", limit=60.0)
    await rig.lease("waits", limit=60.0)
    await passes(rig, 61.0)
    assert rig.ends.said == [("released",)]
    await rig.end(ChildDone(cancelled=ChildCancelled()))
    assert rig.ends.said[1:] == [("failed", ERROR_CATEGORY_TIMEOUT, True)]


async def test_a_limit_counts_from_the_start_of_the_job(rig: Rig) -> None:
    rig.runner.slots = 0
    await rig.lease(limit=60.0)
    await passes(rig, 50.0)
    [job] = rig.runner.jobs
    job.started = True
    job.on_start()
    await passes(rig, 50.0)
    assert not rig.runner.withdrawn
    await passes(rig, 11.0)
    assert rig.runner.withdrawn == [job]


async def test_a_result_that_came_just_past_the_limit_counts(rig: Rig) -> None:
    await rig.lease(limit=60.0)
    await passes(rig, 61.0)
    await rig.end(DONE)
    assert rig.ends.said == [("completed", "made", 1.5)]


@pytest.mark.parametrize(
    ("change", "expected"),
    [(lambda rig: None, 3), (lambda rig: setattr(rig.runner, "ready", False), 0)],
    ids=["free", "not ready"],
)
async def test_capacity_is_free_slots_and_what_is_held_beyond_them(
    change: Callable[[Rig], None], expected: int
) -> None:
    rig = Rig(slots=2, prefetch=1)
    change(rig)
    assert rig.attempts.capacity() == expected


async def test_capacity_falls_with_what_runs_and_what_waits() -> None:
    rig = Rig(slots=2, prefetch=1)
    for number in range(2):
        await rig.lease(str(number))
    assert rig.attempts.capacity() == 1
    await rig.lease("waits")
    assert rig.attempts.capacity() == 0


async def test_attempts_whose_inputs_come_from_elsewhere_take_no_slot_until_they_are_there(rig: Rig) -> None:
    rig.preparer.remote = True
    rig.preparer.go.clear()
    await rig.lease("one")
    assert (rig.attempts.capacity(), list(rig.attempts.full_tenants())) == (2, [])
    await rig.lease("two")
    assert (rig.attempts.capacity(), list(rig.attempts.full_tenants())) == (2, ["acme"])
    rig.preparer.go.set()
    await settle()
    assert (rig.attempts.capacity(), list(rig.attempts.full_tenants())) == (0, [])


async def test_attempts_whose_inputs_are_on_their_way_are_bounded_in_all(rig: Rig) -> None:
    rig.preparer.remote = True
    rig.preparer.go.clear()
    for tenant in ("a", "b", "c"):
        await rig.lease(tenant, tenant=tenant)
    assert (rig.attempts.capacity(), sorted(rig.attempts.full_tenants())) == (2, ["a", "b", "c"])
    for tenant in ("d", "e"):
        await rig.lease(tenant, tenant=tenant)
    assert rig.attempts.capacity() == 0
    rig.attempts.hand_back_waiting()
    await settle()
    assert rig.ends.said == [("released",)] * 5
    assert (rig.attempts.capacity(), list(rig.attempts.full_tenants())) == (2, [])


async def test_a_drain_takes_nothing_ends_what_runs_and_hands_back_the_rest(rig: Rig) -> None:
    await rig.lease("runs")
    await rig.lease("waits")
    draining = asyncio.create_task(rig.attempts.drain(5.0))
    await settle()
    assert rig.ends.said == [("released",)]
    assert rig.attempts.capacity() == 0
    await rig.end(DONE)
    await draining
    assert rig.ends.said == [("released",), ("completed", "made", 1.5)]


async def test_what_waits_for_a_runner_that_does_not_come_up_is_handed_back(rig: Rig) -> None:
    rig.runner.slots = 0
    await rig.lease()
    rig.attempts.hand_back_waiting()
    await settle()
    assert rig.ends.said == [("released",)]


async def test_an_attempt_that_this_worker_cannot_do_at_all_is_handed_back(rig: Rig) -> None:
    await rig.lease()
    rig.runner.jobs[-1].ended.set_exception(WorkerUnfit("lacks a package"))
    await settle()
    assert rig.ends.said == [("released",)]


async def test_a_drain_has_what_can_stop_where_another_goes_on_do_so_and_hands_it_back(rig: Rig) -> None:
    rig.runner.pausable = True
    await rig.lease("runs")
    await rig.lease("waits")
    draining = asyncio.create_task(rig.attempts.drain(5.0))
    await settle()
    assert rig.runner.asked == [rig.runner.jobs[0]]
    assert rig.runner.withdrawn == [rig.runner.jobs[1]]
    await rig.end(ChildDone(cancelled=ChildCancelled()))
    await draining
    assert rig.ends.said == [("released",), ("released",)]


@pytest.mark.parametrize(
    ("outcome", "said"),
    [
        (DONE, ("completed", "made", 1.5)),
        (
            ChildDone(failure=ChildFailure(category=ERROR_CATEGORY_VALIDATION)),
            ("failed", ERROR_CATEGORY_VALIDATION, False),
        ),
    ],
)
async def test_what_ends_by_itself_after_it_was_asked_to_stop_has_ended(
    rig: Rig, outcome: ChildDone, said: tuple[Any, ...]
) -> None:
    rig.runner.pausable = True
    await rig.lease()
    draining = asyncio.create_task(rig.attempts.drain(5.0))
    await settle()
    await rig.end(outcome)
    await draining
    assert rig.ends.said == [said]


async def test_what_was_asked_to_stop_and_is_cancelled_then_is_withdrawn(rig: Rig) -> None:
    rig.runner.pausable = True
    held = await rig.lease()
    draining = asyncio.create_task(rig.attempts.drain(5.0))
    await settle()
    held.lose("ended")
    assert rig.runner.withdrawn == [rig.runner.jobs[0]]
    await rig.end(ChildDone(cancelled=ChildCancelled()))
    await draining
