"""Attempts whose inputs come from other people's servers: bounded in all and for each tenant.

A server may send its picture as slowly as it likes. While an attempt waits for its inputs it holds a place here, and no
slot. Where all places of a tenant are taken, its next attempts wait; attempts of other tenants do not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from contextlib import AbstractAsyncContextManager

from meshkit.places import TenantPlaces


class InputPlaces:
    """Counts attempts whose inputs are on their way, and says which of them are fetched now.

    Args:
        places: Attempts that fetch at once.
        per_tenant: Those among them of one tenant.
    """

    def __init__(self, places: int, per_tenant: int) -> None:
        self._most = places
        self._per_tenant = per_tenant
        self._fetching = TenantPlaces(places, per_tenant)
        self._arrived: Counter[str] = Counter()

    @property
    def excess(self) -> int:
        """Attempts on their way beyond all places."""
        return max(0, self._arrived.total() - self._most)

    def arrive(self, tenant: str) -> None:
        """Count an attempt from its lease on; `leave` has to follow."""
        self._arrived[tenant] += 1

    def leave(self, tenant: str) -> None:
        """Count it no more: its inputs are there, or it has ended."""
        self._arrived[tenant] -= 1
        if not self._arrived[tenant]:
            del self._arrived[tenant]

    def full_tenants(self) -> Collection[str]:
        """Return the tenants whose share, or whose last free place, is taken: no further attempt of theirs fits."""
        if not self._arrived:
            return ()
        if self._arrived.total() >= self._most:
            return tuple(self._arrived)
        return [tenant for tenant, count in self._arrived.items() if count >= self._per_tenant]

    def place(self, tenant: str) -> AbstractAsyncContextManager[None]:
        """Hold a place while the inputs of one attempt are fetched; wait for one where none is free."""
        return self._fetching.place(tenant)
