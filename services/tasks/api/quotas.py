"""What a tenant may have of this installation: limits that are asked for, and those that hold up a create."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from meshkit.config import MeshSettings
from meshkit.quotas import CALLS, PROVIDER_CALLS, REQUESTS_PER_SECOND, STORAGE_BYTES, STREAMS, WAITING_TASKS, over_limit
from meshkit.stored_bytes import StoredBytes
from services.tasks.providers.domain import ProviderLimits
from services.tasks.store import TaskStore

# The database is asked so often for a tenant that creates; in between its creates are counted here.
_FRESH_SECONDS = 2.0
_TENANTS_KEPT = 10_000


@dataclass(slots=True)
class _Backlog:
    count: int = 0
    fresh_until: float = 0.0


@dataclass(frozen=True, slots=True)
class AppliedLimit:
    """A limit of a tenant.

    Attributes:
        used: How much of it is used; None where that is not counted for the whole installation.
        per_process: Whether each process counts for itself.
    """

    name: str
    most: int
    used: int | None = None
    per_process: bool = False


class TenantQuotas:
    """Holds tenants to their limits.

    Args:
        store: Knows how many tasks wait.
        stored: Knows how much is stored.
        settings: The limits.
        providers: Limits of calls to providers.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        store: TaskStore,
        stored: StoredBytes,
        settings: MeshSettings,
        providers: ProviderLimits | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._stored = stored
        self._settings = settings
        self._providers = providers or ProviderLimits()
        self._clock = clock
        self._waiting: OrderedDict[str, _Backlog] = OrderedDict()

    async def admit(self, tenant: str) -> None:
        """Count a task that is about to be created.

        Raises:
            MeshError: `EXHAUSTED` where the tenant has reached its limit of waiting tasks or of stored bytes.
        """
        self._stored.check(tenant)
        waiting = self._waiting.get(tenant)
        if waiting is None:
            waiting = self._waiting[tenant] = _Backlog()
            if len(self._waiting) > _TENANTS_KEPT:
                self._waiting.popitem(last=False)
        if self._clock() >= waiting.fresh_until:
            # Creates that come meanwhile go by the old number, so that one of them alone waits for the answer.
            waiting.fresh_until = self._clock() + _FRESH_SECONDS
            waiting.count = await self._store.waiting_of(tenant)
        most = self._settings.tenant_waiting_tasks
        if waiting.count >= most:
            raise over_limit(WAITING_TASKS, most, "tenant_waiting_tasks", retry_seconds=5)
        waiting.count += 1

    async def limits(self, tenant: str) -> Sequence[AppliedLimit]:
        """Return the limits of a tenant."""
        settings = self._settings
        limits = [
            AppliedLimit(WAITING_TASKS, settings.tenant_waiting_tasks, await self._store.waiting_of(tenant)),
            AppliedLimit(REQUESTS_PER_SECOND, settings.tenant_requests_per_second, per_process=True),
            AppliedLimit(CALLS, settings.tenant_max_calls, per_process=True),
            AppliedLimit(STREAMS, settings.tenant_max_streams, per_process=True),
        ]
        if settings.tenant_storage_bytes:
            used = await self._stored.count(tenant)
            limits.append(AppliedLimit(STORAGE_BYTES, settings.tenant_storage_bytes, used))
        if calls := self._providers.all_of_tenant(tenant):
            running = await self._store.calls_of(tenant)
            limits += [
                AppliedLimit(f"{PROVIDER_CALLS}/{provider}", most, running.get(provider, 0))
                for provider, most in calls.items()
            ]
        return limits
