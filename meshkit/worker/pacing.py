"""How soon a worker polls again, and how long it waits after a failure.

A poll costs the mesh nearly as much for one task as for thirty.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from meshkit.lingers import POLL_LINGER

_MANY = 8
_BUSY_SECONDS = 0.02
_TURNOVER_SECONDS = 0.008


def pause(given: int, wanted: int, took_seconds: float) -> float:
    """Seconds to wait before the next poll.

    Args:
        given: Tasks that the last one was answered with.
        wanted: Tasks that it asked for.
        took_seconds: How long its answer took.
    """
    if given == wanted >= _MANY:
        # More waits there. A poll at once could ask for no more than is held beside what was just given, and small
        # tasks are over in a moment.
        return _TURNOVER_SECONDS
    if given >= _MANY or (0 < given < wanted and took_seconds < _BUSY_SECONDS):
        return POLL_LINGER  # work keeps coming
    return 0.0


@dataclass(frozen=True, slots=True)
class Backoff:
    """Pauses that double from `first` to `last` seconds, each shortened at random by up to a half."""

    first: float = 0.1
    last: float = 2.0

    def pause(self, failures: int) -> float:
        """Seconds to wait after so many failures in a row."""
        ceiling = min(self.last, self.first * 2.0 ** min(max(failures - 1, 0), 16))
        return ceiling * random.uniform(0.5, 1.0)  # noqa: S311 -- jitter, not a secret


class Pauses:
    """Waits, by an injected clock.

    Args:
        backoff: Pauses after failures.
        sleep: Waits so many seconds.
    """

    def __init__(
        self, backoff: Backoff | None = None, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    ) -> None:
        self._backoff = backoff or Backoff()
        self.sleep = sleep

    async def after(self, failures: int, until: asyncio.Event | None = None, longest: float = 60.0) -> None:
        """Wait after so many failures in a row, though not beyond the event."""
        seconds = min(self._backoff.pause(failures), longest)
        await (self.sleep(seconds) if until is None else self.wait(until, seconds))

    async def wait(self, event: asyncio.Event, seconds: float) -> None:
        """Wait for the event, at most so many seconds."""
        waiters = {asyncio.ensure_future(event.wait()), asyncio.ensure_future(self.sleep(seconds))}
        try:
            await asyncio.wait(waiters, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for waiter in waiters:
                waiter.cancel()
