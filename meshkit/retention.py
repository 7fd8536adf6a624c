"""What has ended is deleted at an age, a little at a time, so that nobody waits for it.

A pass goes through the tenants that have an age, one batch a run. After each batch it rests for a multiple of the time
that the batch took, so that it takes a small share of the database's time, and less when that has much to do. Every
replica makes passes: a batch skips the rows that another has locked.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from meshkit import metrics
from meshkit.logging import get_logger
from meshkit.loops import Loop
from meshkit.objects import ObjectStore

_log = get_logger(__name__)

EVERYONE = "*"
"""Stands for all tenants that have no age of their own."""
INTERVAL_DESCRIPTION = "Pause between two passes in which a replica deletes what is old."
SHARE_DESCRIPTION = "Share of its time for which a pass deletes; it rests in between."
MOST_COUNTED = 1_000_000
"""A preview counts no further."""
SAMPLED = 1000
"""Rows whose bytes a preview adds up."""
MEASURED_FOLDERS = 100
"""Folders whose files a preview measures."""
# Where what is deleted by hand of another loop waits for that, so long until the next look.
_STALL_SECONDS = 1.0
_LISTS_AT_ONCE = 16
_LONGEST_REST_SECONDS = 30.0

_PRUNED = metrics.counter("retention_pruned", "Rows deleted because of their age", ("kind",))


@dataclass(frozen=True, slots=True)
class RetentionAges:
    """Days after which what is of a kind is deleted; 0 for never.

    Attributes:
        everyone: Those of tenants that have none of their own.
        tenants: Those of single tenants.
    """

    everyone: int = 0
    tenants: Mapping[str, int] = field(default_factory=dict)

    def of(self, tenant: str) -> int:
        """Return the days of a tenant."""
        return self.tenants.get(tenant, self.everyone)

    def replaced(self, tenant: str | None, days: int | None) -> RetentionAges:
        """Return them with other days for a tenant, or for all that have none of their own."""
        if days is None:
            return self
        if tenant is None:
            return RetentionAges(days, self.tenants)
        return RetentionAges(self.everyone, {**self.tenants, tenant: days})

    @property
    def keeps_all(self) -> bool:
        """Whether nothing is ever deleted."""
        return not self.everyone and not any(self.tenants.values())


class PruneBatch(NamedTuple):
    """What one batch did.

    Attributes:
        pruned: How many rows it deleted.
        after: Where the next one begins; None where it was the last of the tenant.
    """

    pruned: int
    after: Any = None


class PruneEstimate(NamedTuple):
    """What would be deleted.

    Attributes:
        rows: How many, counted up to `MOST_COUNTED`.
        bytes: Bytes of rows and files.
        is_estimated: Whether bytes were measured of some of them.
    """

    rows: int
    bytes: int
    is_estimated: bool = False


class OldSample(NamedTuple):
    """What of a tenant is old, and the oldest of it.

    Attributes:
        rows: How many there are.
        sampled: How many of them were looked at.
        row_bytes: Bytes of the rows of these.
        with_files: How many of these may have files.
        folders: Folders of the first of those.
    """

    rows: int
    sampled: int
    row_bytes: int
    with_files: int
    folders: Sequence[str]


async def estimate(old: OldSample, objects: ObjectStore | None, tenant: str) -> PruneEstimate:
    """Measure the files of a sample, and reckon from it what all have.

    Args:
        old: The sample.
        objects: The object store; None where there is none.
        tenant: Tenant of the files.
    """
    if not old.sampled:
        return PruneEstimate(0, 0)
    gate = asyncio.Semaphore(_LISTS_AT_ONCE)

    async def size(store: ObjectStore, folder: str) -> int:
        async with gate:
            return sum([info.size async for info in store.walk(tenant, folder)])

    folders = old.folders if objects is not None else ()
    files = sum(await asyncio.gather(*(size(objects, one) for one in folders))) if objects is not None else 0
    of_files = files * old.with_files / len(folders) if folders else 0.0
    is_estimated = old.sampled < old.rows or len(folders) < old.with_files
    return PruneEstimate(old.rows, round((old.row_bytes + of_files) * old.rows / old.sampled), is_estimated)


class PreviewLine(NamedTuple):
    """What of a tenant would be deleted at an age in days."""

    tenant: str
    days: int
    estimate: PruneEstimate


class PrunedKind(Protocol):
    """Something that is kept for a time."""

    async def tenants(self) -> Sequence[str]:
        """Return the tenants that have some of it."""
        ...

    async def prune(self, tenant: str, days: int, after: Any) -> PruneBatch:
        """Delete a batch of what of a tenant ended so many days ago.

        Args:
            tenant: The tenant.
            days: The age.
            after: Where the batch before ended; None at first.
        """
        ...

    async def estimate(self, tenant: str, days: int) -> PruneEstimate:
        """Tell what would be deleted of a tenant."""
        ...


class Pruning:
    """Deletes what of a kind is old.

    Args:
        name: Name of the kind, in metrics and logs.
        kind: What is deleted.
        ages: Asks how long it is kept.
        share: Share of the time in which it deletes.
    """

    def __init__(
        self, name: str, kind: PrunedKind, ages: Callable[[], Awaitable[RetentionAges]], *, share: float
    ) -> None:
        self._name = name
        self._kind = kind
        self._ages = ages
        self._rest = 1 / share - 1
        self._turn = asyncio.Lock()  # a pass is one caller's at a time
        self._left: deque[str] | None = None  # tenants of the pass under way
        self._after: Any = None
        self._pruned = 0

    def loop(self, name: str, interval_seconds: float) -> Loop:
        """Return the loop that makes passes; the interval is between two of them."""
        return Loop(name, self.run_once, interval_seconds, jitter=0.2)

    async def run_once(self) -> bool:
        """Delete one batch; body of a loop.

        Returns:
            Whether the pass goes on.
        """
        async with self._turn:
            return await self._run_once()

    async def _run_once(self) -> bool:
        # Asked for each batch: an age that is taken back ends what it began.
        ages = await self._ages()
        if self._left is None:
            if ages.keeps_all:
                return False
            self._left, self._after, self._pruned = deque(await self._kind.tenants()), None, 0
        while self._left and not ages.of(self._left[0]):
            self._left.popleft()
            self._after = None
        if not self._left:
            self._left = None
            if self._pruned:
                _log.info("retention_passed", kind=self._name, pruned=self._pruned)
            return False
        begun = time.perf_counter()
        tenant = self._left[0]
        batch = await self._kind.prune(tenant, ages.of(tenant), self._after)
        _PRUNED.labels(self._name).inc(batch.pruned)
        self._pruned += batch.pruned
        is_stalled = batch.after is not None and batch.after == self._after and not batch.pruned
        self._after = batch.after
        if batch.after is None:
            self._left.popleft()
        rest = (time.perf_counter() - begun) * self._rest
        await asyncio.sleep(min(max(rest, _STALL_SECONDS if is_stalled else 0.0), _LONGEST_REST_SECONDS))
        return True

    async def preview(self, tenant: str | None, days: int | None) -> list[PreviewLine]:
        """Tell what would be deleted now, by tenant.

        Args:
            tenant: Of this one alone.
            days: As if this were the age of the tenant, or of all that have none of their own.
        """
        ages = (await self._ages()).replaced(tenant, days)
        lines = []
        for one in sorted(await self._kind.tenants()) if tenant is None else [tenant]:
            if age := ages.of(one):
                estimate = await self._kind.estimate(one, age)
                if estimate.rows:
                    lines.append(PreviewLine(one, age, estimate))
        return lines
