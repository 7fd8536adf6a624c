"""What a worker does with an attempt: fetch its inputs, run it, store its results, end its lease."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial

from atelier.inference.v1.child_pb2 import ChildDone, ChildProgress
from atelier.tasks.v1.enums_pb2 import (
    ERROR_CATEGORY_INTERNAL,
    ERROR_CATEGORY_TIMEOUT,
    ErrorCategory,
)
from atelier.tasks.v1.phase_pb2 import TASK_PHASE_RUNNING, TASK_PHASE_STORING
from atelier.tasks.v1.worker_service_pb2 import JOB_KIND_TASK, ResultObject

from meshkit import spans, tracing
from meshkit.errors import MeshError
from meshkit.logging import get_logger
from meshkit.moments import seconds_of
from meshkit.objects import ObjectStore
from meshkit.spelling import value_names
from meshkit.worker import child_spans, metrics
from meshkit.worker.ends import AttemptEnds, ReportOutcome
from meshkit.worker.handlers import TaskFailed, WorkerUnfit
from meshkit.worker.held import HeldLease, HeldLeases
from meshkit.worker.input_places import InputPlaces
from meshkit.worker.pairs import Pair, pair_of
from meshkit.worker.preparer import JobPreparer
from meshkit.worker.request_notes import RequestNotes
from meshkit.worker.runner import Job, JobLost, Runner, ServiceCalls, Withdrawn
from meshkit.worker.uploads import Uploads, name_files

_log = get_logger(__name__)

_CANCEL_GRACE_SECONDS = 5.0
_STOPPED = {"ended": "cancelled", "given_up": "cancelled", "drain": "released", "waited": "released"}
_GIVEN_UP = frozenset({"ended", "given_up"})
_FINAL = ("ended", "timeout")  # of the reasons to stop: no other attempt goes on with what this one has begun


@dataclass(slots=True, eq=False)
class _CarriedAttempt:
    """A leased attempt between its lease and its end.

    Attributes:
        held: Its lease.
        pair: Task type and provider.
        carrier: The asyncio task that takes it from lease to end.
        job: Its job, once its inputs are there.
        stop: Why it is to end early: `ended`, `given_up`, `expired`, `timeout`, `drain`, `waited`.
        paused: Whether its handler was asked to stop where another attempt can go on.
        interruptible: Whether the carrier may be cancelled now.
        fetches: Whether its inputs are on their way from other people's servers: it needs no slot yet.
        executed: Whether the runner has returned its outcome.
        uploads: Objects that it has stored; None before the first.
        started_at: When its handler was called.
        due: When its time limit passes.
        overdue: The value of `stop` then.
    """

    held: HeldLease
    pair: Pair
    carrier: asyncio.Task[None] | None = None
    job: Job | None = None
    stop: str | None = None
    paused: bool = False
    interruptible: bool = False
    fetches: bool = False
    executed: bool = False
    uploads: Uploads | None = None
    started_at: float = 0.0
    due: float = math.inf
    overdue: str = ""

    @property
    def begun(self) -> bool:
        """Whether its handler has been called."""
        return self.job is not None and self.job.started


class Attempts:
    """Carries leased attempts from lease to end.

    Args:
        preparer: Makes jobs of tasks.
        runner: Runs them.
        objects: Where results go.
        held: The leases that are held.
        ends: Ends them.
        room: Set when `capacity` may have risen.
        prefetch: Attempts to hold beyond those that run.
        places: Where attempts wait for inputs from elsewhere.
        notes: Writes down what attempts ask of providers.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        preparer: JobPreparer,
        runner: Runner,
        objects: ObjectStore,
        held: HeldLeases,
        ends: AttemptEnds,
        *,
        room: asyncio.Event,
        prefetch: int,
        places: InputPlaces,
        notes: RequestNotes,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._preparer = preparer
        self._runner = runner
        self._objects = objects
        self._held = held
        self._ends = ends
        self._room = room
        self._prefetch = prefetch
        self._places = places
        self._notes = notes
        self._clock = clock
        self._attempts: set[_CarriedAttempt] = set()
        self._draining = False
        self._timer: asyncio.TimerHandle | None = None  # one for all attempts: nearly all end long before their limit
        self._rings_at = math.inf

    def __len__(self) -> int:
        return len(self._attempts)

    def capacity(self) -> int:
        """Return how many more attempts to lease now."""
        runner = self._runner
        if self._draining or not runner.ready:
            return 0
        # Results that cannot be stored fill this disk: with too many of them waiting, no attempt is taken.
        ending = sum(1 for attempt in self._attempts if attempt.executed)
        if ending > 2 * runner.slots + 8:
            return 0
        waiting = sum(1 for attempt in self._attempts if not attempt.begun and not attempt.fetches)
        return max(0, runner.slots - runner.busy + self._prefetch - waiting - self._places.excess)

    @property
    def fetching(self) -> int:
        """Attempts whose inputs are on their way from elsewhere."""
        return sum(1 for attempt in self._attempts if attempt.fetches)

    def full_tenants(self) -> Collection[str]:
        """Return the tenants whose inputs on their way leave no place for another of their attempts."""
        return self._places.full_tenants()

    def accept(self, held: HeldLease) -> None:
        """Take an attempt, and bring it to its end."""
        lease = held.lease
        attempt = _CarriedAttempt(held, pair_of(lease.spec, lease.task, lease.kind or JOB_KIND_TASK))
        if self._preparer.fetches(attempt.pair, lease.spec, lease.task):
            attempt.fetches = True
            self._places.arrive(lease.tenant)
        self._attempts.add(attempt)
        attempt.carrier = asyncio.get_running_loop().create_task(self._carry(attempt))
        held.on_lost(lambda why: self._stop(attempt, why))

    def hand_back_waiting(self) -> None:
        """Release what has not begun; called when the runner is not healthy, and by `drain`."""
        for attempt in list(self._attempts):
            if not attempt.begun:
                self._stop(attempt, "drain")

    async def drain(self, grace_seconds: float) -> None:
        """Take no more, hand back what has not begun, let the rest end, hand back what has not ended by then.

        Of the rest, what can stop where another attempt goes on is asked to.
        """
        self._draining = True
        self.hand_back_waiting()
        for attempt in list(self._attempts):
            if attempt.job is not None and attempt.begun and not attempt.executed:
                attempt.paused = self._runner.pause(attempt.job)
        await self._until_idle(grace_seconds)
        for attempt in list(self._attempts):
            self._stop(attempt, "drain")
        await self._until_idle(_CANCEL_GRACE_SECONDS)
        for attempt in list(self._attempts):
            if attempt.carrier is not None:
                attempt.carrier.cancel()
        await self._until_idle(1.0)

    async def idle(self) -> None:
        """Wait until no attempt is under way."""
        await self._until_idle(None)

    async def _until_idle(self, seconds: float | None) -> None:
        carriers = {attempt.carrier for attempt in self._attempts if attempt.carrier is not None}
        if carriers:
            await asyncio.wait(carriers, timeout=seconds)

    def _stop(self, attempt: _CarriedAttempt, why: str) -> None:
        if attempt.stop is not None:
            return
        attempt.stop = why
        if attempt.job is not None and not attempt.executed:
            attempt.job.calls.called_off = why in _FINAL
            self._runner.withdraw(attempt.job)
        elif attempt.interruptible and attempt.carrier is not None:
            attempt.carrier.cancel()

    async def _carry(self, attempt: _CarriedAttempt) -> None:
        lease = attempt.held.lease
        trace = tracing.begin(lease.traceparent)
        tracing.use(trace)
        tracing.assign_tenant(lease.tenant)
        self._limit(attempt, "waited")
        outcome, begun = "lost", self._clock()
        try:
            outcome = await self._end_of(attempt)
            if attempt.uploads is not None:
                await attempt.uploads.discard()
        finally:
            self._fetched(attempt)
            self._attempts.discard(attempt)
            attempt.job = None  # its callbacks refer to the attempt: a cycle that only the garbage collector would free
            metrics.attempts(attempt.pair.label, outcome).inc()
            if spans.recording(trace):
                _record(attempt, trace, self._clock() - begun, outcome)
            self._room.set()
        if outcome != "completed":
            _log.info("attempt_ended", job_id=lease.job_id, attempt=lease.attempt, outcome=outcome)

    def _preparing(self) -> bool:
        """Tell whether inputs of attempts are being fetched: their jobs will come to the runner."""
        return any(attempt.job is None and attempt.stop is None for attempt in self._attempts)

    async def _prepared(self, attempt: _CarriedAttempt, progressed: Callable[[ChildProgress], None]) -> Job:
        lease = attempt.held.lease
        if not attempt.fetches:
            return await self._preparer.prepare(attempt.pair, lease.spec, lease.task, lease.tenant, progressed)
        async with self._places.place(lease.tenant):
            job = await self._preparer.prepare(attempt.pair, lease.spec, lease.task, lease.tenant, progressed)
        self._fetched(attempt)
        return job

    def _fetched(self, attempt: _CarriedAttempt) -> None:
        if attempt.fetches:
            attempt.fetches = False
            self._places.leave(attempt.held.lease.tenant)

    def _started(self, attempt: _CarriedAttempt) -> None:
        attempt.started_at = self._clock()
        self._limit(attempt, "timeout")

    def _limit(self, attempt: _CarriedAttempt, why: str) -> None:
        """Start the attempt's time limit. Past it a waiting attempt is handed back, a running one fails."""
        if (seconds := seconds_of(attempt.held.lease.timeout)) > 0:
            attempt.due, attempt.overdue = self._clock() + seconds, why
            self._ring_at(attempt.due)

    def _ring_at(self, moment: float) -> None:
        """Call `_ring` at that moment, unless it is due earlier."""
        if moment < self._rings_at:
            if self._timer is not None:
                self._timer.cancel()
            self._rings_at = moment
            self._timer = asyncio.get_running_loop().call_later(max(moment - self._clock(), 0.0), self._ring)

    def _ring(self) -> None:
        """Stop attempts that have passed their limits, and set the timer for the next."""
        self._rings_at, now = math.inf, self._clock()
        for attempt in list(self._attempts):
            if attempt.due <= now:
                self._stop(attempt, attempt.overdue)
            else:
                self._ring_at(attempt.due)

    async def _end_of(self, attempt: _CarriedAttempt) -> str:
        try:
            return await self._through(attempt)
        except asyncio.CancelledError:
            if attempt.stop is None:
                raise
            return await self._stopped(attempt)
        except Exception:
            lease = attempt.held.lease
            _log.exception("attempt_crashed", job_id=lease.job_id, attempt=lease.attempt)
            failure = TaskFailed("The worker failed.", ERROR_CATEGORY_INTERNAL, retryable=True)
            return await self._failed(attempt, failure)

    async def _through(self, attempt: _CarriedAttempt) -> str:
        if attempt.stop is not None:
            return await self._stopped(attempt)
        attempt.interruptible = True
        lease = attempt.held.lease
        task = lease.task
        task.id, task.attempt = lease.job_id, lease.attempt

        def progressed(report: ChildProgress) -> None:
            percent = 100.0 * report.step / report.total if report.total > 0 else 0.0
            self._held.progress(
                attempt.held,
                percent,
                step=report.step,
                total=report.total,
                preview=report.preview,
                text=report.text,
                phase=report.phase or TASK_PHASE_RUNNING,
                queue_position=report.queue_position if report.HasField("queue_position") else None,
            )

        try:
            job = attempt.job = await self._prepared(attempt, progressed)
            job.calls = ServiceCalls(lease.service_requests, partial(self._notes.note, attempt.held))
            try:
                job.on_start = partial(self._started, attempt)
                done = await self._runner.execute(job, expected_peers=job.batch_key is not None and self._preparing())
                attempt.executed = True
                return await self._ended(attempt, job, done)
            finally:
                await self._preparer.release(job)
        except (Withdrawn, WorkerUnfit) as outcome:
            if attempt.stop is None and isinstance(outcome, WorkerUnfit):
                attempt.stop = "drain"
            return await self._stopped(attempt)
        except JobLost as lost:
            if attempt.stop is not None:
                return await self._stopped(attempt)
            return await self._failed(attempt, TaskFailed(lost.message, lost.category, retryable=True))
        except TaskFailed as failure:
            return await self._failed(attempt, failure)

    async def _ended(self, attempt: _CarriedAttempt, job: Job, done: ChildDone) -> str:
        if done.device_seconds:
            metrics.count_device_seconds(job.pair, attempt.held.lease.tenant, done.device_seconds)
        metrics.count_loans(done.loans)
        child_spans.record(tracing.current(), done.spans)
        kind = done.WhichOneof("outcome")
        if kind == "output":
            metrics.count_result(job.pair, self._clock() - attempt.started_at, done.loans)
        if kind == "output" and attempt.stop in (None, "drain", "timeout"):
            return await self._completed(attempt, job, done)
        if kind == "failure" and attempt.stop is None:
            failure = TaskFailed(
                done.failure.message,
                done.failure.category,
                retryable=done.failure.retryable,
                retry_after=done.failure.retry_after_seconds if done.failure.HasField("retry_after_seconds") else None,
            )
            return await self._failed(attempt, failure, done)
        return await self._stopped(attempt, done)

    async def _completed(self, attempt: _CarriedAttempt, job: Job, done: ChildDone) -> str:
        lease, output = attempt.held.lease, done.output
        objects: list[ResultObject] = []
        if output.files:
            self._held.progress(attempt.held, 100.0, step=0, total=0, phase=TASK_PHASE_STORING)
            uploads = attempt.uploads = Uploads(self._objects, lease)
            objects = [await uploads.put(job.payload.folder, file) for file in output.files]
        result = name_files(output, lease.result_prefix)
        attempt.interruptible = False
        try:
            reported = await self._ends.complete(attempt.held, result, objects, done)
        except MeshError:
            _log.exception("result_not_taken", job_id=lease.job_id)
            failure = TaskFailed("The result was not accepted.", ERROR_CATEGORY_INTERNAL, retryable=False)
            return await self._failed(attempt, failure, done)
        if reported is not ReportOutcome.LOST and attempt.uploads is not None:
            attempt.uploads.keep()
        return "completed" if reported is ReportOutcome.TAKEN else "lost"

    async def _failed(self, attempt: _CarriedAttempt, failure: TaskFailed, done: ChildDone | None = None) -> str:
        attempt.interruptible = False
        kept = await self._ends.fail(
            attempt.held,
            failure.message,
            failure.category,
            retryable=failure.retryable,
            retry_after=failure.retry_after,
            done=done,
        )
        return f"failed_{_category(failure.category)}" if kept else "lost"

    async def _stopped(self, attempt: _CarriedAttempt, done: ChildDone | None = None) -> str:
        attempt.interruptible = False
        if attempt.stop == "timeout":
            failure = TaskFailed("The attempt passed its time limit.", ERROR_CATEGORY_TIMEOUT, retryable=True)
            return await self._failed(attempt, failure, done)
        if attempt.stop is None and attempt.paused:
            attempt.stop = "drain"
        if attempt.stop is None:
            failure = TaskFailed("The worker stopped the task.", ERROR_CATEGORY_INTERNAL, retryable=True)
            return await self._failed(attempt, failure, done)
        if attempt.stop in _GIVEN_UP and done is not None and done.device_seconds:
            await self._ends.tell_use(attempt.held, done)
        await self._ends.release([attempt.held])
        return _STOPPED.get(attempt.stop, "lost")


def _record(attempt: _CarriedAttempt, trace: tracing.Trace, seconds: float, outcome: str) -> None:
    lease, label = attempt.held.lease, attempt.pair.label
    attributes: spans.Attributes = {
        "messaging.system": "atelier",
        "messaging.operation.type": "process",
        "messaging.message.id": lease.job_id,
        "atelier.attempt": lease.attempt,
        "atelier.outcome": outcome,
        "atelier.task_type": label,
        "atelier.tenant": lease.tenant,
    }
    failure = outcome if outcome == "lost" or outcome.startswith("failed") else ""
    kind = spans.SpanKind.CONSUMER
    spans.record(trace, f"attempt {label}", kind, seconds=seconds, attributes=attributes, linked=True, failure=failure)


def _category(category: ErrorCategory.ValueType) -> str:
    return value_names(ErrorCategory.DESCRIPTOR)[category].lower()
