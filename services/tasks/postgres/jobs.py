"""Jobs of other services: rows beside those of tasks, of another kind."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from meshkit.db import Connection, Database
from services.tasks.domain import TERMINAL, JobKind, TaskRecord
from services.tasks.errors import identifier_used
from services.tasks.postgres import columns, creates, endings, queries
from services.tasks.store import Creation

_FIND = f"SELECT {columns.SELECT} FROM tasks WHERE id = ANY(%b) AND kind <> 'TASK'"  # noqa: S608 -- fixed names


class PostgresJobs:
    """Implements `services.tasks.jobs.store.JobStore`.

    Args:
        db: The service's database, migrated.
    """

    def __init__(self, db: Database) -> None:
        self._db = db

    async def create(self, record: TaskRecord, expected_seconds: float) -> tuple[TaskRecord, bool]:
        """Write a job unless it exists: the job, and whether it is new."""

        async def body() -> tuple[TaskRecord, bool]:
            async with self._db.transaction() as conn:
                creation = Creation(record, response=b"", encode=lambda _: b"", named=True)
                existing, _ = await creates.insert_one(conn, creation)
                if existing is None:
                    await conn.execute(
                        "UPDATE tasks SET expected_seconds = %s WHERE id = %s", (expected_seconds, record.id)
                    )
            if existing is not None and (existing.kind, existing.tenant) != (record.kind, record.tenant):
                raise identifier_used(record.id)
            return existing or record, existing is None

        return await self._db.retrying(body)

    async def cancel(self, job_id: UUID) -> tuple[TaskRecord, TaskRecord] | None:
        """Cancel a job unless it ended: the job before and after; None where there is none."""

        async def body() -> tuple[TaskRecord, TaskRecord] | None:
            async with self._db.transaction() as conn:
                return await endings.cancel(conn, job_id) if await _locked(conn, job_id) is not None else None

        return await self._db.retrying(body)

    async def set_priority(self, job_id: UUID, priority: int) -> TaskRecord | None:
        """Change the order of a job that has not ended; the job as it stands, None where there is none."""

        def body(current: TaskRecord) -> TaskRecord:
            unchanged = current.state in TERMINAL or current.priority == priority
            return current if unchanged else current._replace(priority=priority)

        async with self._db.transaction() as conn:
            if await _locked(conn, job_id) is None:
                return None
            _, after = await queries.modify(conn, job_id, body)
            return after

    async def find(self, job_ids: Sequence[UUID]) -> list[TaskRecord]:
        """Return those of these jobs that exist."""
        async with self._db.connection() as conn:
            cursor = await conn.execute(_FIND, (list(job_ids),))
            return [columns.record(row) for row in await cursor.fetchall()]


async def _locked(conn: Connection, job_id: UUID) -> TaskRecord | None:
    record = await endings.lock(conn, job_id)
    return None if record is None or record.kind == JobKind.TASK else record
