"""Writing new tasks, many in one transaction.

What a task begins with is the same for all of them and stands in the statement; `domain.new_task` says the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from uuid import UUID

import orjson

from meshkit import idempotency
from meshkit.db import Connection
from services.tasks.domain import TaskRecord
from services.tasks.errors import identifier_used
from services.tasks.postgres import announcements, columns, counters
from services.tasks.store import Creation

_VARYING = (
    ("id", "uuid"),
    ("kind", "text"),
    ("tenant", "text"),
    ("task_type", "text"),
    ("priority", "integer"),
    ("queue_name", "text"),
    ("provider_type", "text"),
    ("lane", "text"),
    ("created_at", "timestamptz"),
    ("updated_at", "timestamptz"),
    ("origin_instance", "text"),
    ("origin_zone", "text"),
    ("origin_reference", "text"),
    ("workflow_id", "uuid"),
    ("webhook_url", "text"),
    ("timeout_seconds", "float8"),
    ("traceparent", "text"),
    ("spec", "bytea"),
    ("body", "bytea"),
)
_NAMES = ", ".join(name for name, _ in _VARYING)
_values = attrgetter(*(name for name, _ in _VARYING))

# Rows are locked in the order of their ids, as everyone who takes several does. An identifier that is there already, or
# was that of a deleted task, is left out; only callers who chose one can meet it.
_INSERT = f"""
INSERT INTO tasks ({_NAMES}, warm_keys, status, attempt, retry_count, released, is_resumed, resume_attempt_count,
    version, progress, errors, is_deleted, charged, result_objects)
SELECT {_NAMES}, ARRAY(SELECT jsonb_array_elements_text(n.warm_keys::jsonb)), 'PENDING', 0, 0, 0, false, 0,
    1, 0, '{{}}', false, 0, '{{}}'
FROM unnest({", ".join(f"%b::{kind}[]" for _, kind in _VARYING)}, %b::text[]) AS n ({_NAMES}, warm_keys)
WHERE NOT EXISTS (SELECT FROM task_ids d WHERE d.id = n.id)
ORDER BY n.id
ON CONFLICT (id) DO NOTHING
"""  # noqa: S608 -- fixed names

# An insert that waited for the end of a task's deletion did not see that its identifier was retired: a later look does.
_WITHDRAW = "DELETE FROM tasks t USING task_ids d WHERE d.id = t.id AND t.id = ANY(%b) RETURNING t.id"

_CLAIM_KEYS = """
INSERT INTO idempotency_keys (tenant, method, key, request_hash, response)
SELECT * FROM unnest(%b::text[], %b::text[], %b::text[], %b::bytea[], %b::bytea[])
    AS k (tenant, method, key, request_hash, response)
ORDER BY tenant, method, key
ON CONFLICT DO NOTHING
RETURNING tenant, method, key
"""


async def insert_many(conn: Connection, creations: Sequence[Creation]) -> set[int]:
    """Writes tasks together.

    Args:
        conn: A connection in a transaction, pipelined for speed.
        creations: The tasks; of those with the same identifier or idempotency key only one may be among them.

    Returns:
        Places in `creations` that were left out because their idempotency key or identifier was taken.
    """
    taken = await _claim_keys(conn, creations)
    fresh = {index: creation for index, creation in enumerate(creations) if index not in taken}
    named = any(creation.named for creation in fresh.values())
    written = await _insert(conn, [creation.record for creation in fresh.values()], ask=named)
    if named:
        taken.update(index for index, creation in fresh.items() if creation.record.id not in written)
    news = [creation for index, creation in enumerate(creations) if index not in taken]
    await _announce(conn, [creation.record for creation in news])
    await _forget_intents(conn, [creation.record.id for creation in news if creation.has_objects])
    return taken


async def insert_one(conn: Connection, creation: Creation) -> tuple[TaskRecord | None, bytes | None]:
    """Writes one task whose identifier or idempotency key may exist already.

    Returns:
        The task that has the identifier, if it is not this one; and the stored response, if the key was used before.

    Raises:
        MeshError: `CONFLICT` where the key was used for another request, or the identifier for a task that was deleted.
    """
    if creation.key is not None:
        key = creation.key
        replay = await idempotency.claim(conn, creation.record.tenant, key.method, key.key, key.request_hash)
        if replay is not None:
            return None, replay
    existing = None
    if await _insert(conn, [creation.record], ask=True):
        await _announce(conn, [creation.record])
        await _forget_intents(conn, [creation.record.id])
    else:
        existing = await _find(conn, creation.record.id)
        if existing is None:  # it belonged to a task that was deleted
            raise identifier_used(creation.record.id)
    if creation.key is not None:
        response = creation.response if existing is None else creation.encode(existing)
        key = creation.key
        await idempotency.store(conn, creation.record.tenant, key.method, key.key, response)
    return existing, None


async def note_intent(conn: Connection, record: TaskRecord, prefix: str) -> None:
    """Notes that objects are about to be written for a task that does not exist yet.

    The note goes in the transaction that creates the task; where that never comes, the sweeper finds the note.
    """
    await conn.execute(
        "INSERT INTO object_sweeps (task_id, tenant, prefix, due_at) "
        "VALUES (%s, %s, %s, now() + interval '15 minutes')",
        (record.id, record.tenant, prefix),
    )


async def _claim_keys(conn: Connection, creations: Sequence[Creation]) -> set[int]:
    keyed = [
        (creation.record.tenant, creation.key.method, creation.key.key, creation.key.request_hash, creation.response)
        for creation in creations
        if creation.key is not None
    ]
    if not keyed:
        return set()
    cursor = await conn.execute(_CLAIM_KEYS, [list(column) for column in zip(*keyed, strict=True)])
    claimed = {tuple(row) for row in await cursor.fetchall()}
    return {
        index
        for index, creation in enumerate(creations)
        if creation.key is not None and (creation.record.tenant, creation.key.method, creation.key.key) not in claimed
    }


async def _insert(conn: Connection, records: Sequence[TaskRecord], *, ask: bool = False) -> frozenset[UUID]:
    """Writes rows; which ones, where that is asked for."""
    if not records:
        return frozenset()
    columns_of = [list(column) for column in zip(*map(_values, records), strict=True)]
    keys = [orjson.dumps(list(record.warm_keys)).decode() for record in records]
    if not ask:
        await conn.execute(_INSERT, (*columns_of, keys))
        return frozenset()
    written = await conn.execute(f"{_INSERT} RETURNING id", (*columns_of, keys), binary=True)
    withdrawn = await conn.execute(_WITHDRAW, ([record.id for record in records],), binary=True)
    rows = frozenset(await written.fetchall()) - frozenset(await withdrawn.fetchall())
    return frozenset(row[0] for row in rows)


async def _announce(conn: Connection, records: Sequence[TaskRecord]) -> None:
    await announcements.created(conn, records)
    await counters.apply(conn, [counters.entering(record) for record in records])


async def _forget_intents(conn: Connection, task_ids: Sequence[UUID]) -> None:
    if task_ids:
        await conn.execute("DELETE FROM object_sweeps WHERE task_id = ANY(%b)", (list(task_ids),))


async def _find(conn: Connection, task_id: UUID) -> TaskRecord | None:
    cursor = await conn.execute(f"SELECT {columns.SELECT} FROM tasks WHERE id = %s", (task_id,))  # noqa: S608 -- fixed names
    row = await cursor.fetchone()
    return None if row is None else columns.record(row)
