"""The store of the workflows service on PostgreSQL: one method, one transaction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from uuid import UUID

from psycopg import sql

from meshkit import idempotency, outbox
from meshkit.db import Connection, Database
from services.workflows import events
from services.workflows.domain import StepRecord, WorkflowRecord
from services.workflows.engine import Decision
from services.workflows.postgres import columns, queries
from services.workflows.store import Decide, Edit, IdempotencyKey, Page, Stats, Whole, WorkflowFilter

_KEEP_EVENTS_DAYS = 8
_CREATE_WORKFLOW = (
    f"INSERT INTO workflows ({columns.WORKFLOW}) VALUES ({', '.join(['%s'] * len(columns.WORKFLOW_NAMES))})"  # noqa: S608 -- fixed names
)
_COPY_STEPS = f"COPY steps ({columns.STEP}) FROM STDIN"


def _update(table: str, names: Sequence[str], guard: str) -> sql.Composed:
    return sql.SQL("UPDATE {} SET {} WHERE id = %(id)s AND {}").format(
        sql.Identifier(table),
        sql.SQL(", ").join(
            sql.SQL("{} = {}").format(sql.Identifier(name), sql.Placeholder(name)) for name in names if name != "id"
        ),
        sql.SQL(guard),
    )


_UPDATE_WORKFLOW = _update("workflows", columns.WORKFLOW_NAMES, "version = %(known_version)s")
_UPDATE_STEP = _update("steps", columns.STEP_NAMES, "state = %(known_state)s AND attempt = %(known_attempt)s")

# A replica that looks at the same moment passes over what this one has taken; the note keeps it from coming at once.
_DUE = """
UPDATE steps SET {note} = now() WHERE id = ANY(ARRAY(
    SELECT id FROM steps WHERE task_open AND {state}
        AND coalesce({note}, '-infinity') < now() - make_interval(secs => %s)
    ORDER BY {note} NULLS FIRST LIMIT %s FOR UPDATE SKIP LOCKED))
RETURNING """


class PostgresStore:
    """Implements `services.workflows.store.Store`.

    Args:
        db: The service's database, migrated.
    """

    def __init__(self, db: Database) -> None:
        self._db = db

    async def create(self, whole: Whole, key: IdempotencyKey | None, response: bytes) -> bytes | None:
        """Writes a new workflow; the answer given before where the key was used for the same request."""
        tenant = whole.workflow.tenant

        async def body() -> bytes | None:
            async with self._db.transaction() as conn:
                if key is not None:
                    replay = await idempotency.claim(conn, tenant, key.method, key.key, key.request_hash)
                    if replay is not None:
                        return replay
                cursor = await conn.execute("SELECT FROM workflows WHERE id = %s", (whole.workflow.id,))
                if await cursor.fetchone() is None:  # else a commit that was thought lost took place
                    await _write(conn, whole)
                if key is not None:
                    await idempotency.store(conn, tenant, key.method, key.key, response)
            return None

        return await self._db.retrying(body)

    async def get(self, workflow_id: UUID) -> Whole | None:
        """A workflow with its steps."""
        async with self._db.transaction() as conn:
            await conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            return await queries.find(conn, workflow_id)

    async def list_workflows(self, which: WorkflowFilter, page: Page) -> tuple[list[Whole], int]:
        """Workflows with their steps, and how many there are in all."""
        async with self._db.transaction() as conn:
            await conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            return await queries.list_workflows(conn, which, page)

    async def stats(self, which: WorkflowFilter) -> Stats:
        """Counts."""
        async with self._db.connection() as conn:
            return await queries.stats(conn, which)

    async def advance(self, workflow_id: UUID, body: Decide, event_id: UUID | None = None) -> Decision | None:
        """Decides upon a workflow under its lock and writes what was decided.

        Returns:
            What was decided; None without such a workflow, or where the event was consumed before.
        """

        async def work() -> Decision | None:
            async with self._db.transaction() as conn:
                whole = await queries.find(conn, workflow_id, lock=True)
                if whole is None or (event_id is not None and not await _consume(conn, event_id)):
                    return None
                decision = body(whole.workflow, whole.steps)
                await _apply(conn, whole, decision)
                return decision

        return await self._db.retrying(work)

    async def edit(self, workflow_id: UUID, body: Edit) -> Whole | None:
        """Changes members of a workflow that do not move it."""

        async def work() -> Whole | None:
            async with self._db.transaction() as conn:
                whole = await queries.find(conn, workflow_id, lock=True)
                if whole is None:
                    return None
                wanted = body(whole.workflow)
                if wanted is whole.workflow:
                    return whole
                wanted = replace(wanted, version=whole.workflow.version + 1)
                await _save_workflow(conn, whole.workflow, wanted)
                return Whole(wanted, whole.steps)

        return await self._db.retrying(work)

    async def step_of_task(self, task_id: UUID) -> StepRecord | None:
        """The step that a task is of."""
        async with self._db.connection() as conn:
            return await queries.step_of_task(conn, task_id)

    async def due_dispatches(self, age_seconds: float, limit: int) -> list[StepRecord]:
        """Steps that are DISPATCHING for so long, and notes that they are sent again."""
        rows = await self._due("dispatched_at", "state = 'DISPATCHING'", columns.STEP, age_seconds, limit)
        return [columns.step(row) for row in rows]

    async def due_checks(self, age_seconds: float, limit: int) -> list[StepRecord]:
        """RUNNING steps of which nothing was heard for so long, and notes that they are asked for."""
        rows = await self._due("checked_at", "state = 'RUNNING'", columns.STEP, age_seconds, limit)
        return [columns.step(row) for row in rows]

    async def due_cancels(self, age_seconds: float, limit: int) -> list[tuple[StepRecord, float]]:
        """Steps that ended and whose task may still run, each with the seconds since; notes that they are seen to."""
        state = "state NOT IN ('DISPATCHING', 'RUNNING')"
        wanted = f"{columns.STEP}, extract(epoch FROM now() - coalesce(completed_at, updated_at))::float8"
        rows = await self._due("checked_at", state, wanted, age_seconds, limit)
        return [(columns.step(row[:-1]), row[-1]) for row in rows]

    async def due_timeouts(self, limit: int) -> list[StepRecord]:
        """Steps whose task takes longer than it may."""
        async with self._db.connection() as conn:
            cursor = await conn.execute(
                f"SELECT {columns.STEP} FROM steps WHERE task_open AND state = 'RUNNING' "  # noqa: S608 -- fixed names
                "AND timeout_seconds IS NOT NULL "
                "AND dispatched_at + make_interval(secs => timeout_seconds) < now() LIMIT %s",
                (limit,),
            )
            return [columns.step(row) for row in await cursor.fetchall()]

    async def untold_ends(self, limit: int) -> list[WorkflowRecord]:
        """Ended workflows whose webhook is still to be told, oldest first."""
        async with self._db.connection() as conn:
            cursor = await conn.execute(
                f"SELECT {columns.WORKFLOW} FROM workflows WHERE webhook_url IS NOT NULL AND completed_at IS NOT NULL "  # noqa: S608 -- fixed names
                "AND told_end IS DISTINCT FROM completed_at ORDER BY completed_at LIMIT %s",
                (limit,),
            )
            return [columns.workflow(row) for row in await cursor.fetchall()]

    async def note_told(self, record: WorkflowRecord) -> None:
        """Notes that the webhook of this end of a workflow was handed in."""
        async with self._db.transaction() as conn:
            await conn.execute("UPDATE workflows SET told_end = %s WHERE id = %s", (record.completed_at, record.id))

    async def purge(self) -> None:
        """Forgets old idempotency keys and consumed events."""
        await idempotency.purge(self._db)
        async with self._db.transaction() as conn:
            await conn.execute(
                "DELETE FROM consumed_events WHERE consumed_at < now() - make_interval(days => %s)",
                (_KEEP_EVENTS_DAYS,),
            )

    async def _due(self, note: str, state: str, wanted: str, age_seconds: float, limit: int) -> list[Any]:
        async with self._db.transaction() as conn:
            query = _DUE.format(note=note, state=state) + wanted
            return await (await conn.execute(query, (age_seconds, limit))).fetchall()


async def _write(conn: Connection, whole: Whole) -> None:
    await conn.execute(_CREATE_WORKFLOW, columns.workflow_values(whole.workflow))
    async with conn.cursor() as cursor, cursor.copy(_COPY_STEPS) as copy:
        for step in whole.steps:
            await copy.write_row(columns.step_values(step))
    await outbox.insert(conn, [events.changed(whole.workflow)])


async def _consume(conn: Connection, event_id: UUID) -> bool:
    cursor = await conn.execute(
        "INSERT INTO consumed_events (event_id) VALUES (%s) ON CONFLICT DO NOTHING RETURNING event_id", (event_id,)
    )
    return await cursor.fetchone() is not None


async def _apply(conn: Connection, before: Whole, decision: Decision) -> None:
    if decision.workflow is before.workflow:
        return
    await _save_workflow(conn, before.workflow, decision.workflow)
    for old, new in zip(before.steps, decision.steps, strict=True):
        if new is not old:
            values = dict(zip(columns.STEP_NAMES, columns.step_values(new), strict=True))
            cursor = await conn.execute(
                _UPDATE_STEP, {**values, "known_state": old.state, "known_attempt": old.attempt}
            )
            assert cursor.rowcount == 1, "the workflow's lock is held"
    if _is_news(before.workflow, decision.workflow):
        await outbox.insert(conn, [events.changed(decision.workflow)])


async def _save_workflow(conn: Connection, before: WorkflowRecord, after: WorkflowRecord) -> None:
    values = dict(zip(columns.WORKFLOW_NAMES, columns.workflow_values(after), strict=True))
    cursor = await conn.execute(_UPDATE_WORKFLOW, {**values, "known_version": before.version})
    assert cursor.rowcount == 1, "the workflow's lock is held"


def _is_news(before: WorkflowRecord, after: WorkflowRecord) -> bool:
    return before.status is not after.status or before.completed_steps != after.completed_steps
