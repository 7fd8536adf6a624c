"""Writing new tasks, many in one transaction.

What a task begins with is the same for all of them and stands in the statement; `domain.new_task` says the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from operator import attrgetter
from uuid import UUID

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
    ("origin_instance", "text"),
    ("origin_zone", "text"),
    ("origin_reference", "text"),
    ("workflow_id", "uuid"),
    ("webhook_url", "text"),
    ("timeout_seconds", "float8"),
    ("traceparent", "text"),
    ("spec", "bytea"),
    ("body", "bytea"),
    ("fallback", "text"),
)
_KINDS = dict(_VARYING)
_values = attrgetter(*_KINDS)

# A column that is null in all of the tasks is no parameter: each parameter costs a transaction of a few tasks as much
# as one more task. Rows unnested in a list of columns keep their order: they are written in the order of their ids.
_INSERT = """
INSERT INTO tasks ({names}, updated_at, warm_keys, status, attempt, retry_count, released, is_resumed,
    resume_attempt_count, version, progress, errors, is_deleted, charged, result_objects)
SELECT {names}, n.created_at, n.warm_keys::text[], 'PENDING', 0, 0, 0, false,
    0, 1, 0, '{{}}', false, 0, '{{}}'
FROM (SELECT {unnested}) n
"""

# Only an identifier that the caller chose can exist already: such a task is left out.
_UNLESS_TAKEN = "ON CONFLICT (id) DO NOTHING RETURNING id"

# Nor may a task have the identifier of a deleted one. The check follows the insert, because an insert that waited for
# the end of a deletion has not seen what that retired. The rows are this transaction's own. They are found one at a
# time by their ids, so that no plan can read more of the table.
_WITHDRAW = """
DELETE FROM tasks WHERE ctid = ANY(ARRAY(
    SELECT t.place FROM task_ids d
    CROSS JOIN LATERAL (SELECT t.ctid AS place FROM tasks t WHERE t.id = d.id FOR UPDATE) t
    WHERE d.id = ANY(%b)))
RETURNING id
"""

_CLAIM_KEYS = """
INSERT INTO idempotency_keys (tenant, method, key, request_hash, response)
SELECT * FROM unnest(%b::text[], %b::text[], %b::text[], %b::bytea[], %b::bytea[])
    AS k (tenant, method, key, request_hash, response)
ORDER BY tenant, method, key
ON CONFLICT DO NOTHING
RETURNING tenant, method, key
"""


async def insert_many(conn: Connection, creations: Sequence[Creation]) -> set[int]:
    """Write tasks together.

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
    written_now = [creation for index, creation in enumerate(creations) if index not in taken]
    await _announce(conn, [creation.record for creation in written_now])
    await _forget_intents(conn, [creation.record.id for creation in written_now if creation.has_objects])
    return taken


async def insert_one(conn: Connection, creation: Creation) -> tuple[TaskRecord | None, bytes | None]:
    """Write one task whose identifier or idempotency key may exist already.

    Returns:
        The task that has the identifier, if it is not this one; and the stored response, if the key was used before.

    Raises:
        MeshError: `CONFLICT` where the key was used for another request, or the identifier for a task that was deleted.
    """
    if creation.key is not None:
        key = creation.key
        replay = await idempotency.claim(conn, creation.record.tenant, key)
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
        await idempotency.store(conn, creation.record.tenant, key, response)
    return existing, None


async def note_intent(conn: Connection, record: TaskRecord, prefix: str) -> None:
    """Note that objects are about to be written for a task that does not exist yet.

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
    """Write rows; which ones, where that is asked for."""
    if not records:
        return frozenset()
    ordered = sorted(records, key=attrgetter("id"))
    values = {
        name: list(column)
        for name, column in zip(_KINDS, zip(*map(_values, ordered), strict=True), strict=True)
        if any(value is not None for value in column)
    }
    statement = _statement(tuple(values), ask=ask)
    written = await conn.execute(
        statement, [*values.values(), [columns.array(record.warm_keys) for record in ordered]], binary=True
    )
    if not ask:
        return frozenset()
    withdrawn = await conn.execute(_WITHDRAW, ([record.id for record in records],), binary=True)
    rows = frozenset(await written.fetchall()) - frozenset(await withdrawn.fetchall())
    return frozenset(row[0] for row in rows)


@lru_cache(maxsize=64)
def _statement(names: tuple[str, ...], *, ask: bool) -> str:
    unnested = [f"unnest(%b::{_KINDS[name]}[]) AS {name}" for name in names]
    statement = _INSERT.format(
        names=", ".join(names), unnested=", ".join([*unnested, "unnest(%b::text[]) AS warm_keys"])
    )
    return statement + _UNLESS_TAKEN if ask else statement


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
