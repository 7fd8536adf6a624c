"""How many bytes tenants store, counted in the background from what the object store lists.

Nothing is counted where an object is written: workers, services and gateways write, and none knows of the others. The
count lags behind by minutes, so a tenant may pass its limit by what it writes in that time.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from meshkit.errors import MeshError
from meshkit.logging import get_logger
from meshkit.objects import ObjectStore
from meshkit.quotas import STORAGE_BYTES, over_limit

_log = get_logger(__name__)

_SETTING = "tenant_storage_bytes"
_TENANTS_KEPT = 10_000
_COUNTS_AT_ONCE = 2
# Until the next count: soon for a tenant above its limit, which deletes to write again; late for one far below it.
_FULL_SECONDS = 20.0
_NEAR_SECONDS = 300.0
_FAR_SECONDS = 3600.0
# Counting takes a hundredth of the time at most, however many objects there are.
_SHARE = 100.0


@dataclass(slots=True)
class _Count:
    bytes: int
    stale_at: float


class StoredBytes:
    """Knows roughly how much tenants store, and refuses those above the limit.

    Args:
        objects: The object store.
        most: Bytes that a tenant may store; 0 for any number.
        clock: Monotonic seconds.
    """

    def __init__(self, objects: ObjectStore, most: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._objects = objects
        self._most = most
        self._clock = clock
        self._known: OrderedDict[str, _Count] = OrderedDict()
        self._counting: dict[str, asyncio.Task[None]] = {}
        self._turns = asyncio.Semaphore(_COUNTS_AT_ONCE)

    def check(self, tenant: str, more: int = 0) -> None:
        """Refuse a tenant that stores too much, as far as is known; begin to count where that is long ago.

        Args:
            tenant: The tenant.
            more: Bytes that it is about to write.

        Raises:
            MeshError: `EXHAUSTED`.
        """
        if not self._most:
            return
        known = self._known.get(tenant)
        if known is None or self._clock() >= known.stale_at:
            self._begin(tenant)
        if known is None:
            return
        if known.bytes + more > self._most:
            known.stale_at = min(known.stale_at, self._clock() + _FULL_SECONDS)
            raise over_limit(STORAGE_BYTES, self._most, _SETTING, retry_seconds=60)
        known.bytes += more

    async def count(self, tenant: str) -> int | None:
        """Return how much a tenant stores; None where the store does not tell."""
        if tenant not in self._known:
            await asyncio.shield(self._begin(tenant))
        known = self._known.get(tenant)
        return None if known is None else known.bytes

    async def settled(self) -> None:
        """Wait for the counts under way."""
        await asyncio.gather(*self._counting.values())

    async def close(self) -> None:
        """Give up the counts under way."""
        counting = list(self._counting.values())
        for task in counting:
            task.cancel()
        await asyncio.gather(*counting, return_exceptions=True)

    def _begin(self, tenant: str) -> asyncio.Task[None]:
        task = self._counting.get(tenant)
        if task is None:
            task = self._counting[tenant] = asyncio.get_running_loop().create_task(self._count(tenant))
            task.add_done_callback(lambda _: self._counting.pop(tenant, None))
        return task

    async def _count(self, tenant: str) -> None:
        async with self._turns:
            begun, total = self._clock(), 0
            try:
                async for info in self._objects.walk(tenant):
                    total += info.size
            except MeshError as error:
                _log.warning("storage_not_counted", tenant=tenant, why=error.message)
                if (known := self._known.get(tenant)) is not None:
                    known.stale_at = self._clock() + _NEAR_SECONDS
                return
            now = self._clock()
            wait = _FULL_SECONDS if total >= self._most else _NEAR_SECONDS if total > self._most / 2 else _FAR_SECONDS
            self._known[tenant] = _Count(total, now + max(wait, _SHARE * (now - begun)))
            self._known.move_to_end(tenant)
            if len(self._known) > _TENANTS_KEPT:
                self._known.popitem(last=False)
