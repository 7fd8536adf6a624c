"""The bound of a pool that takes one lease and is then over, for a process that Kubernetes runs as a Job."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

from meshkit.worker.held import HeldLease


class Carrier(Protocol):
    """What carries attempts; `Attempts` is one."""

    def capacity(self) -> int:
        """Return how many more attempts to lease now."""
        ...

    def accept(self, held: HeldLease) -> None:
        """Take an attempt, and bring it to its end."""
        ...

    async def idle(self) -> None:
        """Wait until nothing is carried."""
        ...


class OneLease:
    """Lets one lease through, and tells when it has ended, or when none came.

    Only answers count as none: while the scheduler is away, or before it was asked, nothing is over.

    Args:
        attempts: Carries the attempt.
        wait_seconds: How long a lease is waited for, from the first time that one is asked for.
        clock: Monotonic seconds.
    """

    def __init__(self, attempts: Carrier, wait_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._attempts = attempts
        self._wait_seconds = wait_seconds
        self._clock = clock
        self._asked: float | None = None
        self._decided = asyncio.Event()

    def capacity(self) -> int:
        """Return how many more attempts to lease now: one, until it came."""
        room = 0 if self._decided.is_set() else min(1, self._attempts.capacity())
        if room and self._asked is None:
            self._asked = self._clock()
        return room

    def accept(self, held: HeldLease) -> None:
        """Take the attempt; one that could not be accepted does not count."""
        self._attempts.accept(held)
        self._decided.set()

    def empty(self) -> None:
        """Note that the scheduler has answered that there is nothing."""
        if self._asked is not None and self._clock() - self._asked >= self._wait_seconds:
            self._decided.set()

    async def over(self) -> None:
        """Wait until the attempt has ended, however it did, or until it is clear that there is none."""
        await self._decided.wait()
        await self._attempts.idle()
