"""What callers ask of usage, and the measuring of storage."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Protocol
from uuid import UUID

from meshkit.access import Caller
from meshkit.errors import invalid
from meshkit.objects import ObjectInfo
from services.tasks.usage.domain import StoredFigures, UsageFigures, UsageQuery, days_between
from services.tasks.usage.store import UsageStore

MOST_ROWS = 10_000
MEASURE_SECONDS = 3600.0
# A loop that comes round early measures all the same.
_MEASURED_SECONDS = MEASURE_SECONDS * 0.8
_LOOKED_UP = 1000


class StoredObjects(Protocol):
    """What is asked of the object store."""

    async def tenants(self) -> Sequence[str]:
        """Every tenant that has an object."""
        ...

    def walk(self, tenant: str, prefix: str = ..., page: int = ...) -> AsyncIterator[ObjectInfo]:
        """List all objects of a tenant."""
        ...


class TenantUsage:
    """Sums up usage; a caller without `operator` or `support` sees its tenant's.

    Args:
        store: The figures.
    """

    def __init__(self, store: UsageStore) -> None:
        self._store = store

    async def used(
        self,
        caller: Caller,
        *,
        first: str | None,
        last: str | None,
        by: Sequence[str],
        tenant: str | None,
        task_type: str | None,
        provider_type: str | None,
        model: str | None,
    ) -> tuple[UsageQuery, Sequence[UsageFigures], UsageFigures]:
        """Sum up what was used.

        Returns:
            What was asked for in full, the rows in their order, and all of it together.

        Raises:
            MeshError: `FORBIDDEN` where the caller may not see the tenant that it names, `INVALID` for days that are
                none and for more rows than an answer holds.
        """
        begin, end = days_between(first, last, await self._store.today())
        query = UsageQuery(
            begin,
            end,
            tuple(by) or ("day",),
            tenant=caller.listed_tenant(tenant),
            task_type=task_type,
            provider_type=provider_type,
            model=model,
        )
        found = await self._store.used(query, MOST_ROWS)
        if found is None:
            raise invalid("group_by", f"gives more than {MOST_ROWS} rows: ask for fewer days or dimensions", "too_long")
        return query, *found


class StorageMeasure:
    """Measures what tenants store, by what the object store lists.

    Nothing is counted where an object is written: workers, services and gateways write, and none knows of the others.

    Args:
        store: Keeps the figures.
        objects: The object store.
        types: Task type by the first folder of its objects.
    """

    def __init__(self, store: UsageStore, objects: StoredObjects, types: Mapping[str, str]) -> None:
        self._store = store
        self._objects = objects
        self._types = types
        self._waiting: list[str] = []

    async def measure(self) -> bool:
        """Measure one tenant that was not measured for a while; one that stores nothing any more too.

        Returns:
            Whether others wait.
        """
        if not self._waiting:
            self._waiting = sorted({*await self._objects.tenants(), *await self._store.measured()})
        while self._waiting:
            tenant = self._waiting.pop()
            if await self._store.claim(tenant, _MEASURED_SECONDS):
                await self._store.write_stored(tenant, await self._of(tenant))
                return bool(self._waiting)
        return False

    async def _of(self, tenant: str) -> list[StoredFigures]:
        sums: defaultdict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
        waiting: dict[UUID, list[tuple[str, int, int]]] = {}

        async def look_up() -> None:
            models = await self._store.models(list(waiting))
            for task_id, parts in waiting.items():
                for task_type, objects, size in parts:
                    _count(sums[task_type, models.get(task_id, "")], objects, size)
            waiting.clear()

        async for info in self._objects.walk(tenant):
            folder, _, rest = info.path.partition("/")
            task_type, task_id = self._types.get(folder), _identifier(rest.partition("/")[0])
            if task_type is None or task_id is None:
                _count(sums[task_type or folder, ""], 1, info.size)
                continue
            waiting.setdefault(task_id, []).append((task_type, 1, info.size))
            if len(waiting) >= _LOOKED_UP:
                await look_up()
        await look_up()
        return [StoredFigures(*key, *counted) for key, counted in sorted(sums.items())]


def _count(sums: list[int], objects: int, size: int) -> None:
    sums[0] += objects
    sums[1] += size


def _identifier(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None
