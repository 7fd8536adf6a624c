"""A bounded number of places with a share for each tenant; who finds none waits, and tenants that wait take turns."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class TenantPlaces:
    """Places that tenants hold while they use something scarce.

    Args:
        places: Places in all.
        per_tenant: Those among them of one tenant.
    """

    def __init__(self, places: int, per_tenant: int) -> None:
        self._places = places
        self._per_tenant = per_tenant
        self._held: Counter[str] = Counter()
        self._waiting: dict[str, list[asyncio.Future[None]]] = {}  # by tenant, in the order of their turns

    @asynccontextmanager
    async def place(self, tenant: str) -> AsyncIterator[None]:
        """Hold a place for as long as the context lasts; wait for it where none is free."""
        await self.take(tenant)
        try:
            yield
        finally:
            self.give_back(tenant)

    async def take(self, tenant: str) -> None:
        """Take a place; `give_back` has to follow."""
        if self._has_room(tenant):
            self._held[tenant] += 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(tenant, []).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # given and cancelled at once: the place is the next one's
                self.give_back(tenant)
            raise

    def give_back(self, tenant: str) -> None:
        """Give a place back, and to those that wait what is free."""
        self._held[tenant] -= 1
        if not self._held[tenant]:
            del self._held[tenant]
        for name in list(self._waiting):
            if not self._has_room(name):
                continue
            waiting = [turn for turn in self._waiting.pop(name) if not turn.done()]
            if waiting:
                self._held[name] += 1
                waiting[0].set_result(None)
            if waiting[1:]:
                self._waiting[name] = waiting[1:]  # behind the other tenants

    def _has_room(self, tenant: str) -> bool:
        return self._held.total() < self._places and self._held[tenant] < self._per_tenant
