"""What a tenant may take of what all share: calls and streams at once, and requests a second.

Each process counts for itself. A tenant above its limit is told which limit it is and when to come again; others notice
nothing.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable

from meshkit import metrics
from meshkit.errors import ErrorKind, MeshError

_REFUSED = metrics.counter("quota_refusals", "Requests refused because of a limit of their tenant", ("limit",))

CALLS = "calls"
STREAMS = "streams"
REQUESTS_PER_SECOND = "requests_per_second"
WAITING_TASKS = "waiting_tasks"
STORAGE_BYTES = "storage_bytes"
PROVIDER_CALLS = "provider_calls"

_TENANTS_KEPT = 10_000
_BURST_SECONDS = 2.0


def over_limit(limit: str, most: int, setting: str, *, retry_seconds: int) -> MeshError:
    """Build and count the error: a tenant has reached one of its limits.

    Args:
        limit: Name of the limit, as `GetLimits` has it.
        most: The limit.
        setting: The setting that it comes from, in lower case without prefix.
        retry_seconds: When to come again.
    """
    _REFUSED.labels(limit).inc()
    return MeshError(
        ErrorKind.EXHAUSTED,
        f"The tenant has reached its limit of {most} {limit.replace('_', ' ')}; the operator sets it by "
        f"ATELIER_{setting.upper()}",
        reason=f"TENANT_{limit.upper()}",
        metadata={"limit": limit, "most": str(most), "retry_after": str(retry_seconds)},
    )


class TenantShare:
    """Counts what tenants hold at once, and refuses what is beyond a tenant's share.

    Args:
        limit: Name of the limit.
        most: What a tenant may hold.
        setting: The setting that it comes from.
    """

    def __init__(self, limit: str, most: int, setting: str) -> None:
        self._limit = limit
        self._most = most
        self._setting = setting
        self._held: Counter[str] = Counter()

    def enter(self, tenant: str) -> None:
        """Count one more; `leave` has to follow.

        Raises:
            MeshError: `EXHAUSTED`, and nothing is counted.
        """
        if self._held[tenant] >= self._most:
            raise over_limit(self._limit, self._most, self._setting, retry_seconds=2)
        self._held[tenant] += 1

    def leave(self, tenant: str) -> None:
        """Count one less."""
        self._held[tenant] -= 1
        if not self._held[tenant]:
            del self._held[tenant]


class TenantRates:
    """Lets each tenant make so many requests a second, and twice as many at once after a rest.

    Args:
        per_second: Requests a second.
        setting: The setting that it comes from.
        clock: Monotonic seconds.
    """

    def __init__(self, per_second: int, setting: str, clock: Callable[[], float]) -> None:
        self._per_second = per_second
        self._setting = setting
        self._clock = clock
        # By tenant the moment up to which its requests are paid for; one that rests is forgotten.
        self._paid: OrderedDict[str, float] = OrderedDict()

    def take(self, tenant: str) -> None:
        """Count a request.

        Raises:
            MeshError: `EXHAUSTED` where the tenant makes too many.
        """
        now = self._clock()
        paid = max(self._paid.get(tenant, 0.0), now) + 1.0 / self._per_second
        if paid - now > _BURST_SECONDS:
            raise over_limit(REQUESTS_PER_SECOND, self._per_second, self._setting, retry_seconds=1)
        self._paid[tenant] = paid
        self._paid.move_to_end(tenant)
        if len(self._paid) > _TENANTS_KEPT:
            self._paid.popitem(last=False)
