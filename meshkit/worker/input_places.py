"""Places for attempts whose inputs come from other people's servers: bounded in all and for each tenant.

A server may send its picture as slowly as it likes. While an attempt waits for its inputs it holds a place here, and no
slot. Where all places of a tenant are taken, its next attempts wait; attempts of other tenants do not.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager


class InputPlaces:
    """Counts attempts whose inputs are on their way, and says which of them are fetched now.

    Args:
        places: Attempts that fetch at once.
        per_tenant: Those among them of one tenant.
    """

    def __init__(self, places: int, per_tenant: int) -> None:
        self._places = places
        self._per_tenant = per_tenant
        self._fetching: Counter[str] = Counter()
        self._arrived: Counter[str] = Counter()
        self._waiting: dict[str, list[asyncio.Future[None]]] = {}  # by tenant, which take turns

    @property
    def excess(self) -> int:
        """Attempts on their way beyond all places."""
        return max(0, self._arrived.total() - self._places)

    def arrive(self, tenant: str) -> None:
        """Count an attempt from its lease on; `leave` has to follow."""
        self._arrived[tenant] += 1

    def leave(self, tenant: str) -> None:
        """Count it no more: its inputs are there, or it has ended."""
        _less(self._arrived, tenant)

    def full_tenants(self) -> Collection[str]:
        """Return the tenants whose share, or whose last free place, is taken: no further attempt of theirs fits."""
        if not self._arrived:
            return ()
        if self._arrived.total() >= self._places:
            return tuple(self._arrived)
        return [tenant for tenant, count in self._arrived.items() if count >= self._per_tenant]

    @asynccontextmanager
    async def place(self, tenant: str) -> AsyncIterator[None]:
        """Hold a place while the inputs of one attempt are fetched; wait for one where none is free."""
        if self._has_room(tenant):
            self._fetching[tenant] += 1
        else:
            await self._turn(tenant)
        try:
            yield
        finally:
            _less(self._fetching, tenant)
            self._pass_on()

    def _has_room(self, tenant: str) -> bool:
        return self._fetching.total() < self._places and self._fetching[tenant] < self._per_tenant

    async def _turn(self, tenant: str) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(tenant, []).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # given and cancelled at once: the place is the next one's
                _less(self._fetching, tenant)
                self._pass_on()
            else:
                self._forget(tenant, turn)
            raise

    def _forget(self, tenant: str, turn: asyncio.Future[None]) -> None:
        waiting = self._waiting.get(tenant, [])
        if turn in waiting:
            waiting.remove(turn)
        if not waiting:
            self._waiting.pop(tenant, None)

    def _pass_on(self) -> None:
        """Give what is free to those that wait, a tenant at a time."""
        for tenant in list(self._waiting):
            if not self._has_room(tenant):
                continue
            waiting = [turn for turn in self._waiting.pop(tenant) if not turn.done()]
            if waiting:
                self._fetching[tenant] += 1
                waiting[0].set_result(None)
            if waiting[1:]:
                self._waiting[tenant] = waiting[1:]  # behind the other tenants


def _less(counter: Counter[str], key: str) -> None:
    counter[key] -= 1
    if not counter[key]:
        del counter[key]
