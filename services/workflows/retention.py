"""Workflows that ended long ago are deleted with their files and tasks.

A workflow is hidden first, so that nobody resumes it, and its files are noted for the sweeper; then the tasks service
deletes its tasks; its row goes last. Whoever is killed in between leaves a hidden row that is old, and is found again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol
from uuid import UUID

from meshkit.objects import ObjectStore
from meshkit.retention import OldSample, PruneBatch, PruneEstimate, estimate
from services.workflows.task_calls import TaskCalls


class OldWorkflowStore(Protocol):
    """What deletion of old workflows needs of a database; see `PostgresOldWorkflows`."""

    async def tenants(self) -> Sequence[str]:
        """Return the tenants that have workflows."""
        ...

    async def window(self, tenant: str, days: int, after: Any) -> tuple[Sequence[UUID], Any]:
        """Return old workflows out of the next ones, and where these end; None at the end of all."""
        ...

    async def hide(self, workflow_ids: Sequence[UUID], days: int, *, files: bool) -> Sequence[UUID]:
        """Hide workflows and note their files for the sweeper."""
        ...

    async def remove(self, workflow_ids: Sequence[UUID]) -> int:
        """Delete hidden workflows; return how many."""
        ...

    async def old(self, tenant: str, days: int) -> OldSample:
        """Tell what is old."""
        ...


class OldWorkflows:
    """Workflows that have ended, with all that is theirs.

    Args:
        store: The database.
        tasks: The tasks service, which deletes their tasks.
        objects: The object store; None where there is none.
    """

    def __init__(self, store: OldWorkflowStore, tasks: TaskCalls, objects: ObjectStore | None) -> None:
        self._store = store
        self._tasks = tasks
        self._objects = objects

    async def tenants(self) -> Sequence[str]:
        """Return the tenants that have workflows."""
        return await self._store.tenants()

    async def prune(self, tenant: str, days: int, after: Any) -> PruneBatch:
        """Delete a batch; a workflow whose tasks are needed yet stays hidden until they are not."""
        found, place = await self._store.window(tenant, days, after)
        if not found:
            return PruneBatch(0, place)
        hidden = await self._store.hide(found, days, files=self._objects is not None)
        removed = [one for one in hidden if await self._tasks.forget_all(one)]
        return PruneBatch(await self._store.remove(removed), place)

    async def estimate(self, tenant: str, days: int) -> PruneEstimate:
        """Tell what would be deleted, without the tasks."""
        return await estimate(await self._store.old(tenant, days), self._objects, tenant)
