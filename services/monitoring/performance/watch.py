"""Takes a snapshot of what the mesh bears every five seconds; each replica for itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TypeVar

import psutil

from meshkit.catalog import TASK_TYPES, MediaKind
from meshkit.logging import get_logger
from meshkit.loops import Loop
from services.monitoring.performance.domain import (
    GIGABYTE,
    RANGES,
    SNAPSHOT_SECONDS,
    DatabaseCounters,
    HostView,
    Snapshot,
    SnapshotRing,
    WorkView,
    findings,
    throughput,
    transactions_per_min,
)

_log = get_logger(__name__)

# Part of a snapshot that takes longer is left out.
LIMIT_SECONDS = 2.0
# A newer snapshot than this is the present.
_FRESH_SECONDS = 2 * SNAPSHOT_SECONDS
_Answer = TypeVar("_Answer")
IMAGE_TYPES = frozenset(
    name for name, spec in TASK_TYPES.items() if any(one.media is MediaKind.IMAGE for one in spec.outputs)
)


@dataclass(frozen=True, slots=True)
class Sources:
    """Who is asked; each raises where it does not know.

    Attributes:
        host: Reads the machine.
        work: Asks the tasks service, for so many seconds.
        database: Asks PostgreSQL.
        nats_version: Asks NATS for its version.
    """

    host: Callable[[], HostView]
    work: Callable[[float], Awaitable[WorkView]]
    database: Callable[[], Awaitable[DatabaseCounters]]
    nats_version: Callable[[], Awaitable[str]]


class PerformanceWatch:
    """Keeps the snapshots of the last hour.

    Args:
        sources: Who is asked.
        clock: Monotonic seconds.
        present: The present.
    """

    def __init__(
        self,
        sources: Sources,
        *,
        clock: Callable[[], float] = time.monotonic,
        present: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._sources = sources
        self._clock = clock
        self._present = present
        self.ring = SnapshotRing()

    def loop(self) -> Loop:
        """Return the loop that takes the snapshots."""
        return Loop("monitoring-performance", self.note, SNAPSHOT_SECONDS)

    async def note(self) -> None:
        """Keep a snapshot; body of a loop."""
        self.ring.add(await self._take())

    async def present(self) -> Snapshot:
        """Return the newest snapshot; one of its own where the loop has stood still."""
        newest = self.ring.newest
        if newest is not None and self._clock() - newest.monotonic <= _FRESH_SECONDS:
            return newest
        return await self._take()

    def history(self, time_range: str) -> list[Snapshot]:
        """Return the snapshots of a range (`5m`, `15m`, `60m`), oldest first."""
        return self.ring.since(self._present() - RANGES[time_range])

    async def _take(self) -> Snapshot:
        sources = self._sources
        work, database, nats_version = await asyncio.gather(
            _answer("tasks", sources.work(LIMIT_SECONDS)),
            _answer("postgresql", sources.database()),
            _answer("nats", sources.nats_version()),
        )
        snapshot = Snapshot(self._present(), self._clock(), sources.host(), work, database, nats_version)
        if database is not None:
            rate = transactions_per_min(self.ring.newest, database, snapshot.monotonic)
            snapshot = replace(snapshot, transactions_per_min=rate)
        lately = [*self.ring.lately(snapshot.monotonic), snapshot]
        snapshot = replace(snapshot, throughput=throughput(lately, IMAGE_TYPES))
        return replace(snapshot, alerts=findings(snapshot))


async def _answer(part: str, asked: Awaitable[_Answer]) -> _Answer | None:
    try:
        async with asyncio.timeout(LIMIT_SECONDS):
            return await asked
    except Exception as error:  # whatever is wrong with a part, the others are told
        _log.info("performance_part_silent", part=part, kind=type(error).__name__)
        return None


class HostGauge:
    """Reads the machine that this process runs on."""

    def __init__(self) -> None:
        psutil.cpu_percent()  # the load is that since the call before

    def read(self) -> HostView:
        """Return what it bears."""
        memory, disk = psutil.virtual_memory(), psutil.disk_usage("/")
        return HostView(
            psutil.cpu_percent(),
            memory.used / GIGABYTE,
            memory.total / GIGABYTE,
            memory.percent,
            disk.used / GIGABYTE,
            disk.total / GIGABYTE,
            disk.percent,
        )
