"""What operators ask of tasks, queues and workers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from uuid import UUID

from meshkit.access import Caller
from services.tasks.api.service import TasksService
from services.tasks.catalog import QUEUES
from services.tasks.domain import TaskRecord
from services.tasks.monitoring.celery import CeleryStats, stats_of
from services.tasks.monitoring.domain import (
    Fleet,
    ListedRow,
    ListedTask,
    QueueFigures,
    TaskCounts,
    TaskQuery,
    WorkFigures,
)
from services.tasks.monitoring.store import MonitoringStore
from services.tasks.service_requests import ServiceRequestNote


class TaskMonitor:
    """Answers operators; a caller without `operator` or `support` sees its tenant's tasks.

    Args:
        store: The figures.
        tasks: The tasks themselves.
        broker: Address of the bus.
    """

    def __init__(self, store: MonitoringStore, tasks: TasksService, broker: str) -> None:
        self._store = store
        self._tasks = tasks
        self._broker = broker

    async def list_tasks(self, query: TaskQuery, caller: Caller) -> tuple[Sequence[ListedTask], int, bool]:
        """Tasks of a page, how many there are in all, and whether that number is exact.

        Raises:
            MeshError: `FORBIDDEN` where the caller may not see the tenant that it names.
        """
        return await self._store.list_tasks(replace(query, tenant=caller.listed_tenant(query.tenant)))

    async def list_rows(self, query: TaskQuery, caller: Caller) -> Sequence[ListedRow]:
        """Tasks in short, newest first, after the query's cursor.

        Raises:
            MeshError: `FORBIDDEN` where the caller may not see the tenant that it names.
        """
        return await self._store.list_rows(replace(query, tenant=caller.listed_tenant(query.tenant)))

    async def get(self, task_id: UUID, caller: Caller) -> TaskRecord:
        """Return a task.

        Raises:
            MeshError: `NOT_FOUND` where there is none for the caller.
        """
        return await self._tasks.get(task_id, caller)

    async def service_requests(self, task_id: UUID, caller: Caller) -> Sequence[ServiceRequestNote]:
        """Return the requests of a task to providers, oldest first."""
        return await self._tasks.service_requests(task_id, caller)

    async def counts(self, origin_instance: str | None, origin_zone: str | None, caller: Caller) -> TaskCounts:
        """Count tasks."""
        return await self._store.counts(caller.listed_tenant(None), origin_instance, origin_zone)

    async def queues(self, caller: Caller) -> tuple[Sequence[QueueFigures], datetime]:
        """Tell of every queue what waits and runs, and when this was so."""
        return await self._store.queues(QUEUES, caller.listed_tenant(None))

    async def fleet(self) -> Fleet:
        """Return the workers that are alive: they are the mesh's, and everybody's tasks run on them."""
        return await self._store.fleet()

    async def work_figures(self) -> WorkFigures:
        """Tell how fast tasks are done, what waits in every queue, and what workers tell of themselves."""
        return await self._store.work_figures(QUEUES)

    async def celery_stats(self) -> CeleryStats | None:
        """Tell of the workers as Celery does; None where there is none."""
        roster = await self._store.roster()
        return stats_of(roster, self._broker) if roster.workers else None
