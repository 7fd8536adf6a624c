"""Workflows that ended long ago, along an index that is there for lists."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from meshkit.db import Database
from meshkit.retention import MEASURED_FOLDERS, MOST_COUNTED, SAMPLED, OldSample
from services.workflows.files import folder_of

BATCH = 50

_TENANTS = """
WITH RECURSIVE found (tenant) AS (
    (SELECT tenant FROM workflows ORDER BY tenant LIMIT 1)
    UNION ALL
    SELECT (SELECT tenant FROM workflows w WHERE w.tenant > f.tenant ORDER BY w.tenant LIMIT 1)
    FROM found f WHERE f.tenant IS NOT NULL
)
SELECT tenant FROM found WHERE tenant IS NOT NULL
"""
_CUTOFF = "now() - make_interval(days => %(days)s::integer)"
# One whose webhook is still to be told, or a task of which is still to end, is needed yet.
_IS_OLD = f"""(w.completed_at < {_CUTOFF} AND (w.webhook_url IS NULL OR w.told_end IS NOT DISTINCT FROM w.completed_at)
    AND NOT EXISTS (SELECT FROM steps s WHERE s.workflow_id = w.id AND s.task_open))"""
_WINDOW = f"""
SELECT w.id, w.created_at, coalesce({_IS_OLD}, false) FROM workflows w
WHERE w.tenant = %(tenant)s AND w.created_at < {_CUTOFF} AND (w.created_at, w.id) > (%(at)s::timestamptz, %(id)s::uuid)
ORDER BY w.created_at, w.id LIMIT {BATCH}
"""  # noqa: S608 -- constants
_HIDE = f"""
WITH hidden AS (
    UPDATE workflows SET is_deleted = true, deleted_at = coalesce(deleted_at, now()), version = version + 1
    WHERE id = ANY(ARRAY(SELECT w.id FROM workflows w WHERE w.id = ANY(%(ids)s::uuid[]) AND {_IS_OLD}
        FOR UPDATE OF w SKIP LOCKED))
    RETURNING id, tenant
), noted AS (
    INSERT INTO file_sweeps (workflow_id, tenant) SELECT id, tenant FROM hidden WHERE %(files)s::boolean
    ON CONFLICT (workflow_id) DO UPDATE SET due_at = now()
)
SELECT id FROM hidden
"""  # noqa: S608 -- constants
_OPEN = f"SELECT id, tenant, config FROM workflows WHERE completed_at IS NULL AND id > %s ORDER BY id LIMIT {BATCH}"  # noqa: S608 -- constants
_REMOVE = "DELETE FROM workflows WHERE id = ANY(%s::uuid[]) AND is_deleted AND completed_at IS NOT NULL"
_OLD = f"FROM workflows w WHERE w.tenant = %(tenant)s AND w.created_at < {_CUTOFF} AND {_IS_OLD}"
_COUNT = f"SELECT count(*) FROM (SELECT {_OLD} LIMIT {MOST_COUNTED}) o"  # noqa: S608 -- constants
_SAMPLE = f"""
SELECT w.id, pg_column_size(w.*)
    + (SELECT coalesce(sum(pg_column_size(s.*)), 0) FROM steps s WHERE s.workflow_id = w.id)
{_OLD} ORDER BY w.created_at, w.id LIMIT {SAMPLED}
"""  # noqa: S608 -- constants


class WorkflowPlace(NamedTuple):
    """Where a batch of workflows ended, in the order of their creation."""

    created_at: datetime | str
    id: UUID


_START = WorkflowPlace("-infinity", UUID(int=0))


class PostgresOldWorkflows:
    """Finds, hides and removes old workflows.

    Args:
        db: The service's database, migrated.
    """

    def __init__(self, db: Database) -> None:
        self._db = db

    async def tenants(self) -> Sequence[str]:
        """Return the tenants that have workflows."""
        async with self._db.connection() as conn:
            return [row[0] for row in await (await conn.execute(_TENANTS)).fetchall()]

    async def window(
        self, tenant: str, days: int, after: WorkflowPlace | None
    ) -> tuple[Sequence[UUID], WorkflowPlace | None]:
        """Return old workflows out of the next ones, and where these end; None at the end of all."""
        begin = after or _START
        values = {"tenant": tenant, "days": days, "at": begin.created_at, "id": begin.id}
        async with self._db.connection() as conn:
            rows = await (await conn.execute(_WINDOW, values)).fetchall()
        place = WorkflowPlace(rows[-1][1], rows[-1][0]) if len(rows) == BATCH else None
        return [row[0] for row in rows if row[2]], place

    async def hide(self, workflow_ids: Sequence[UUID], days: int, *, files: bool) -> Sequence[UUID]:
        """Hide workflows, so that none goes on, and note their files for the sweeper.

        Args:
            workflow_ids: The workflows; one that another replica has is left out.
            days: Their age.
            files: Whether there is a store that may have files of theirs.

        Returns:
            Those that are hidden.
        """
        async with self._db.transaction() as conn:
            cursor = await conn.execute(_HIDE, {"ids": list(workflow_ids), "days": days, "files": files})
            return [row[0] for row in await cursor.fetchall()]

    async def remove(self, workflow_ids: Sequence[UUID]) -> int:
        """Delete hidden workflows with their steps; return how many."""
        async with self._db.transaction() as conn:
            return (await conn.execute(_REMOVE, (list(workflow_ids),))).rowcount

    async def open_requests(self) -> AsyncIterator[Sequence[tuple[str, bytes]]]:
        """Yield what the steps of workflows that have not ended are to do, each with its tenant."""
        after = UUID(int=0)
        while True:
            async with self._db.connection() as conn:
                whole = await (await conn.execute(_OPEN, (after,))).fetchall()
                if not whole:
                    return
                owners = {row[0]: row[1] for row in whole}
                cursor = await conn.execute(
                    "SELECT workflow_id, definition, item FROM steps WHERE workflow_id = ANY(%s)", (list(owners),)
                )
                steps = await cursor.fetchall()
            parts = [(row[1], row[2]) for row in whole]
            parts += [(owners[row[0]], part) for row in steps for part in row[1:] if part is not None]
            yield [(tenant, bytes(part)) for tenant, part in parts]
            after = whole[-1][0]

    async def old(self, tenant: str, days: int) -> OldSample:
        """Tell what is old."""
        async with self._db.connection() as conn:
            values = {"tenant": tenant, "days": days}
            [[rows]] = await (await conn.execute(_COUNT, values)).fetchall()
            sample = await (await conn.execute(_SAMPLE, values)).fetchall()
        folders = [folder_of(row[0]) for row in sample[:MEASURED_FOLDERS]]
        return OldSample(max(rows, len(sample)), len(sample), int(sum(row[1] for row in sample)), len(sample), folders)
