"""Requests to providers: one row each, written in the transaction that fences it by its attempt."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from meshkit.db import Connection
from services.tasks.domain import TERMINAL, AttemptRef, TaskRecord
from services.tasks.postgres import usage
from services.tasks.postgres.gates import GateTable
from services.tasks.providers.domain import ProviderLimits
from services.tasks.providers.gates import called_gate, gate_of, trial_name
from services.tasks.service_requests import (
    OPEN,
    NoteVerdict,
    ServiceRequestEffect,
    ServiceRequestNote,
    ServiceRequestState,
    named_at_provider,
)

_NAMES = (
    "id, provider_type, target, operation, state, service_task_id, resume, http_status, category, message, effect, "
    "retry_after, sent_at, ended_at, cost, currency, attempt"
)

# What was known stays known: a later note may leave it out. A note that was delayed on its way takes nothing back.
_WRITE = """
INSERT INTO service_requests AS r (id, task_id, tenant, attempt, last_attempt, session, provider_type, target,
    operation, state, service_task_id, resume, http_status, category, message, effect, retry_after, sent_at, ended_at,
    cost, currency)
VALUES (%(id)s, %(task_id)s, %(tenant)s, %(attempt)s, %(attempt)s, %(session)s, %(provider_type)s, %(target)s,
    %(operation)s, %(state)s, %(service_task_id)s, %(resume)s, %(http_status)s, %(category)s, %(message)s, %(effect)s,
    %(retry_after)s, coalesce(%(sent_at)s, now()), CASE WHEN %(ended)s THEN coalesce(%(ended_at)s, now()) END,
    %(cost)s, %(currency)s)
ON CONFLICT (id) DO UPDATE SET
    last_attempt = excluded.last_attempt, session = excluded.session, state = excluded.state,
    service_task_id = coalesce(excluded.service_task_id, r.service_task_id),
    resume = coalesce(excluded.resume, r.resume), http_status = coalesce(excluded.http_status, r.http_status),
    category = coalesce(excluded.category, r.category), message = coalesce(excluded.message, r.message),
    effect = coalesce(excluded.effect, r.effect), retry_after = coalesce(excluded.retry_after, r.retry_after),
    ended_at = excluded.ended_at, cost = coalesce(excluded.cost, r.cost),
    currency = coalesce(excluded.currency, r.currency)
WHERE r.task_id = excluded.task_id AND r.ended_at IS NULL
    AND NOT (r.state = 'ACCEPTED' AND excluded.state = 'SENDING')
RETURNING sent_at, ended_at
"""

# The end of a request whose task has ended meanwhile is still worth knowing: it may have cost something. Only the
# attempt that noted it last tells.
_WRITE_LATE = """
UPDATE service_requests r SET
    state = %(state)s, service_task_id = coalesce(%(service_task_id)s, r.service_task_id),
    http_status = coalesce(%(http_status)s, r.http_status), category = coalesce(%(category)s, r.category),
    message = coalesce(%(message)s, r.message), effect = coalesce(%(effect)s, r.effect),
    retry_after = coalesce(%(retry_after)s, r.retry_after), ended_at = coalesce(%(ended_at)s, now()),
    cost = coalesce(%(cost)s, r.cost), currency = coalesce(%(currency)s, r.currency)
WHERE r.id = %(id)s AND r.task_id = %(task_id)s AND r.last_attempt = %(attempt)s AND r.session = %(session)s
    AND r.ended_at IS NULL
RETURNING sent_at, ended_at
"""

_CLOSE = """
UPDATE service_requests SET state = 'UNKNOWN', ended_at = now() WHERE task_id = %s AND ended_at IS NULL
"""


async def note(
    conn: Connection,
    record: TaskRecord | None,
    ref: AttemptRef,
    session: UUID,
    request: ServiceRequestNote,
    *,
    limits: ProviderLimits,
) -> NoteVerdict:
    """Write a request down as it stands now; see `store.TaskStore.note_service_request`.

    The first note of its end moves the gate of its provider and counts what it has used.

    Args:
        conn: A connection in a transaction.
        record: The attempt's task, its row locked; None where it is no more.
        ref: The attempt.
        session: The session that tells of it.
        request: The request.
        limits: What the gates of providers are held to.
    """
    ended = request.state not in OPEN
    if record is None:
        return NoteVerdict.ENDED
    values = {
        **{name: getattr(request, name) for name in ServiceRequestNote.__slots__},
        "task_id": record.id,
        "tenant": record.tenant,
        "attempt": ref.attempt,
        "session": session,
        "state": request.state.value,
        "effect": request.effect.value if request.effect is not None else None,
        "ended": ended,
    }
    if record.attempt != ref.attempt or record.lease_session != session:
        if record.state not in TERMINAL:
            return NoteVerdict.LOST
        if ended:
            late = await (await conn.execute(_WRITE_LATE, values)).fetchone()
            if late is not None:
                await _account(conn, record, ref, request, late, limits=limits)
        return NoteVerdict.ENDED
    row = await (await conn.execute(_WRITE, values)).fetchone()
    if row is None:
        known = await (
            await conn.execute("SELECT task_id FROM service_requests WHERE id = %s", (request.id,))
        ).fetchone()
        return NoteVerdict.TAKEN if known is not None and known[0] == record.id else NoteVerdict.FOREIGN
    if request.service_task_id is not None:
        await conn.execute(
            "UPDATE tasks SET body = %s, updated_at = now() WHERE id = %s",
            (named_at_provider(record, request.service_task_id), record.id),
        )
    if ended:
        await _account(conn, record, ref, request, row, limits=limits)
    return NoteVerdict.TAKEN


async def _account(
    conn: Connection,
    record: TaskRecord,
    ref: AttemptRef,
    request: ServiceRequestNote,
    moments: tuple[datetime, datetime],
    *,
    limits: ProviderLimits,
) -> None:
    """Draw from the end of a request what it tells of its provider and has cost."""
    table, effect = GateTable(conn, limits), request.effect or ServiceRequestEffect.IGNORED
    provider, name = request.provider_type, None
    # A request to another provider than the task's own passed no gate.
    if request.provider_type == record.provider_type:
        name = gate_of(record.lane)
        if (called := called_gate(provider, request.target, limits)) is not None:
            # A part of a pipeline passed none either, but it is the provider's all the same.
            provider, name = called.provider, called
            await table.count({called: 1})
    if name is not None:
        await table.note_end(name, trial_name(record.id, ref.attempt), effect, request.retry_after)
    await usage.count(conn, record, provider, request, *moments)


async def open_of(conn: Connection, task_ids: Sequence[UUID]) -> dict[UUID, list[ServiceRequestNote]]:
    """Return by task the requests that another attempt goes on with, oldest first.

    They are those that have not ended, and those that are done: a worker may die with a result in its hands.
    """
    cursor = await conn.execute(
        f"SELECT task_id, {_NAMES} FROM service_requests WHERE task_id = ANY(%b) "  # noqa: S608 -- fixed names
        "AND (ended_at IS NULL OR state = 'DONE') ORDER BY sent_at, id",
        (list(task_ids),),
    )
    found: dict[UUID, list[ServiceRequestNote]] = {}
    for row in await cursor.fetchall():
        found.setdefault(row[0], []).append(_note(row[1:]))
    return found


async def all_of(conn: Connection, task_id: UUID, limit: int) -> list[ServiceRequestNote]:
    """Return the last requests of a task, oldest first."""
    cursor = await conn.execute(
        f"SELECT * FROM (SELECT {_NAMES} FROM service_requests WHERE task_id = %s ORDER BY sent_at DESC, id DESC "  # noqa: S608 -- fixed names
        "LIMIT %s) last ORDER BY sent_at, id",
        (task_id, limit),
    )
    return [_note(row) for row in await cursor.fetchall()]


async def has_accepted(conn: Connection, record: TaskRecord) -> bool:
    """Whether the task's provider has a request of it that another attempt can go on with."""
    cursor = await conn.execute(
        "SELECT FROM service_requests WHERE task_id = %s AND provider_type = %s AND service_task_id IS NOT NULL "
        "AND state IN ('ACCEPTED', 'DONE') LIMIT 1",
        (record.id, record.provider_type),
    )
    return await cursor.fetchone() is not None


async def close(conn: Connection, task_id: UUID) -> None:
    """End the requests of a task that nobody goes on with."""
    await conn.execute(_CLOSE, (task_id,))


def _note(row: Sequence[object]) -> ServiceRequestNote:
    values = dict(zip(ServiceRequestNote.__slots__, row, strict=True))
    values["state"] = ServiceRequestState(str(values["state"]))
    if values["effect"] is not None:
        values["effect"] = ServiceRequestEffect(str(values["effect"]))
    return ServiceRequestNote(**values)  # type: ignore[arg-type] # columns have the kinds of the fields
