"""Whose image is decoded next: fair turns between tenants, under one budget of memory."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

_NO_BOUND = 1 << 62  # small images are bounded by the number of places


@dataclass(slots=True, eq=False)
class _Waiting:
    """An image that waits for its turn."""

    bytes: int
    turn: asyncio.Future[int]


@dataclass(slots=True)
class _Line:
    """Images of one size class. The tenant that was served least comes next, its own images in their order."""

    tenants: dict[str, deque[_Waiting]] = field(default_factory=dict)
    served: dict[str, int] = field(default_factory=dict)
    floor: int = 0

    def join(self, tenant: str, waiting: _Waiting) -> None:
        if tenant not in self.tenants:
            # Who was away has no claim on the past.
            self.served[tenant] = max(self.served.get(tenant, 0), self.floor)
            self.tenants[tenant] = deque()
        self.tenants[tenant].append(waiting)

    def leave(self, tenant: str, waiting: _Waiting) -> None:
        line = self.tenants.get(tenant)
        if line is not None and waiting in line:
            line.remove(waiting)
            self._drop_empty(tenant)

    def next(self, room: int) -> _Waiting | None:
        """Take the image whose turn it is; None where there is none, or where it does not fit: others wait for it."""
        if not self.tenants:
            return None
        tenant = min(self.tenants, key=self.served.__getitem__)
        waiting = self.tenants[tenant][0]
        if waiting.turn.done():  # it was cancelled, and has not yet left by itself
            self.leave(tenant, waiting)
            return self.next(room)
        if waiting.bytes > room:
            return None
        self.tenants[tenant].popleft()
        self.floor = self.served[tenant]
        self.served[tenant] += waiting.bytes
        self._drop_empty(tenant)
        return waiting

    def _drop_empty(self, tenant: str) -> None:
        if not self.tenants[tenant]:
            del self.tenants[tenant]
            if not self.tenants:
                self.floor = max(self.served.values())
            for gone in [one for one in self.served if one not in self.tenants and self.served[one] <= self.floor]:
                del self.served[gone]


class FairTurns:
    """Places in which images are decoded.

    The first place takes small images alone, so that none of them ever waits for a large one; the others take large
    ones first. Large images share one budget of memory.

    Args:
        places: How many are decoded at a time, at least two.
        large_bytes: Memory of all large images together.
    """

    def __init__(self, places: int, large_bytes: int) -> None:
        self._free = set(range(places))
        self._room = large_bytes
        self._small, self._large = _Line(), _Line()

    @property
    def waiting(self) -> int:
        """How many images wait."""
        return sum(len(line) for one in (self._small, self._large) for line in one.tenants.values())

    @asynccontextmanager
    async def turn(self, tenant: str, needed: int, *, large: bool) -> AsyncIterator[int]:
        """Wait for a place and keep it within the block.

        Args:
            tenant: Whose image it is.
            needed: Memory that it takes.
            large: Whether it counts against the budget of large images.

        Yields:
            The number of the place.
        """
        line = self._large if large else self._small
        waiting = _Waiting(needed, asyncio.get_running_loop().create_future())
        line.join(tenant, waiting)
        self._admit()
        try:
            place = await waiting.turn
        except asyncio.CancelledError:
            line.leave(tenant, waiting)
            if waiting.turn.done() and not waiting.turn.cancelled():
                # Its turn came in the moment in which it stopped to wait.
                self._release(waiting.turn.result(), needed if large else 0)
            raise
        try:
            yield place
        finally:
            self._release(place, needed if large else 0)

    def _release(self, place: int, room: int) -> None:
        self._free.add(place)
        self._room += room
        self._admit()

    def _admit(self) -> None:
        for place in sorted(self._free):
            waiting = None
            if place:
                waiting = self._large.next(self._room)
                if waiting is not None:
                    self._room -= waiting.bytes
            if waiting is None:
                waiting = self._small.next(_NO_BOUND)
            if waiting is not None:
                self._free.discard(place)
                waiting.turn.set_result(place)
