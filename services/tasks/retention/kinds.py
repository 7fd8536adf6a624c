"""What this service keeps for a time: tasks, deliveries of webhooks, days of usage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from meshkit.objects import ObjectStore
from meshkit.retention import EVERYONE, PruneBatch, PruneEstimate, estimate
from services.tasks.retention.store import RetentionStore


class OldTaskRows:
    """Tasks that have ended, with all that is theirs.

    Args:
        store: The database.
        objects: Tells how large files are.
    """

    def __init__(self, store: RetentionStore, objects: ObjectStore) -> None:
        self._store = store
        self._objects = objects

    async def tenants(self) -> Sequence[str]:
        """Return the tenants that have tasks."""
        return await self._store.tenants_with_tasks()

    async def prune(self, tenant: str, days: int, after: Any) -> PruneBatch:
        """Delete a batch."""
        return await self._store.prune_tasks(tenant, days, after)

    async def estimate(self, tenant: str, days: int) -> PruneEstimate:
        """Tell what would be deleted."""
        return await estimate(await self._store.old_tasks(tenant, days), self._objects, tenant)


class OldDeliveries:
    """Deliveries of webhooks that have ended, with their attempts.

    Args:
        store: The database.
    """

    def __init__(self, store: RetentionStore) -> None:
        self._store = store

    async def tenants(self) -> Sequence[str]:
        """Return the tenants that have deliveries."""
        return await self._store.tenants_with_deliveries()

    async def prune(self, tenant: str, days: int, after: Any) -> PruneBatch:
        """Delete a batch."""
        del after
        return await self._store.prune_deliveries(tenant, days)

    async def estimate(self, tenant: str, days: int) -> PruneEstimate:
        """Tell what would be deleted."""
        return PruneEstimate(*await self._store.old_deliveries(tenant, days))


class OldIdentifiers:
    """Identifiers of deleted tasks, of all tenants together.

    Args:
        store: The database.
    """

    def __init__(self, store: RetentionStore) -> None:
        self._store = store

    async def tenants(self) -> Sequence[str]:
        """Return what stands for all tenants."""
        return [EVERYONE]

    async def prune(self, tenant: str, days: int, after: Any) -> PruneBatch:
        """Delete a batch."""
        del tenant, after
        return await self._store.prune_identifiers(days)

    async def estimate(self, tenant: str, days: int) -> PruneEstimate:
        """Tell nothing: they take next to no room."""
        del tenant, days
        return PruneEstimate(0, 0)


class OldUsage:
    """Days of usage, of providers' calls and of stored bytes.

    Args:
        store: The database.
    """

    def __init__(self, store: RetentionStore) -> None:
        self._store = store

    async def tenants(self) -> Sequence[str]:
        """Return the tenants that have days of usage."""
        return await self._store.tenants_with_usage()

    async def prune(self, tenant: str, days: int, after: Any) -> PruneBatch:
        """Delete a batch."""
        del after
        return await self._store.prune_usage(tenant, days)

    async def estimate(self, tenant: str, days: int) -> PruneEstimate:
        """Tell what would be deleted."""
        return PruneEstimate(*await self._store.old_usage(tenant, days))
