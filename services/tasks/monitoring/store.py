"""What monitoring needs of a database."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Protocol

from services.tasks.monitoring.celery import Roster
from services.tasks.monitoring.domain import (
    Fleet,
    ListedRow,
    ListedTask,
    QueueFigures,
    TaskCounts,
    TaskQuery,
    WorkFigures,
)


class MonitoringStore(Protocol):
    """Reads what operators see, and keeps the counters."""

    async def list_tasks(self, query: TaskQuery) -> tuple[Sequence[ListedTask], int, bool]:
        """Tasks of a page, how many there are in all, and whether that number is exact."""
        ...

    async def list_rows(self, query: TaskQuery) -> Sequence[ListedRow]:
        """Tasks in short, newest first, after the query's cursor."""
        ...

    async def counts(self, tenant: str | None, origin_instance: str | None, origin_zone: str | None) -> TaskCounts:
        """Count tasks; of all tenants where none is named."""
        ...

    async def queues(self, names: Collection[str], tenant: str | None) -> tuple[Sequence[QueueFigures], datetime]:
        """Tell of queues what waits and runs there, of all tenants where none is named, and when this was so."""
        ...

    async def fleet(self) -> Fleet:
        """Return the workers that are alive."""
        ...

    async def work_figures(self, names: Collection[str]) -> WorkFigures:
        """Tell how fast tasks are done, what waits in these queues, and what workers tell of themselves."""
        ...

    async def roster(self) -> Roster:
        """Return the workers that are alive, with what each holds and what waits for a time."""
        ...

    async def fold(self) -> None:
        """Add what was noted of changes to the counters, and forget minutes that nobody asks for any more."""
        ...
