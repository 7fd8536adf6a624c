"""What jobs need of a database; every method is one transaction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol
from uuid import UUID

from services.tasks.domain import TaskRecord


class JobStore(Protocol):
    """Jobs: rows beside those of tasks, of another kind."""

    async def create(self, record: TaskRecord, expected_seconds: float) -> tuple[TaskRecord, bool]:
        """Write a job unless it exists: the job, and whether it is new.

        Raises:
            MeshError: `CONFLICT` where the identifier belongs to a task, or to another tenant's job.
        """
        ...

    async def cancel(self, job_id: UUID) -> tuple[TaskRecord, TaskRecord] | None:
        """Cancel a job unless it ended: the job before and after; None where there is none."""
        ...

    async def set_priority(self, job_id: UUID, priority: int) -> TaskRecord | None:
        """Change the order of a job that has not ended; the job as it stands, None where there is none."""
        ...

    async def find(self, job_ids: Sequence[UUID]) -> list[TaskRecord]:
        """Return those of these jobs that exist."""
        ...
