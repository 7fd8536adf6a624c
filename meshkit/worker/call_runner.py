"""The runner of work that waits on somebody else's service: coroutines in this process, no child, no device.

A slot is one call. Slots are counted for themselves, because calls cost this machine next to nothing: what bounds them
is what the service on the other side takes.

Where a handler finds that this worker cannot do its work at all (`WorkerUnfit`), its attempt is handed back, and the
runner takes no other until its probe says that it can.
"""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial

from atelier.inference.v1.child_pb2 import ChildCancelled, ChildDone
from atelier.tasks.v1.enums_pb2 import ERROR_CATEGORY_INTERNAL
from atelier.tasks.v1.worker_service_pb2 import WarmState

from meshkit.logging import get_logger
from meshkit.loops import cancel
from meshkit.worker import metrics
from meshkit.worker.handlers import CallHandler, Output, TaskCancelled, TaskFailed, WorkerUnfit
from meshkit.worker.job_context import JobContext
from meshkit.worker.outcomes import done_of
from meshkit.worker.pacing import Backoff, Pauses
from meshkit.worker.pairs import Pair
from meshkit.worker.runner import Job, Withdrawn

_log = get_logger(__name__)

_GRACE_SECONDS = 5.0
# Between two probes.
_FIRST_PROBE_SECONDS, _LAST_PROBE_SECONDS = 2.0, 60.0


async def _fit() -> str:
    return ""


class CallRunner:
    """Awaits one handler a job.

    A job that is withdrawn has its handler cancelled. One that has not ended within the grace is given up: its attempt
    ends, it is cancelled again and again, and its slot stays taken for as long as it lives.

    Args:
        handlers: One handler a pair.
        slots: Calls at once.
        room: Set when more jobs may be taken.
        pausable: Whether the handlers stop where another attempt can go on, when they are asked to.
        probe: Tells why this worker cannot do its work; empty where it can. Asked once a handler has found so.
        on_change: Called when `ready`, `healthy` or `fault` may have changed.
        pauses: Waits between probes.
        grace_seconds: How long a cancelled handler may take to end.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        handlers: Mapping[Pair, CallHandler],
        *,
        slots: int,
        room: asyncio.Event,
        pausable: bool = False,
        probe: Callable[[], Awaitable[str]] | None = None,
        on_change: Callable[[], None] = lambda: None,
        pauses: Pauses | None = None,
        grace_seconds: float = _GRACE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._handlers = handlers
        self._slots = slots
        self._room = room
        self._pausable = pausable
        self._probe = probe or _fit
        self._on_change = on_change
        self._pauses = pauses or Pauses(Backoff(_FIRST_PROBE_SECONDS, _LAST_PROBE_SECONDS))
        self._probing: asyncio.Task[None] | None = None  # while no work can be done
        self._fault = ""
        self._grace = grace_seconds
        self._clock = clock
        self._waiting: dict[Job, contextvars.Context] = {}  # in the order they came, each with its caller's trace
        self._calls: dict[Job, asyncio.Task[ChildDone]] = {}
        self._contexts: dict[Job, JobContext] = {}  # of those that run
        self._numbers = itertools.count(1)

    @property
    def slots(self) -> int:
        """Calls that can run at once."""
        return self._slots

    @property
    def busy(self) -> int:
        """Slots in use."""
        return len(self._calls)

    @property
    def ready(self) -> bool:
        """Whether its handlers can work: always, where they have no process of their own to start."""
        return self._probing is None

    @property
    def healthy(self) -> bool:
        """As `ready`. Whether a service on the other side works shows in the outcomes of its calls."""
        return self._probing is None

    @property
    def fault(self) -> str:
        """Why it is not healthy; empty where it is."""
        return self._fault

    def warm(self) -> WarmState:
        """Return nothing: no call is faster for what ran here before."""
        return WarmState()

    def start(self) -> None:
        """Do nothing: calls start by themselves."""

    async def close(self) -> None:
        """Cancel what still runs, and wait for it within the grace."""
        if self._probing is not None:
            await cancel([self._probing])
        for call in self._calls.values():
            call.cancel()
        if self._calls:
            await asyncio.wait(self._calls.values(), timeout=self._grace)

    async def execute(self, job: Job, *, expected_peers: bool = True) -> ChildDone:  # noqa: ARG002 -- calls run alone
        """Run a job once a slot is free; see `Runner.execute`. A caller that is cancelled withdraws it."""
        job.payload.number = next(self._numbers)
        job.waits_since = self._clock()
        self._waiting[job] = contextvars.copy_context()
        self._pump()
        try:
            return await job.ended
        except asyncio.CancelledError:
            self._stop(job)
            raise

    def withdraw(self, job: Job) -> None:
        """End a job early: one that waits at once, one that runs by cancelling its handler."""
        if job.withdrawn or job.ended.done():
            return
        job.withdrawn = True
        self._stop(job)

    def pause(self, job: Job) -> bool:
        """Ask a job that runs to stop where another attempt can go on; False where its handler does not."""
        context = self._contexts.get(job)
        if context is None or not self._pausable:
            return False
        context.pause()
        return True

    def _stop(self, job: Job) -> None:
        if job in self._waiting:
            del self._waiting[job]
            if not job.ended.done():
                job.ended.set_exception(Withdrawn())
            self._room.set()
        elif (call := self._calls.get(job)) is not None:
            call.cancel()
            asyncio.get_running_loop().call_later(self._grace, self._give_up, job)

    def _give_up(self, job: Job) -> None:
        if (call := self._calls.get(job)) is None:
            return
        _log.error("call_ignores_cancel", job_id=job.payload.job_id, task_type=job.pair.label)
        if not job.ended.done():
            job.ended.set_result(ChildDone(cancelled=ChildCancelled()))
        call.cancel()
        asyncio.get_running_loop().call_later(self._grace, self._give_up, job)

    def _pump(self) -> None:
        while self._waiting and len(self._calls) < self._slots:
            job = next(iter(self._waiting))
            context = self._waiting.pop(job)
            job.started = True
            job.on_start()
            metrics.slot_wait_seconds(job.pair.label).observe(self._clock() - job.waits_since)
            self._contexts[job] = JobContext(job.payload, job.on_progress, job.calls)
            call = asyncio.get_running_loop().create_task(self._call(job), context=context)
            self._calls[job] = call
            call.add_done_callback(partial(self._end, job))

    async def _call(self, job: Job) -> ChildDone:
        return done_of(await self._outcome(job))

    async def _outcome(self, job: Job) -> Output | Exception:
        handler = self._handlers.get(job.pair)
        if handler is None:
            return TaskFailed("This worker does not execute the type.", ERROR_CATEGORY_INTERNAL, retryable=False)
        try:
            return await handler.run(self._contexts[job])
        except asyncio.CancelledError:
            return TaskCancelled()
        except WorkerUnfit as unfit:
            self._rest(unfit.fault)
            raise
        except Exception as error:  # whatever it is ends its own job alone
            return error

    def _rest(self, fault: str) -> None:
        """Take no work until the probe finds that this worker can do it."""
        if self._probing is None:
            self._fault = fault
            self._probing = asyncio.get_running_loop().create_task(self._until_fit(), name="call-runner-probe")
            self._on_change()

    async def _until_fit(self) -> None:
        failures = 0
        while self._fault:
            failures += 1
            _log.error("worker_unfit", fault=self._fault, failures=failures)
            await self._pauses.after(failures)
            try:
                self._fault = await self._probe()
            except Exception:
                _log.exception("probe_failed")
        _log.info("worker_fit_again", failures=failures)
        self._probing = None
        self._room.set()
        self._on_change()

    def _end(self, job: Job, call: asyncio.Task[ChildDone]) -> None:
        del self._calls[job], self._contexts[job]
        if not job.ended.done():
            if call.cancelled():  # before it began
                job.ended.set_result(ChildDone(cancelled=ChildCancelled()))
            elif (unfit := call.exception()) is not None:
                job.ended.set_exception(unfit)
            else:
                job.ended.set_result(call.result())
        self._room.set()
        self._pump()
