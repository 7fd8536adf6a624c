"""Writing new tasks, many in one transaction."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from meshkit import idempotency
from meshkit.db import Connection
from services.tasks.domain import TaskRecord
from services.tasks.postgres import announcements, columns, counters
from services.tasks.store import Creation

_COPY = f"COPY tasks ({columns.SELECT}) FROM STDIN"

_CLAIM_KEYS = """
INSERT INTO idempotency_keys (tenant, method, key, request_hash, response)
SELECT * FROM unnest(%s::text[], %s::text[], %s::text[], %s::bytea[], %s::bytea[])
    AS k (tenant, method, key, request_hash, response)
ORDER BY tenant, method, key
ON CONFLICT DO NOTHING
RETURNING tenant, method, key
"""


async def insert_many(conn: Connection, creations: Sequence[Creation]) -> set[int]:
    """Writes tasks whose identifiers are new.

    Args:
        conn: A connection in a transaction.
        creations: The tasks; of those with the same idempotency key only one may be among them.

    Returns:
        Places in `creations` that were left out because their idempotency key was taken.
    """
    taken = await _claim_keys(conn, creations)
    records = [creation.record for index, creation in enumerate(creations) if index not in taken]
    if records:
        await _write(conn, records)
        await _forget_intents(conn, [creation.record.id for creation in creations if creation.has_objects])
    return taken


async def insert_one(conn: Connection, creation: Creation) -> tuple[TaskRecord | None, bytes | None]:
    """Writes one task whose identifier or idempotency key may exist already.

    Returns:
        The task that has the identifier, if it is not this one; and the stored response, if the key was used before.

    Raises:
        MeshError: `CONFLICT` where the key was used for another request.
    """
    if creation.key is not None:
        key = creation.key
        replay = await idempotency.claim(conn, creation.record.tenant, key.method, key.key, key.request_hash)
        if replay is not None:
            return None, replay
    # Two creates of one identifier at once: the lock makes the second see what the first wrote.
    await conn.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", (str(creation.record.id),))
    existing = await _find(conn, creation.record.id)
    if existing is None:
        await _write(conn, [creation.record])
        await _forget_intents(conn, [creation.record.id])
    if creation.key is not None:
        response = creation.response if existing is None else creation.encode(existing)
        key = creation.key
        await idempotency.store(conn, creation.record.tenant, key.method, key.key, response)
    return existing, None


async def was_deleted(conn: Connection, task_id: UUID) -> bool:
    """Whether the identifier belonged to a task that was deleted."""
    cursor = await conn.execute("SELECT FROM task_ids WHERE id = %s", (task_id,))
    return await cursor.fetchone() is not None


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


async def _write(conn: Connection, records: Sequence[TaskRecord]) -> None:
    async with conn.cursor() as cursor, cursor.copy(_COPY) as copy:
        for record in records:
            await copy.write_row(columns.values(record))
    async with conn.pipeline():  # both in one round trip; COPY knows no pipeline
        await announcements.created(conn, records)
        await counters.apply(conn, [counters.entering(record) for record in records])


async def _forget_intents(conn: Connection, task_ids: Sequence[UUID]) -> None:
    if task_ids:
        await conn.execute("DELETE FROM object_sweeps WHERE task_id = ANY(%s)", (list(task_ids),))


async def _find(conn: Connection, task_id: UUID) -> TaskRecord | None:
    cursor = await conn.execute(f"SELECT {columns.SELECT} FROM tasks WHERE id = %s", (task_id,))  # noqa: S608 -- fixed names
    row = await cursor.fetchone()
    return None if row is None else columns.record(row)
