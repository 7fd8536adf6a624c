"""Named background work: a body that runs again and again, and whose failure never stops its service.

A loop ends by its stop and by nothing else: what ends it otherwise is logged, and it is started again.

A test can call the body; the loop around it adds interval, jitter, backoff and a metric.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Self

from meshkit import metrics, tracing
from meshkit.logging import get_logger

_log = get_logger(__name__)

_RUNS = metrics.counter("loop_runs", "Runs of a background loop by outcome", ("loop", "outcome"))
_SECONDS = metrics.histogram("loop_run_seconds", "Duration of a loop's run", ("loop",))
_RESTARTS = metrics.counter("loop_restarts", "Starts of a loop that had ended by itself", ("loop",))
_LAST = metrics.gauge("loop_last_success_timestamp_seconds", "When a loop's body last ended well", ("loop",))

_CANCEL_AGAIN_SECONDS = 1.0
_MAX_BACKOFF_SECONDS = 60.0
_RESTART_SECONDS = 1.0
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

    async def keep_running(self) -> None:
        """Run until cancelled, and again whenever anything but its stop ends the run."""
        while True:
            try:
                await self.run_for_ever()
            except asyncio.CancelledError:
                if _asked_to_end():
                    raise
                cause = "CancelledError"  # of something within, which was cancelled itself
            except Exception as error:
                cause = type(error).__name__
            else:
                cause = "end"
            self._restarted = time.perf_counter()
            _RESTARTS.labels(self.name).inc()
            _log.error("loop_restarted", loop=self.name, cause=cause)
            await asyncio.sleep(_RESTART_SECONDS)

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
            _RUNS.labels(self.name, "failed").inc()
            _log.exception("loop_failed", loop=self.name, failures=self.failures)
            return False
        finally:
            self._begun = None
            _SECONDS.labels(self.name).observe(time.perf_counter() - begun)
        self.failures = 0
        self.last_success = time.time()
        _LAST.labels(self.name).set(self.last_success)
        _RUNS.labels(self.name, "done").inc()
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


class Loops:
    """A service's loops, started and stopped together; an async context manager.

    Args:
        loops: The loops.
    """

    def __init__(self, *loops: Loop) -> None:
        self.loops: list[Loop] = list(loops)
        self._tasks: list[asyncio.Task[None]] = []

    def add(self, loop: Loop) -> Loop:
        """Add a loop; start it if the others run already.

        Returns:
            The loop.
        """
        self.loops.append(loop)
        if self._tasks:
            self._tasks.append(self._spawn(loop))
        return loop

    def start(self) -> None:
        """Start all loops."""
        self._tasks = [self._spawn(loop) for loop in self.loops]

    async def stop(self) -> None:
        """Cancel all loops and wait for their end."""
        await cancel(self._tasks)
        self._tasks = []

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.stop()

    @staticmethod
    def _spawn(loop: Loop) -> asyncio.Task[None]:
        return asyncio.create_task(loop.keep_running(), name=f"loop-{loop.name}")

    @property
    def ailing(self) -> list[str]:
        """Names of the loops whose work does not get done."""
        return [loop.name for loop in self.loops if loop.ailing]


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
