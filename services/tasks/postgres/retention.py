"""What is old is deleted in batches, along indexes that are there for other reasons; rows that are locked are skipped.

A task goes in one statement: its files are noted for the sweeper, which deletes them and then the note; its identifier
is noted as used; its row goes, and with it its attempts and requests. So whoever is killed leaves nothing behind. What
was counted of it stays in `usage_days`, and the counters of tasks follow by their triggers.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from psycopg.types.json import Jsonb

from meshkit.catalog import TASK_TYPES
from meshkit.db import Connection, Database
from meshkit.retention import MEASURED_FOLDERS, MOST_COUNTED, SAMPLED, OldSample, PruneBatch
from services.tasks.catalog import prefix_of
from services.tasks.postgres.planning import HOT
from services.tasks.retention.domain import RetentionKind, RetentionRule
from services.tasks.retention.store import Forgotten, OldRows

BATCH = 200
_ROWS = 1000
# Folders that wait for the sweeper: no more tasks are deleted before there are less.
_MOST_FOLDERS = 2000
_ZERO = UUID(int=0)

# From tenant to tenant along an index.
_TENANTS = """
WITH RECURSIVE found (tenant) AS (
    (SELECT tenant FROM {table} ORDER BY tenant LIMIT 1)
    UNION ALL
    SELECT (SELECT tenant FROM {table} t WHERE t.tenant > f.tenant ORDER BY t.tenant LIMIT 1)
    FROM found f WHERE f.tenant IS NOT NULL
)
SELECT tenant FROM found WHERE tenant IS NOT NULL
"""
_TASK_TENANTS = _TENANTS.format(table="tasks")
_DELIVERY_TENANTS = _TENANTS.format(table="webhook_deliveries")
_USAGE_TABLES = ("usage_days", "provider_usage", "stored_days")
_USAGE_TENANTS = " UNION ".join(f"SELECT tenant FROM {table}" for table in _USAGE_TABLES) + " ORDER BY tenant"  # noqa: S608 -- constants

_CUTOFF = "now() - make_interval(days => %(days)s::integer)"
# What ended so long ago was created before: no index is by the time of the end, which every task would pay for.
_WINDOW = f"""
SELECT id, created_at, kind = 'TASK' AND workflow_id IS NULL AND coalesce(completed_at < {_CUTOFF}, false) FROM tasks
WHERE tenant = %(tenant)s AND created_at < {_CUTOFF} AND (created_at, id) > (%(at)s::timestamptz, %(id)s::uuid)
ORDER BY created_at, id LIMIT {BATCH}
"""  # noqa: S608 -- constants
_NEEDED = """(EXISTS (SELECT FROM webhook_deliveries d WHERE d.entity_id = t.id AND d.status = 'PENDING')
        OR EXISTS (SELECT FROM task_holds h WHERE h.task_id = t.id AND h.held_until > now()))"""
# All files of its own bear the task's identifier in their paths, and the row tells of them.
_HAS_FILES = """(t.result_objects <> '{}' OR position(convert_to(t.id::text, 'UTF8') IN t.spec) > 0
        OR position(convert_to(t.id::text, 'UTF8') IN t.body) > 0)"""
_FORGET = f"""
WITH chosen AS MATERIALIZED (
    SELECT t.id, t.tenant, t.task_type, t.kind, {_HAS_FILES} AS has_files FROM tasks t
    WHERE t.id = ANY(%(ids)s::uuid[]) AND t.completed_at < {_CUTOFF} AND NOT {_NEEDED}
    FOR UPDATE OF t SKIP LOCKED
), retired AS (
    INSERT INTO task_ids (id, tenant, deleted_at) SELECT id, tenant, now() FROM chosen WHERE kind = 'TASK'
    ON CONFLICT DO NOTHING
), swept AS (
    INSERT INTO object_sweeps (task_id, tenant, prefix, due_at)
    SELECT id, tenant, (%(folders)s::jsonb ->> task_type) || '/' || id || '/', now() - interval '1 day'
    FROM chosen WHERE kind = 'TASK' AND has_files
    ON CONFLICT DO NOTHING
), gone AS (
    DELETE FROM tasks t USING chosen c WHERE t.id = c.id RETURNING t.id
)
SELECT count(*) FROM gone
"""  # noqa: S608 -- constants
_HOLD = """
INSERT INTO task_holds (task_id, held_until)
SELECT id, now() + make_interval(days => %s::integer) FROM tasks WHERE id = ANY(%s::uuid[]) AND tenant = %s ORDER BY id
ON CONFLICT (task_id) DO UPDATE SET held_until = greatest(task_holds.held_until, excluded.held_until)
"""
_WAITING_FOLDERS = f"""
SELECT count(*) > {_MOST_FOLDERS} FROM (
    SELECT FROM object_sweeps WHERE due_at < now() - interval '1 hour' ORDER BY due_at LIMIT {_MOST_FOLDERS} + 1) s
"""  # noqa: S608 -- constants
_OLD = f"""
FROM tasks t WHERE t.tenant = %(tenant)s AND t.created_at < {_CUTOFF} AND t.completed_at < {_CUTOFF}
    AND t.kind = 'TASK' AND t.workflow_id IS NULL AND NOT {_NEEDED}
"""
_COUNT_OLD = f"SELECT count(*) FROM (SELECT {_OLD} LIMIT {MOST_COUNTED}) o"  # noqa: S608 -- constants
_SAMPLE_OLD = (
    f"SELECT t.id, t.task_type, pg_column_size(t.*), {_HAS_FILES} {_OLD} ORDER BY t.created_at, t.id LIMIT {SAMPLED}"
)
_OF_WORKFLOW = "SELECT id FROM tasks WHERE workflow_id = %s"

_OLD_DELIVERIES = f"""
FROM webhook_deliveries WHERE tenant = %(tenant)s AND created_at < {_CUTOFF} AND ended_at < {_CUTOFF}
"""
_PRUNE_DELIVERIES = f"""
DELETE FROM webhook_deliveries WHERE id = ANY(ARRAY(
    SELECT id {_OLD_DELIVERIES} ORDER BY created_at, id LIMIT {_ROWS} FOR UPDATE SKIP LOCKED))
"""  # noqa: S608 -- constants
_COUNT_DELIVERIES = f"""
SELECT count(*), coalesce(sum(bytes), 0)::bigint
FROM (SELECT octet_length(body) + 200 AS bytes {_OLD_DELIVERIES} LIMIT {MOST_COUNTED}) o
"""  # noqa: S608 -- constants

_PRUNE_IDENTIFIERS = f"""
DELETE FROM task_ids WHERE id = ANY(ARRAY(
    SELECT id FROM task_ids WHERE deleted_at < {_CUTOFF} ORDER BY deleted_at LIMIT {_ROWS} FOR UPDATE SKIP LOCKED))
"""  # noqa: S608 -- constants

_OLD_USAGE = "FROM {table} WHERE tenant = %(tenant)s AND day < (now() AT TIME ZONE 'UTC')::date - %(days)s::integer"
_PRUNE_USAGE = tuple(
    f"DELETE FROM {table} WHERE ctid = ANY(ARRAY("  # noqa: S608 -- constants
    f"SELECT ctid {_OLD_USAGE.format(table=table)} LIMIT {_ROWS} FOR UPDATE SKIP LOCKED))"
    for table in _USAGE_TABLES
)
_COUNT_USAGE = tuple(
    f"SELECT count(*), coalesce(sum(pg_column_size({table}.*)), 0)::bigint {_OLD_USAGE.format(table=table)}"
    for table in _USAGE_TABLES
)


class TaskPlace(NamedTuple):
    """Where a batch of tasks ended, in the order of their creation."""

    created_at: datetime | str
    id: UUID


START = TaskPlace("-infinity", _ZERO)


class PostgresRetention:
    """Implements `services.tasks.retention.store.RetentionStore`.

    Args:
        db: The service's database, migrated.
    """

    def __init__(self, db: Database) -> None:
        self._db = db
        self._folders = Jsonb({name: spec.prefix for name, spec in TASK_TYPES.items()})

    async def rules(self) -> list[RetentionRule]:
        """Return the rules that were set."""
        async with self._db.connection() as conn:
            cursor = await conn.execute("SELECT kind, tenant, days, set_at FROM retention_rules")
            return [RetentionRule(RetentionKind(kind), *rest) for kind, *rest in await cursor.fetchall()]

    async def set_rule(self, kind: RetentionKind, tenant: str, days: int) -> None:
        """Set a rule."""
        async with self._db.transaction() as conn:
            await conn.execute(
                "INSERT INTO retention_rules (kind, tenant, days) VALUES (%s, %s, %s) "
                "ON CONFLICT (kind, tenant) DO UPDATE SET days = excluded.days, set_at = now()",
                (kind.value, tenant, days),
            )

    async def remove_rule(self, kind: RetentionKind, tenant: str) -> None:
        """Remove a rule."""
        async with self._db.transaction() as conn:
            await conn.execute("DELETE FROM retention_rules WHERE kind = %s AND tenant = %s", (kind.value, tenant))

    async def forget_jobs(self, job_ids: Sequence[UUID]) -> Forgotten:
        """Delete jobs that have ended."""
        async with self._db.pipeline(settings=HOT) as conn:
            count = await self._forget(conn, job_ids, 0)
            cursor = await conn.execute("SELECT id FROM tasks WHERE id = ANY(%b)", (list(job_ids),))
            return Forgotten(count, [row[0] for row in await cursor.fetchall()])

    async def forget_tasks_of(self, workflow_id: UUID) -> Forgotten:
        """Delete tasks of a workflow that have ended, some at a time."""
        async with self._db.pipeline(settings=HOT) as conn:
            ended = await conn.execute(f"{_OF_WORKFLOW} AND completed_at IS NOT NULL LIMIT {_ROWS}", (workflow_id,))
            count = await self._forget(conn, [row[0] for row in await ended.fetchall()], 0)
            kept = await conn.execute(f"{_OF_WORKFLOW} LIMIT 10", (workflow_id,))
            return Forgotten(count, [row[0] for row in await kept.fetchall()])

    async def hold(self, tenant: str, task_ids: Sequence[UUID], days: int = 1) -> None:
        """Keep a tenant's tasks for some days, however old they are; forget those that are held no more."""
        async with self._db.transaction() as conn:
            await conn.execute(_HOLD, (days, list(task_ids), tenant))
            await conn.execute("DELETE FROM task_holds WHERE held_until < now()")

    async def tenants_with_tasks(self) -> Sequence[str]:
        """Return the tenants that have tasks."""
        return await self._tenants(_TASK_TENANTS)

    async def prune_tasks(self, tenant: str, days: int, after: object) -> PruneBatch:
        """Delete a batch of old tasks, and note their files for the sweeper."""
        place = after if isinstance(after, TaskPlace) else START
        # A crash of PostgreSQL itself may undo the deletion, which is repeated then.
        async with self._db.pipeline(durable=False, settings=HOT) as conn:
            waiting = await conn.execute(_WAITING_FOLDERS)
            window = await conn.execute(
                _WINDOW, {"tenant": tenant, "days": days, "at": place.created_at, "id": place.id}
            )
            if (await waiting.fetchone() or (False,))[0]:
                return PruneBatch(0, place)
            rows = await window.fetchall()
            count = await self._forget(conn, [row[0] for row in rows if row[2]], days)
        last = rows[-1] if len(rows) == BATCH else None
        return PruneBatch(count, None if last is None else TaskPlace(last[1], last[0]))

    async def old_tasks(self, tenant: str, days: int) -> OldSample:
        """Tell what is old."""
        async with self._db.connection() as conn:
            values = {"tenant": tenant, "days": days}
            [[rows]] = await (await conn.execute(_COUNT_OLD, values)).fetchall()
            sample = await (await conn.execute(_SAMPLE_OLD, values)).fetchall()
        filed = [prefix_of(task_type, task_id) for task_id, task_type, _, has_files in sample if has_files]
        # A task may have grown old between the two.
        return OldSample(
            max(rows, len(sample)), len(sample), sum(row[2] for row in sample), len(filed), filed[:MEASURED_FOLDERS]
        )

    async def tenants_with_deliveries(self) -> Sequence[str]:
        """Return the tenants that have deliveries."""
        return await self._tenants(_DELIVERY_TENANTS)

    async def prune_deliveries(self, tenant: str, days: int) -> PruneBatch:
        """Delete a batch of old deliveries."""
        return await self._prune((_PRUNE_DELIVERIES,), tenant, days)

    async def old_deliveries(self, tenant: str, days: int) -> OldRows:
        """Tell what is old."""
        return await self._old((_COUNT_DELIVERIES,), tenant, days)

    async def prune_identifiers(self, days: int) -> PruneBatch:
        """Delete a batch of identifiers of tasks that were deleted so many days ago."""
        async with self._db.transaction() as conn:
            count = (await conn.execute(_PRUNE_IDENTIFIERS, {"days": days})).rowcount
        return PruneBatch(count, count == _ROWS or None)

    async def tenants_with_usage(self) -> Sequence[str]:
        """Return the tenants that have days of usage."""
        return await self._tenants(_USAGE_TENANTS)

    async def prune_usage(self, tenant: str, days: int) -> PruneBatch:
        """Delete a batch of old days of usage."""
        return await self._prune(_PRUNE_USAGE, tenant, days)

    async def old_usage(self, tenant: str, days: int) -> OldRows:
        """Tell what is old."""
        return await self._old(_COUNT_USAGE, tenant, days)

    async def _forget(self, conn: Connection, ids: Sequence[UUID], days: int) -> int:
        if not ids:
            return 0
        cursor = await conn.execute(_FORGET, {"ids": list(ids), "days": days, "folders": self._folders})
        [[count]] = await cursor.fetchall()
        return int(count)

    async def _tenants(self, statement: str) -> list[str]:
        async with self._db.connection() as conn:
            return [row[0] for row in await (await conn.execute(statement)).fetchall()]

    async def _prune(self, statements: Sequence[str], tenant: str, days: int) -> PruneBatch:
        async with self._db.transaction() as conn:
            counts = [(await conn.execute(one, {"tenant": tenant, "days": days})).rowcount for one in statements]
        return PruneBatch(sum(counts), max(counts) == _ROWS or None)

    async def _old(self, statements: Sequence[str], tenant: str, days: int) -> OldRows:
        async with self._db.connection() as conn:
            found: list[Any] = [
                await (await conn.execute(one, {"tenant": tenant, "days": days})).fetchone() for one in statements
            ]
        return OldRows(sum(row[0] for row in found), sum(row[1] for row in found))
