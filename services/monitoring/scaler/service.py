"""Use cases of the scaler: what the scheduler tells now, or that it is not known."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

from meshkit import metrics
from meshkit.errors import MeshError, invalid, unavailable
from meshkit.logging import get_logger
from services.monitoring.scaler.answers import QueueState, Trigger, TriggerError, active, trigger_of

_log = get_logger(__name__)

# KEDA asks for each trigger twice in a row, and gives up after about three seconds.
CACHED_SECONDS = 1.0
READ_SECONDS = 2.0
WATCH_SECONDS = 1.0

_READS = metrics.counter("scaler_reads", "Looks at the scheduler for KEDA, by outcome", ("outcome",))
_WATCHERS = metrics.gauge("scaler_watchers", "Streams that KEDA watches for activity")

ReadDemand = Callable[[], Awaitable[Mapping[str, QueueState]]]


class ScalerDesk:
    """Answers triggers.

    Args:
        read: Asks the scheduler for all queues.
        clock: Monotonic seconds.
        read_seconds: How long the scheduler may take.
        watch_seconds: How often a stream looks for a change.
    """

    def __init__(
        self,
        read: ReadDemand,
        *,
        clock: Callable[[], float] = time.monotonic,
        read_seconds: float = READ_SECONDS,
        watch_seconds: float = WATCH_SECONDS,
    ) -> None:
        self._read = read
        self._clock = clock
        self._read_seconds = read_seconds
        self._watch_seconds = watch_seconds
        self._states: Mapping[str, QueueState] = {}
        self._read_at = float("-inf")
        self._reading = asyncio.Lock()
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """End all streams in good order."""
        self._stopping.set()

    async def ask(self, metadata: Mapping[str, str]) -> tuple[Trigger, QueueState]:
        """Return what a trigger asks for, and the state of its queue, at most `CACHED_SECONDS` old.

        Raises:
            MeshError: `INVALID` for metadata that do not hold, `UNAVAILABLE` where the scheduler does not tell.
        """
        try:
            trigger = trigger_of(metadata)
        except TriggerError as error:
            path, _, message = str(error).partition(": ")
            raise invalid(path, message, "trigger") from None
        states = await self._current()
        if trigger.queue not in states:
            raise invalid("metadata.queue", f"Unknown queue {trigger.queue!r}", "unknown_queue")
        return trigger, states[trigger.queue]

    async def watch(self, metadata: Mapping[str, str]) -> AsyncIterator[bool]:
        """Tell whether a trigger is active, at first and whenever it changes, until `stop`.

        While the scheduler does not tell, nothing is said: the last answer stands.

        Raises:
            MeshError: As of `ask`, for the first answer.
        """
        _WATCHERS.inc()
        try:
            told = active(*await self.ask(metadata))
            yield told
            while not await self._stopped():
                try:
                    now = active(*await self.ask(metadata))
                except MeshError as error:
                    _log.info("scaler_not_told", reason=error.reason)
                    continue
                if now != told:
                    told = now
                    yield told
        finally:
            _WATCHERS.dec()

    async def _stopped(self) -> bool:
        try:
            async with asyncio.timeout(self._watch_seconds):
                await self._stopping.wait()
        except TimeoutError:
            return False
        return True

    async def _current(self) -> Mapping[str, QueueState]:
        async with self._reading:
            begun = self._clock()
            if begun - self._read_at >= CACHED_SECONDS:
                try:
                    async with asyncio.timeout(self._read_seconds):
                        self._states = await self._read()
                except (MeshError, TimeoutError) as error:
                    _READS.labels("failed").inc()
                    reason = error.reason if isinstance(error, MeshError) else "DEADLINE"
                    _log.warning("scaler_read_failed", reason=reason)
                    raise unavailable("The scheduler does not tell its demand", reason="DEMAND_UNKNOWN") from None
                _READS.labels("done").inc()
                self._read_at = begun
            return self._states
