"""Trainings that ended long ago, along an index that is there for lists."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from meshkit.db import Database
from meshkit.retention import MEASURED_FOLDERS, MOST_COUNTED, SAMPLED, OldSample

BATCH = 50

_TENANTS = """
WITH RECURSIVE found (tenant) AS (
    (SELECT tenant FROM trainings ORDER BY tenant LIMIT 1)
    UNION ALL
    SELECT (SELECT tenant FROM trainings t WHERE t.tenant > f.tenant ORDER BY t.tenant LIMIT 1)
    FROM found f WHERE f.tenant IS NOT NULL
)
SELECT tenant FROM found WHERE tenant IS NOT NULL
"""
_CUTOFF = "now() - make_interval(days => %(days)s::integer)"
# One that another goes on from is needed as long as that is there, and one whose webhook is still to be handed in.
_NEEDED = """(EXISTS (SELECT FROM trainings c WHERE c.continues = t.id)
    OR EXISTS (SELECT FROM webhook_handovers h WHERE h.training_id = t.id))"""
_IS_OLD = f"(t.completed_at <= {_CUTOFF} AND NOT {_NEEDED})"
_WINDOW = f"""
SELECT t.id, t.created_at, coalesce({_IS_OLD}, false) FROM trainings t
WHERE t.tenant = %(tenant)s AND t.created_at < {_CUTOFF} AND (t.created_at, t.id) > (%(at)s::timestamptz, %(id)s::uuid)
ORDER BY t.created_at, t.id LIMIT {BATCH}
"""  # noqa: S608 -- constants
_OPEN = f"SELECT id, tenant, request FROM trainings WHERE completed_at IS NULL AND id > %s ORDER BY id LIMIT {BATCH}"  # noqa: S608 -- constants
# Locked first: one that another began to go on from after a statement had begun is seen by the next statement alone.
_LOCK = "SELECT id FROM trainings WHERE id = ANY(%s::uuid[]) ORDER BY id FOR UPDATE SKIP LOCKED"
# The note is what tells of the files until the sweeper has deleted them. A trainer that has lost its lease may still
# write for a while after the end: a second note is for what comes after the first sweep.
_REMOVE = f"""
WITH gone AS (
    DELETE FROM trainings t WHERE id = ANY(%(ids)s::uuid[]) AND {_IS_OLD}
    RETURNING id, tenant, completed_at
), noted AS (
    INSERT INTO object_sweeps (training_id, tenant, path, due_at)
    SELECT id, tenant, 'trainings/' || id || '/', due_at FROM gone
    CROSS JOIN LATERAL (VALUES (now()), (completed_at + %(late)s * interval '1 second')) d (due_at)
    WHERE due_at >= now() ON CONFLICT DO NOTHING
)
SELECT count(*) FROM gone
"""  # noqa: S608 -- constants
_OLD = f"FROM trainings t WHERE t.tenant = %(tenant)s AND t.created_at < {_CUTOFF} AND {_IS_OLD}"
_COUNT = f"SELECT count(*) FROM (SELECT {_OLD} LIMIT {MOST_COUNTED}) o"  # noqa: S608 -- constants
_SAMPLE = f"SELECT t.id, pg_column_size(t.*) {_OLD} ORDER BY t.created_at, t.id LIMIT {SAMPLED}"


class TrainingPlace(NamedTuple):
    """Where a batch of trainings ended, in the order of their creation."""

    created_at: datetime | str
    id: UUID


_START = TrainingPlace("-infinity", UUID(int=0))


class PostgresOldTrainings:
    """Finds and removes old trainings.

    Args:
        db: The service's database, migrated.
        late_seconds: How long a late trainer may still write objects.
    """

    def __init__(self, db: Database, *, late_seconds: float = 120.0) -> None:
        self._db = db
        self._late = late_seconds

    async def tenants(self) -> Sequence[str]:
        """Return the tenants that have trainings."""
        async with self._db.connection() as conn:
            return [row[0] for row in await (await conn.execute(_TENANTS)).fetchall()]

    async def window(
        self, tenant: str, days: int, after: TrainingPlace | None
    ) -> tuple[Sequence[UUID], TrainingPlace | None]:
        """Return old trainings out of the next ones, and where these end; None at the end of all."""
        begin = after or _START
        values = {"tenant": tenant, "days": days, "at": begin.created_at, "id": begin.id}
        async with self._db.connection() as conn:
            rows = await (await conn.execute(_WINDOW, values)).fetchall()
        place = TrainingPlace(rows[-1][1], rows[-1][0]) if len(rows) == BATCH else None
        return [row[0] for row in rows if row[2]], place

    async def remove(self, training_ids: Sequence[UUID], days: int) -> int:
        """Delete old trainings and note their files for the sweeper; return how many."""
        async with self._db.transaction() as conn:
            locked = [row[0] for row in await (await conn.execute(_LOCK, (list(training_ids),))).fetchall()]
            cursor = await conn.execute(_REMOVE, {"ids": locked, "days": days, "late": self._late})
            [[count]] = await cursor.fetchall()
            return int(count)

    async def open_requests(self) -> AsyncIterator[Sequence[tuple[str, bytes]]]:
        """Yield the requests of trainings that have not ended, each with its tenant."""
        after = UUID(int=0)
        while True:
            async with self._db.connection() as conn:
                rows = await (await conn.execute(_OPEN, (after,))).fetchall()
            if not rows:
                return
            yield [(row[1], bytes(row[2])) for row in rows]
            after = rows[-1][0]

    async def is_needed(self, training_id: UUID) -> bool:
        """Whether a training has to stay, however long ago it ended."""
        async with self._db.connection() as conn:
            cursor = await conn.execute(f"SELECT {_NEEDED} FROM trainings t WHERE t.id = %s", (training_id,))  # noqa: S608 -- constants
            row = await cursor.fetchone()
            return row is not None and bool(row[0])

    async def old(self, tenant: str, days: int) -> OldSample:
        """Tell what is old."""
        async with self._db.connection() as conn:
            values = {"tenant": tenant, "days": days}
            [[rows]] = await (await conn.execute(_COUNT, values)).fetchall()
            sample = await (await conn.execute(_SAMPLE, values)).fetchall()
        folders = [f"trainings/{row[0]}/" for row in sample[:MEASURED_FOLDERS]]
        return OldSample(max(rows, len(sample)), len(sample), sum(row[1] for row in sample), len(sample), folders)
