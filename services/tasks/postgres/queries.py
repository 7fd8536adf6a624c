"""Reading tasks, and changing one under its lock."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

from psycopg import sql

from meshkit.db import Connection
from services.tasks.domain import AttemptRecord, TaskRecord, TaskStatus
from services.tasks.errors import task_not_found
from services.tasks.postgres import announcements, columns, counters, endings, listing
from services.tasks.store import TaskFilter

# What a caller or an operator may change; the rest belongs to the scheduler.
_MUTABLE = (
    "status",
    "priority",
    "queue_name",
    "provider_type",
    "lane",
    "started_at",
    "retry_count",
    "is_resumed",
    "resume_attempt_count",
    "last_resume_attempt",
    "progress",
    "executor_type",
    "executor_instance",
    "error_category",
    "errors",
    "origin_instance",
    "origin_zone",
    "origin_reference",
    "is_deleted",
    "warm_keys",
    "spec",
    "body",
    "result",
    "not_before",
    "fallback",
)

# A change tells that a task has ended; the statement tells when.
_ENDED_AT = sql.SQL(
    f"CASE WHEN %(completed_at)s::timestamptz IS NOT NULL THEN coalesce(t.completed_at, {columns.ENDED_AT}) END"
)
_MODIFY = sql.SQL(
    "UPDATE tasks t SET {changes}, completed_at = {ended_at}, version = t.version + 1, "
    "updated_at = statement_timestamp(), "
    "deleted_at = CASE WHEN %(is_deleted)s THEN coalesce(t.deleted_at, statement_timestamp()) END "
    "WHERE t.id = %(id)s AND t.version = %(version)s RETURNING {columns}"
).format(
    changes=sql.SQL(", ").join(
        sql.SQL("{} = {}").format(sql.Identifier(name), sql.Placeholder(name)) for name in _MUTABLE
    ),
    ended_at=_ENDED_AT,
    columns=sql.SQL(columns.SELECT_T),
)

# An answer carries so many: a task that its workers hand back again and again has more.
_MAX_ATTEMPTS = 1000
# An attempt gets its row when it ends; until then its task's row tells of it.
_ATTEMPTS = f"""
(SELECT attempt, executor_instance, started_at, ended_at, outcome, error, error_category FROM attempts
WHERE task_id = %(id)s AND outcome IS NOT NULL ORDER BY attempt DESC LIMIT {_MAX_ATTEMPTS})
UNION ALL
SELECT attempt, coalesce(executor_instance, ''), leased_at, NULL, NULL, NULL, NULL FROM tasks
WHERE id = %(id)s AND status = 'EXECUTING'
ORDER BY attempt
"""  # noqa: S608 -- a fixed number


async def get(conn: Connection, task_id: UUID) -> TaskRecord | None:
    """Return a task."""
    cursor = await conn.execute(f"SELECT {columns.SELECT} FROM tasks WHERE id = %s AND kind = 'TASK'", (task_id,))  # noqa: S608 -- constants
    row = await cursor.fetchone()
    return None if row is None else columns.record(row)


# Sizes are known without reading what is large. The first task of a page is in it, however large.
_PAGE = """
WITH page AS (
    SELECT id, row_number() OVER (ORDER BY created_at DESC, id DESC) AS place,
        octet_length(body) + coalesce(octet_length(result), 0) AS bytes
    FROM {source} ORDER BY created_at DESC, id DESC OFFSET {skip} LIMIT {limit}
), cut AS (
    SELECT id, place, sum(bytes) OVER (ORDER BY place) AS total FROM page
)
SELECT {columns} FROM tasks JOIN cut USING (id) WHERE total <= {max_bytes} OR place = {skip} + 1 ORDER BY place
"""


async def list_tasks(conn: Connection, which: TaskFilter, skip: int, limit: int, max_bytes: int) -> list[TaskRecord]:
    """Tasks, newest first; fewer than asked for where they are larger than `max_bytes` together."""
    status = None if which.status is None else which.status.value
    wanted = {
        "tenant": which.tenant,
        "status": status,
        "task_type": which.task_type,
        "workflow_id": which.workflow_id,
        "origin_instance": which.origin_instance,
        "origin_zone": which.origin_zone,
    }
    values = {column: value for column, value in wanted.items() if value is not None}
    conditions: list[sql.Composable] = [sql.SQL("kind = 'TASK'")]
    conditions += [sql.SQL("{} = {}").format(sql.Identifier(name), sql.Placeholder(name)) for name in values]
    if not which.include_deleted:  # no index by filter has those that are
        conditions.append(sql.SQL("NOT is_deleted"))
    is_filtered = not which.include_deleted and not values.keys().isdisjoint(listing.FILTERS)
    is_of_all = which.tenant is None and which.workflow_id is None
    query = sql.SQL(_PAGE).format(
        columns=sql.SQL(columns.SELECT),
        source=listing.source(
            sql.SQL(" AND ").join(conditions),
            sql.SQL("created_at DESC, id DESC"),
            is_parted=is_filtered or is_of_all,
            status=status,
            with_hidden=which.include_deleted,
        ),
        skip=sql.Literal(skip),
        limit=sql.Literal(limit),
        max_bytes=sql.Literal(max_bytes),
    )
    cursor = await conn.execute(query, values)
    return [columns.record(row) for row in await cursor.fetchall()]


# Read from the start of the tenant's range in the index `tasks_waiting`, and no further than is told.
_AHEAD = """
SELECT count(*) FROM (
    SELECT FROM tasks
    WHERE queue_name = %(queue)s AND tenant = %(tenant)s AND lane = %(lane)s
        AND status = 'PENDING' AND not_before IS NULL
        AND (priority > %(priority)s OR (priority = %(priority)s AND (created_at, id) < (%(created_at)s, %(id)s)))
    LIMIT 100
) before
"""


async def ahead(conn: Connection, record: TaskRecord) -> int:
    """Tasks of its tenant, of its kind, that are served before a waiting task; 100 at most."""
    values = {
        "queue": record.queue_name,
        "tenant": record.tenant,
        "lane": record.lane,
        "priority": record.priority,
        "created_at": record.created_at,
        "id": record.id,
    }
    row = await (await conn.execute(_AHEAD, values)).fetchone()
    return row[0] if row is not None else 0


async def attempts(conn: Connection, task_id: UUID) -> list[AttemptRecord]:
    """Return a task's last attempts, oldest first."""
    cursor = await conn.execute(_ATTEMPTS, {"id": task_id})
    return [AttemptRecord(*row) for row in await cursor.fetchall()]


async def modify(
    conn: Connection, task_id: UUID, body: Callable[[TaskRecord], TaskRecord]
) -> tuple[TaskRecord, TaskRecord]:
    """Change a task under its lock.

    Args:
        conn: A connection in a transaction.
        task_id: The task.
        body: Gives the task as it shall be; only members that may be changed count. The same object changes nothing.

    Returns:
        The task before and after.

    Raises:
        MeshError: `NOT_FOUND` without such a task, and what `body` raises.
    """
    before = await endings.lock(conn, task_id)
    if before is None:
        raise task_not_found(task_id)
    wanted = body(before)
    if wanted is before:
        return before, before
    values: dict[str, Any] = {name: getattr(wanted, name) for name in (*_MUTABLE, "completed_at")}
    cursor = await conn.execute(_MODIFY, {**values, "id": task_id, "version": before.version})
    row = await cursor.fetchone()
    if row is None:
        raise task_not_found(task_id)
    after = columns.record(row)
    if after.status != before.status:
        await announcements.changed(conn, [after])
    changes = [counters.leaving(before)] if counters.waits(before) else []
    if counters.waits(after):
        changes.append(counters.entering(after))
    await counters.apply(conn, changes)
    return before, after


async def remove(conn: Connection, task_id: UUID) -> bool:
    """Remove the row of a task that ended; its identifier is never given again."""
    record = await endings.lock(conn, task_id)
    if record is None or record.status in (TaskStatus.PENDING, TaskStatus.EXECUTING):
        return False
    await conn.execute(
        "INSERT INTO task_ids (id, tenant, deleted_at) VALUES (%s, %s, now()) ON CONFLICT DO NOTHING",
        (task_id, record.tenant),
    )
    # An attempt that was cancelled a moment ago may still be writing.
    await endings.note_sweep(conn, record)
    await conn.execute("DELETE FROM tasks WHERE id = %s", (task_id,))
    return True
