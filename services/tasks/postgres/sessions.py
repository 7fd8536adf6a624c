"""Workers' sessions: one row each, whose expiry is that of all its leases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from uuid import UUID

from psycopg.types.json import Jsonb

from meshkit.db import Connection
from meshkit.pipeline import Pipeline
from services.tasks.domain import AttemptRef, JobKind, SessionRecord, WorkerLoad
from services.tasks.owners import JobOwner
from services.tasks.store import LeaseState, ProgressNote

# A replica of an older release names types and providers, and means each with each.
_FIND = """
SELECT id, subject, name, kind, queues, slots, coalesce(pairs, ARRAY(
    SELECT t.name || '/' || p.name FROM unnest(task_types) AS t (name), unnest(provider_types) AS p (name)))
FROM sessions WHERE id = %s AND closed_at IS NULL AND expires_at > now()
"""

# A cordon is of the worker: another session of it is cordoned too.
_OPEN = """
WITH former AS (
    SELECT cordoned, cordoned_at, mark FROM sessions WHERE name = %(name)s ORDER BY opened_at DESC LIMIT 1
)
INSERT INTO sessions (id, subject, name, kind, queues, slots, pairs, opened_at, last_heartbeat, expires_at,
    cordoned, cordoned_at, mark, leases_after)
SELECT %(id)s, %(subject)s, %(name)s, %(kind)s, %(queues)s, %(slots)s, %(pairs)s, now(), now(),
    now() + %(ttl)s * interval '1 second', f.cordoned, f.cordoned_at, f.mark,
    CASE WHEN NOT EXISTS (SELECT FROM former) THEN now() + %(settle)s * interval '1 second' END
FROM (SELECT) one LEFT JOIN former f ON true
"""

# A heartbeat that names a lease acknowledges its poll, also from a worker that is too busy to poll again.
_HEARTBEAT = """
UPDATE sessions s SET
    last_heartbeat = now(), expires_at = now() + %(ttl)s * interval '1 second', draining = %(draining)s,
    load = coalesce(%(load)s, s.load),
    acknowledged = greatest(s.acknowledged, coalesce((
        SELECT max(t.lease_sequence) FROM tasks t WHERE t.lease_session = s.id AND t.id = ANY(%(held)b)), 0))
WHERE s.id = %(id)s AND s.subject = %(subject)s AND s.closed_at IS NULL AND s.expires_at > now()
RETURNING s.acknowledged
"""

# A report acknowledges its lease too. IS TRUE and, below, IS NOT DISTINCT keep the planner from the index by session,
# which holds all that the session has ended: tasks are looked up by their ids.
_ACKNOWLEDGE = """
WITH reported AS (
    SELECT t.lease_session AS id, max(t.lease_sequence) AS sequence FROM tasks t
    WHERE t.id = ANY(%b) AND (t.lease_session = ANY(%b)) IS TRUE GROUP BY t.lease_session
), behind AS (
    SELECT s.id FROM sessions s JOIN reported r ON r.id = s.id WHERE s.acknowledged < r.sequence
    ORDER BY s.id FOR UPDATE OF s
)
UPDATE sessions s SET acknowledged = greatest(s.acknowledged, r.sequence)
FROM reported r JOIN behind b ON b.id = r.id WHERE s.id = r.id
"""

_WRITE_PROGRESS = """
UPDATE tasks t SET progress = greatest(t.progress, p.progress), updated_at = now()
FROM unnest(%b::uuid[], %b::integer[], %b::uuid[], %b::float8[]) AS p (id, attempt, session, progress)
WHERE t.id = ANY(ARRAY(
        SELECT l.id FROM tasks l WHERE l.id = ANY(%b::uuid[]) AND l.status = 'EXECUTING'
        ORDER BY l.id FOR UPDATE SKIP LOCKED))
    AND t.id = p.id AND t.status = 'EXECUTING' AND t.attempt = p.attempt
    AND t.lease_session IS NOT DISTINCT FROM p.session
"""


async def opened(
    conn: Connection, session: SessionRecord, ttl_seconds: float, settle_seconds: float | None = None
) -> None:
    """Write a new session; a worker that is new is given nothing for some seconds, where that is asked for."""
    await conn.execute(
        _OPEN,
        {
            "id": session.id,
            "subject": session.subject,
            "name": session.name,
            "kind": session.kind,
            "queues": list(session.queues),
            "slots": session.slots,
            "pairs": list(session.pairs),
            "ttl": ttl_seconds,
            "settle": settle_seconds,
        },
    )


async def find(conn: Connection, session_id: UUID) -> SessionRecord | None:
    """Return a session that is open and alive."""
    cursor = await conn.execute(_FIND, (session_id,))
    row = await cursor.fetchone()
    return None if row is None else SessionRecord(*row)


async def slots(conn: Connection) -> list[tuple[str, int]]:
    """Return by queue the slots of open sessions that take work; one that serves several queues counts for each.

    One whose worker tells a fault takes none.
    """
    cursor = await conn.execute(
        "SELECT q.name, sum(s.slots)::bigint FROM sessions s, unnest(s.queues) AS q (name) "
        "WHERE s.closed_at IS NULL AND s.expires_at > now() AND NOT s.draining AND s.cordoned IS NULL "
        "AND coalesce(s.load ->> 'fault', '') = '' GROUP BY q.name"
    )
    return await cursor.fetchall()


async def lost(conn: Connection) -> list[str]:
    """Return the names of workers whose last session expired within ten minutes; one that was closed had time left."""
    cursor = await conn.execute(
        "SELECT DISTINCT s.name FROM sessions s WHERE s.closed_at >= s.expires_at "
        "AND s.closed_at > now() - interval '10 minutes' "
        "AND NOT EXISTS (SELECT FROM sessions o WHERE o.name = s.name AND o.opened_at > s.opened_at) ORDER BY s.name"
    )
    return [row[0] for row in await cursor.fetchall()]


async def heartbeat(
    conn: Connection,
    session_id: UUID,
    subject: str,
    held: Sequence[AttemptRef],
    *,
    draining: bool,
    load: WorkerLoad | None,
    ttl_seconds: float,
) -> list[LeaseState] | None:
    """Extend a session; see `store.TaskStore.heartbeat`."""
    # If a crash of PostgreSQL loses a heartbeat, the worker's next one replaces it.
    await conn.execute("SET LOCAL synchronous_commit TO off")
    cursor = await conn.execute(
        _HEARTBEAT,
        {
            "ttl": ttl_seconds,
            "draining": draining,
            "load": Jsonb(asdict(load)) if load is not None else None,
            "held": [ref.job_id for ref in held],
            "id": session_id,
            "subject": subject,
        },
    )
    row = await cursor.fetchone()
    if row is None:
        return None
    cursor = await conn.execute(
        "SELECT id, attempt, lease_sequence <= %s, missing_since IS NOT NULL FROM tasks WHERE lease_session = %s",
        (row[0], session_id),
    )
    return [
        LeaseState(AttemptRef(task_id, attempt), known, missing)
        for task_id, attempt, known, missing in await cursor.fetchall()
    ]


async def note_missing(
    conn: Connection, session_id: UUID, missing: Sequence[AttemptRef], found: Sequence[AttemptRef]
) -> None:
    """Note which leases a heartbeat did not name, and which it named again."""
    for refs, value, state in ((missing, "now()", "IS NULL"), (found, "NULL", "IS NOT NULL")):
        if refs:
            await conn.execute(
                f"UPDATE tasks SET missing_since = {value} WHERE id = ANY(ARRAY("  # noqa: S608 -- fixed words
                f"SELECT id FROM tasks WHERE lease_session = %s AND id = ANY(%b) AND missing_since {state} "
                "ORDER BY id FOR UPDATE))",
                (session_id, [ref.job_id for ref in refs]),
            )


async def valid(conn: Connection, session_id: UUID, refs: Sequence[AttemptRef]) -> dict[AttemptRef, JobOwner]:
    """Return which attempts are the session's, each with whose job it is."""
    cursor = await conn.execute(
        "SELECT id, attempt, tenant, kind FROM tasks WHERE lease_session = %s AND id = ANY(%b)",
        (session_id, [ref.job_id for ref in refs]),
    )
    leases = {
        AttemptRef(task_id, attempt): JobOwner(tenant, JobKind(kind))
        for task_id, attempt, tenant, kind in await cursor.fetchall()
    }
    return {ref: leases[ref] for ref in refs if ref in leases}


async def ended(conn: Connection, refs: Sequence[AttemptRef]) -> list[AttemptRef]:
    """Return which attempts are of tasks that have ended, or are no more."""
    cursor = await conn.execute(
        "SELECT id FROM tasks WHERE id = ANY(%b) AND status IN ('PENDING', 'EXECUTING')",
        ([ref.job_id for ref in refs],),
    )
    living = {row[0] for row in await cursor.fetchall()}
    return [ref for ref in refs if ref.job_id not in living]


async def write_progress(conn: Pipeline, notes: Sequence[ProgressNote]) -> None:
    """Write progress of attempts that are still their session's; a locked row is skipped."""
    ids = [note.ref.job_id for note in notes]
    holders = [note.session for note in notes]
    # Sessions before tasks, as in every transaction: whoever ends a session waits for its tasks. The table of sessions
    # is small: the planner may read it as it likes.
    async with conn.server_settings():
        await conn.execute(_ACKNOWLEDGE, (ids, holders))
    await conn.execute(
        _WRITE_PROGRESS, (ids, [note.ref.attempt for note in notes], holders, [n.progress for n in notes], ids)
    )
