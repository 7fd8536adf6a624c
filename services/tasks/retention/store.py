"""What retention needs of a database; every method is one transaction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol
from uuid import UUID

from meshkit.retention import OldSample, PruneBatch
from services.tasks.retention.domain import RetentionKind, RetentionRule


class OldRows(NamedTuple):
    """How many rows are old, and their bytes."""

    rows: int
    bytes: int


class Forgotten(NamedTuple):
    """How many tasks or jobs were deleted, and which stay."""

    deleted: int
    kept: Sequence[UUID]


class RetentionStore(Protocol):
    """Rules, and what is old."""

    async def rules(self) -> list[RetentionRule]:
        """Return the rules that were set."""
        ...

    async def set_rule(self, kind: RetentionKind, tenant: str, days: int) -> None:
        """Set a rule."""
        ...

    async def remove_rule(self, kind: RetentionKind, tenant: str) -> None:
        """Remove a rule."""
        ...

    async def forget_jobs(self, job_ids: Sequence[UUID]) -> Forgotten:
        """Delete jobs that have ended."""
        ...

    async def forget_tasks_of(self, workflow_id: UUID) -> Forgotten:
        """Delete tasks of a workflow that have ended, some at a time."""
        ...

    async def hold(self, tenant: str, task_ids: Sequence[UUID], days: int = 1) -> None:
        """Keep a tenant's tasks for some days, however old they are; those that are held for longer stay so."""
        ...

    async def tenants_with_tasks(self) -> Sequence[str]:
        """Return the tenants that have tasks."""
        ...

    async def prune_tasks(self, tenant: str, days: int, after: object) -> PruneBatch:
        """Delete a batch of old tasks, and note their files for the sweeper."""
        ...

    async def old_tasks(self, tenant: str, days: int) -> OldSample:
        """Tell what is old."""
        ...

    async def tenants_with_deliveries(self) -> Sequence[str]:
        """Return the tenants that have deliveries."""
        ...

    async def prune_deliveries(self, tenant: str, days: int) -> PruneBatch:
        """Delete a batch of old deliveries."""
        ...

    async def old_deliveries(self, tenant: str, days: int) -> OldRows:
        """Tell what is old."""
        ...

    async def prune_identifiers(self, days: int) -> PruneBatch:
        """Delete a batch of identifiers of tasks that were deleted so many days ago."""
        ...

    async def tenants_with_usage(self) -> Sequence[str]:
        """Return the tenants that have days of usage."""
        ...

    async def prune_usage(self, tenant: str, days: int) -> PruneBatch:
        """Delete a batch of old days of usage."""
        ...

    async def old_usage(self, tenant: str, days: int) -> OldRows:
        """Tell what is old."""
        ...
