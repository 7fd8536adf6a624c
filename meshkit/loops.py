"""Named background work: a body that runs again and again, and whose failure never stops its service.

A body that raises is a failed run: the loop logs it, waits longer and goes on. A loop that ends although nobody told it
to has crashed: `KeptLoop` starts it again, after a pause that doubles, and gives it up after five crashes in a row.

A test can call the body; the loop around it adds interval, jitter, backoff and a metric.
"""

from __future__ import annotations

import asyncio
import enum
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from typing import Any, Self
from uuid import UUID, uuid4

from meshkit import metrics, tracing
from meshkit.logging import get_logger

_log = get_logger(__name__)

_RUNS = metrics.counter("loop_runs", "Runs of a background loop by outcome", ("loop", "outcome"))
_SECONDS = metrics.histogram("loop_run_seconds", "Duration of a loop's run", ("loop",))
_RESTARTS = metrics.counter("loop_restarts", "Starts of a loop that had ended by itself", ("loop",))
_LAST = metrics.gauge("loop_last_success_timestamp_seconds", "When a loop's body last ended well", ("loop",))
# Each combination of labels is looked up once: the look-up costs more than the counting.
_runs, _seconds, _last = cache(_RUNS.labels), cache(_SECONDS.labels), cache(_LAST.labels)

_CANCEL_AGAIN_SECONDS = 1.0
_MAX_BACKOFF_SECONDS = 60.0
# Before restart n: so long times 2^n, at most the bound above.
_RESTART_SECONDS = 1.0
MAX_RESTARTS = 5
# A loop that has run for so long without a crash has one restart less on its count.
_DECAY_SECONDS = 60.0
_KEPT_EVENTS = 50
# A loop counts as ailing after so many failures in a row, within a run of so long, and for so long after a restart.
_AILING_FAILURES = 3
_AILING_RUN_SECONDS = 300.0
_AILING_RESTART_SECONDS = 60.0


class Loop:
    """Runs a body, then waits for the interval or for a wake-up.

    Args:
        name: Name of the loop in logs and metrics.
        body: One run. Returning True means that there is more to do at once.
        interval_seconds: Pause between two runs.
        jitter: Share of the interval by which it varies either way, so that replicas do not run in step.
        wake: Ends a pause early; cleared before a run, so that a wake-up during it is not lost.
    """

    def __init__(
        self,
        name: str,
        body: Callable[[], Awaitable[object]],
        interval_seconds: float,
        jitter: float = 0.1,
        wake: asyncio.Event | None = None,
    ) -> None:
        self.name = name
        self.interval_seconds = interval_seconds
        self.failures = 0
        self.last_success: float | None = None
        self._begun: float | None = None  # of the run under way, monotonic seconds
        self._restarted: float | None = None
        self._body = body
        self._jitter = jitter
        self._wake = wake or asyncio.Event()

    def wake(self) -> None:
        """End the pause; call from the loop's own thread."""
        self._wake.set()

    @property
    def ailing(self) -> bool:
        """Whether its work does not get done: the body fails again and again or does not end, or the loop has ended."""
        now = time.perf_counter()
        return (
            self.failures >= _AILING_FAILURES
            or (self._begun is not None and now - self._begun > _AILING_RUN_SECONDS)
            or (self._restarted is not None and now - self._restarted < _AILING_RESTART_SECONDS)
        )

    def note_restart(self) -> None:
        """Count that it had ended by itself and is started again."""
        self._restarted = time.perf_counter()
        _RESTARTS.labels(self.name).inc()

    async def run_for_ever(self) -> None:
        """Run until cancelled."""
        # Replicas that start together spread their first runs.
        await self._pause(random.uniform(0, min(self.interval_seconds, 1.0)))  # noqa: S311 -- jitter
        while True:
            self._wake.clear()
            more = await self.run_once()
            if more:
                await asyncio.sleep(0)
                continue
            await self._pause(self._pause_seconds())

    async def run_once(self) -> bool:
        """Run the body once; log and count what it raises.

        Returns:
            Whether the body asks to be run again at once.
        """
        begun = self._begun = time.perf_counter()
        try:
            with tracing.activated(tracing.new()):
                more = await self._body() is True
        except (Exception, asyncio.CancelledError) as error:
            if isinstance(error, asyncio.CancelledError) and _asked_to_end():
                raise
            self.failures += 1
            _runs(self.name, "failed").inc()
            _log.exception("loop_failed", loop=self.name, failures=self.failures)
            return False
        finally:
            self._begun = None
            _seconds(self.name).observe(time.perf_counter() - begun)
        self.failures = 0
        self.last_success = time.time()
        _last(self.name).set(self.last_success)
        _runs(self.name, "done").inc()
        return more

    def _pause_seconds(self) -> float:
        spread = random.uniform(1 - self._jitter, 1 + self._jitter)  # noqa: S311 -- jitter, not a secret
        if not self.failures:
            return self.interval_seconds * spread
        return min(max(self.interval_seconds, 0.1) * 2.0 ** min(self.failures, 10), _MAX_BACKOFF_SECONDS) * spread

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            return
        if self.failures:
            # A wake-up must not turn a failing body into a busy loop.
            await asyncio.sleep(min(0.1 * 2.0 ** min(self.failures, 10), 5.0))


class LoopState(enum.StrEnum):
    """What a loop does right now."""

    RUNNING = "running"
    STOPPED = "stopped"
    CRASHED = "crashed"
    RESTARTING = "restarting"
    FAILED = "failed"


class LoopEventKind(enum.StrEnum):
    """What a line of a loop's history tells."""

    SUCCESS = "success"
    CRASHED = "crashed"
    FAILED = "failed"
    MANUAL = "manual"


@dataclass(frozen=True, slots=True)
class LoopEvent:
    """A line of a loop's history.

    Attributes:
        event_id: Tells it from all others.
        at: When it happened.
        attempt: Restarts on the loop's count: before a crash, after a restart.
        kind: What happened.
        error: What ended the loop.
    """

    event_id: UUID
    at: datetime
    attempt: int
    kind: LoopEventKind
    error: str | None = None


class KeptLoop:
    """A loop with the task that runs it: started, stopped, and started again when it ends by itself.

    Each loop waits for its restart in a task of its own, so none holds another up.

    Args:
        loop: The loop.
        on_change: Called whenever its state has changed.
    """

    def __init__(self, loop: Loop, on_change: Callable[[], None] = lambda: None) -> None:
        self.loop = loop
        self.state = LoopState.STOPPED
        self.started_at: datetime | None = None
        self.crashed_at: datetime | None = None
        self.error: str | None = None
        self.events: deque[LoopEvent] = deque(maxlen=_KEPT_EVENTS)
        self._on_change = on_change
        self._count = 0
        self._since = time.monotonic()
        self._task: asyncio.Task[None] | None = None

    @property
    def restart_count(self) -> int:
        """Restarts that still count: one less for each minute that the loop has run since the last."""
        if self.state is not LoopState.RUNNING:
            return self._count
        return max(0, self._count - int((time.monotonic() - self._since) / _DECAY_SECONDS))

    @property
    def ailing(self) -> bool:
        """Whether its work does not get done: it was given up, or is ailing."""
        return self.state is LoopState.FAILED or self.loop.ailing

    def start(self) -> None:
        """Start it, unless it runs or is about to; one that had failed begins with a count of zero."""
        if self._task is not None and not self._task.done():
            return
        if self.state is LoopState.FAILED:
            self._count = 0
        self._began()
        self._task = asyncio.create_task(self._keep(), name=f"loop-{self.loop.name}")

    async def stop(self) -> None:
        """Stop it, whatever it does; stopping a stopped one changes nothing."""
        task, self._task = self._task, None
        if task is not None:
            await cancel([task])
        self.loop.failures = 0  # one that was stopped is not ailing
        self._turn(LoopState.STOPPED)

    async def restart(self) -> None:
        """Stop it and start it anew, with a count of zero."""
        task, self._task = self._task, None
        self._turn(LoopState.RESTARTING)
        if task is not None:
            await cancel([task])
        self._count = 0
        self.start()

    def reset(self) -> None:
        """Set the count to zero; one that had failed is then stopped."""
        self._count = 0
        if self.state is LoopState.FAILED:
            self._turn(LoopState.STOPPED)
        self._on_change()

    async def _keep(self) -> None:
        while True:
            try:
                await self.loop.run_for_ever()
            except asyncio.CancelledError:
                if _asked_to_end():
                    raise
                cause = "CancelledError"  # of something within, which was cancelled itself
            except Exception as error:
                cause = type(error).__name__
            else:
                cause = "end"
            count = self._count = self.restart_count
            self.crashed_at, self.error = datetime.now(UTC), cause
            self._note(LoopEventKind.CRASHED, count, cause)
            if count >= MAX_RESTARTS:
                self._note(LoopEventKind.FAILED, count, cause)
                _log.error("loop_given_up", loop=self.loop.name, cause=cause, restarts=count)
                self._turn(LoopState.FAILED)
                return
            self._count = count + 1
            _log.error("loop_crashed", loop=self.loop.name, cause=cause, restarts=count)
            self._turn(LoopState.CRASHED)
            await asyncio.sleep(min(_RESTART_SECONDS * 2.0**count, _MAX_BACKOFF_SECONDS))
            self.loop.note_restart()
            self._note(LoopEventKind.SUCCESS, self._count)
            self._began()

    def _began(self) -> None:
        self.started_at = datetime.now(UTC)
        self._since = time.monotonic()
        self._turn(LoopState.RUNNING)

    def _turn(self, state: LoopState) -> None:
        if state is not self.state:
            self.state = state
            self._on_change()

    def _note(self, kind: LoopEventKind, attempt: int, error: str | None = None) -> None:
        self.events.append(LoopEvent(uuid4(), datetime.now(UTC), attempt, kind, error))


class Loops:
    """A service's loops, started and stopped together; an async context manager.

    Args:
        loops: The loops.
    """

    def __init__(self, *loops: Loop) -> None:
        self.kept = [KeptLoop(loop, self._changed) for loop in loops]
        self.on_change: Callable[[], None] = lambda: None
        self._running = False

    def add(self, loop: Loop) -> Loop:
        """Add a loop; start it if the others run already.

        Returns:
            The loop.
        """
        kept = KeptLoop(loop, self._changed)
        self.kept.append(kept)
        if self._running:
            kept.start()
        return loop

    def start(self) -> None:
        """Start all loops."""
        self._running = True
        for one in self.kept:
            one.start()

    async def stop(self) -> None:
        """Cancel all loops and wait for their end."""
        self._running = False
        await asyncio.gather(*(one.stop() for one in self.kept))

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.stop()

    @property
    def ailing(self) -> list[str]:
        """Names of the loops whose work does not get done."""
        return [one.loop.name for one in self.kept if one.ailing]

    def _changed(self) -> None:
        self.on_change()


def _asked_to_end() -> bool:
    """Whether the task itself was cancelled, not only something that it waited for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def cancel(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks and wait for their end, whatever it is.

    It cancels repeatedly: `asyncio.wait_for` of Python 3.11, which libraries use too, loses a cancellation that arrives
    together with its result. A task that runs for ever would then never end, nor would its waiter.

    Args:
        tasks: The tasks.
    """
    asked = list(tasks)
    pending = set(asked)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=_CANCEL_AGAIN_SECONDS)
    await asyncio.gather(*asked, return_exceptions=True)


def coalesced(work: Callable[[], None], delay_seconds: float) -> Callable[[], None]:
    """Call some work shortly after it was asked for, once for all requests in between.

    Args:
        work: The work; it must not raise.
        delay_seconds: Delay after the first request.

    Returns:
        A function that asks for the work; call it from the loop's own thread.
    """
    pending = False

    def run() -> None:
        nonlocal pending
        pending = False
        work()

    def ask() -> None:
        nonlocal pending
        if not pending:
            pending = True
            asyncio.get_running_loop().call_later(delay_seconds, run)

    return ask
