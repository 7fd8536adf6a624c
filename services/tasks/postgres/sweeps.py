"""Maintenance: expiry, promotion of retries, sweeps of objects. Only the database's clock counts.

Each search orders by the columns of the index that serves it. Ordered by id, it would read the whole table each second,
because a new table has no statistics for the planner. A query that skips locked rows may lock in any
order: it waits for none.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from meshkit.db import Connection
from services.tasks.domain import HANDED_BACK, AttemptLoss, AttemptOutcome, ErrorCategory, RetryPolicy, TaskRecord
from services.tasks.postgres import columns, counters, endings

_LOST_WORKER = AttemptLoss(
    AttemptOutcome.EXPIRED, "The worker was lost while it executed the task", ErrorCategory.RESOURCE, resumed=True
)
_FORGOTTEN = AttemptLoss(
    AttemptOutcome.EXPIRED, "The worker no longer held the task", ErrorCategory.RESOURCE, resumed=True
)
_OVERDUE = AttemptLoss(
    AttemptOutcome.EXPIRED, "The attempt ran longer than it may", ErrorCategory.TIMEOUT, resumed=True
)

FIND_OVERDUE = f"""
SELECT {columns.SELECT} FROM tasks
WHERE lease_session IS NOT NULL AND leased_at < now() - interval '1 second' * (2 * timeout_seconds + %s)
ORDER BY lease_session LIMIT 100 FOR UPDATE SKIP LOCKED
"""  # noqa: S608 -- fixed names

PROMOTE = f"""
UPDATE tasks t SET not_before = NULL WHERE t.id = ANY(ARRAY(
    SELECT id FROM tasks WHERE not_before <= now() ORDER BY not_before LIMIT 500 FOR UPDATE SKIP LOCKED))
RETURNING {columns.SELECT_T}
"""  # noqa: S608 -- fixed names


async def take_expired_session(conn: Connection) -> tuple[UUID, int] | None:
    """End one session whose heartbeat is overdue; return its id and the last lease that it acknowledged."""
    cursor = await conn.execute(
        "UPDATE sessions SET closed_at = now() WHERE id = ("
        "SELECT id FROM sessions WHERE closed_at IS NULL AND expires_at <= now() "
        "ORDER BY expires_at LIMIT 1 FOR UPDATE SKIP LOCKED) RETURNING id, acknowledged"
    )
    row = await cursor.fetchone()
    return None if row is None else (row[0], row[1])


async def close(conn: Connection, session_id: UUID, subject: str) -> bool:
    """End a session because its worker asks for it."""
    cursor = await conn.execute(
        "UPDATE sessions SET closed_at = now() WHERE id = %s AND subject = %s AND closed_at IS NULL RETURNING id",
        (session_id, subject),
    )
    return await cursor.fetchone() is not None


async def lose_all(conn: Connection, session_id: UUID, acknowledged: int, policy: RetryPolicy) -> list[TaskRecord]:
    """End the attempts of an expired session; what its worker never received costs no retry."""
    losses = []
    for record in await endings.lock_leases(conn, session_id):
        received = record.lease_sequence is not None and record.lease_sequence <= acknowledged
        losses.append((record, _LOST_WORKER if received else HANDED_BACK))
    return await endings.lose_many(conn, losses, policy)


async def give_back_all(conn: Connection, session_id: UUID, policy: RetryPolicy) -> list[TaskRecord]:
    """Queue again what a session held that its worker closed."""
    held = await endings.lock_leases(conn, session_id)
    return await endings.lose_many(conn, [(record, HANDED_BACK) for record in held], policy)


async def give_back_missing(
    conn: Connection, session_id: UUID, unseen_seconds: float, lost_seconds: float, policy: RetryPolicy
) -> list[TaskRecord]:
    """Queue again what a living worker has not named for too long: not received, or received and forgotten."""
    cursor = await conn.execute(
        f"SELECT t.lease_sequence > s.acknowledged, {columns.SELECT_T} FROM tasks t "  # noqa: S608 -- fixed names
        "JOIN sessions s ON s.id = t.lease_session WHERE t.lease_session = %s "
        "AND t.missing_since < now() - interval '1 second' * "
        "(CASE WHEN t.lease_sequence > s.acknowledged THEN %s ELSE %s END)::float8 ORDER BY t.id FOR UPDATE OF t",
        (session_id, unseen_seconds, lost_seconds),
    )
    losses = [(columns.record(row[1:]), HANDED_BACK if row[0] else _FORGOTTEN) for row in await cursor.fetchall()]
    return await endings.lose_many(conn, losses, policy)


async def expire_overdue(conn: Connection, grace_seconds: float, policy: RetryPolicy) -> list[TaskRecord]:
    """End attempts that ran longer than they may, although their worker lives.

    A worker counts an attempt's time from its beginning, and hands back one that has not begun within as long: so a
    worker in good order holds none for longer than twice the time.
    """
    cursor = await conn.execute(FIND_OVERDUE, (grace_seconds,))
    return await endings.lose_many(conn, [(columns.record(row), _OVERDUE) for row in await cursor.fetchall()], policy)


async def promote_delayed(conn: Connection) -> list[str]:
    """Let retries whose delay has passed wait in their queues."""
    cursor = await conn.execute(PROMOTE)
    records = [columns.record(row) for row in await cursor.fetchall()]
    await counters.apply(conn, [counters.entering(record) for record in records])
    return sorted({record.queue_name for record in records})


async def due_sweeps(conn: Connection, limit: int, delay_seconds: float) -> Sequence[tuple[UUID, str, str, datetime]]:
    """Return prefixes of objects that are due for a sweep."""
    cursor = await conn.execute(
        "SELECT task_id, tenant, prefix, due_at FROM object_sweeps "
        "WHERE due_at <= now() - %s * interval '1 second' ORDER BY due_at LIMIT %s",
        (delay_seconds, limit),
    )
    return await cursor.fetchall()
