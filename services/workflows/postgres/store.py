"""The store of the workflows service on PostgreSQL: one method, one transaction."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime
from typing import Any
from uuid import UUID

from meshkit import idempotency
from meshkit.db import Connection, Database, DatabaseUnavailableError
from meshkit.idempotency import IdempotencyKey
from meshkit.logging import get_logger
from meshkit.pipeline import Pipeline
from services.workflows.domain import StepRecord, StepState, WorkflowRecord
from services.workflows.engine import Decision
from services.workflows.postgres import columns, counts, lists, queries, writes
from services.workflows.postgres.snapshot_cache import SnapshotCache
from services.workflows.store import (
    Advanced,
    Decide,
    DispatchNote,
    Edit,
    FileSweep,
    ListedWorkflow,
    Page,
    WorkflowCounts,
    WorkflowFilter,
    WorkflowSnapshot,
)

_log = get_logger(__name__)

# Another replica's query skips the rows that this one has locked; the note keeps it from taking them right after.
_DUE = """
UPDATE steps SET {note} = now() WHERE id = ANY(ARRAY(
    SELECT id FROM steps WHERE task_open AND {state}
        AND coalesce({note}, '-infinity') < now() - make_interval(secs => %s)
    ORDER BY {note} NULLS FIRST LIMIT %s FOR UPDATE SKIP LOCKED))
RETURNING """
# Steps are found by when they were last asked for, so that those asked for lately cost nothing.
_DUE_CHECKS = f"""
UPDATE steps SET checked_at = now() WHERE id = ANY(ARRAY(
    SELECT id FROM steps WHERE task_open AND state = 'RUNNING'
        AND checked_at < now() - make_interval(secs => %(age)s)
        AND (%(since)s::timestamptz IS NULL OR checked_at < %(since)s
            OR least(checked_at - dispatched_at, interval '15 minutes') < now() - checked_at)
    ORDER BY checked_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED))
RETURNING {columns.STEP}"""  # noqa: S608 -- fixed names


class PostgresWorkflowStore:
    """Implements `services.workflows.store.WorkflowStore`.

    Args:
        db: The service's database, migrated.
        page_bytes: Bytes of rows that one page of a list holds.
    """

    def __init__(self, db: Database, *, page_bytes: int = 16 * 1024 * 1024) -> None:
        self._db = db
        self._page_bytes = page_bytes
        self._recent = SnapshotCache()

    async def create(self, whole: WorkflowSnapshot, key: IdempotencyKey | None, response: bytes) -> bytes | None:
        """Write a new workflow; the answer given before where the key was used for the same request."""
        tenant = whole.workflow.tenant

        async def body() -> bytes | None:
            async with self._db.pipeline() as conn:
                if key is not None:
                    replay = await idempotency.claim(conn, tenant, key)
                    if replay is not None:
                        return replay
                cursor = await conn.execute("SELECT FROM workflows WHERE id = %s", (whole.workflow.id,))
                if await cursor.fetchone() is None:  # else a commit that was thought lost took place
                    await writes.create(conn, whole)
                if key is not None:
                    await idempotency.store(conn, tenant, key, response)
            return None

        replay = await self._db.retrying(body)
        if replay is None:
            self._recent.keep(whole)
        return replay

    async def find_replay(self, tenant: str, key: IdempotencyKey) -> bytes | None:
        """Return the answer given before under a key, without claiming it."""
        async with self._db.connection() as conn:
            return await idempotency.find(conn, tenant, key)

    async def note_files(self, workflow_id: UUID, tenant: str) -> None:
        """Have the files of a workflow swept, should none own them."""
        async with self._db.transaction() as conn:
            await conn.execute(
                "INSERT INTO file_sweeps (workflow_id, tenant) VALUES (%s, %s) "
                "ON CONFLICT (workflow_id) DO UPDATE SET due_at = now()",
                (workflow_id, tenant),
            )

    async def due_files(self, age_seconds: float, limit: int) -> Sequence[FileSweep]:
        """Return what was noted so long ago, oldest first."""
        async with self._db.connection() as conn:
            cursor = await conn.execute(
                "SELECT workflow_id, tenant, due_at FROM file_sweeps "
                "WHERE due_at <= now() - make_interval(secs => %s) ORDER BY due_at LIMIT %s",
                (age_seconds, limit),
            )
            return [FileSweep(*row) for row in await cursor.fetchall()]

    async def forget_files(self, sweep: FileSweep) -> None:
        """Forget what was noted, unless it was noted again."""
        async with self._db.transaction() as conn:
            await conn.execute(
                "DELETE FROM file_sweeps WHERE workflow_id = %s AND due_at = %s", (sweep.workflow_id, sweep.due_at)
            )

    async def get(self, workflow_id: UUID) -> WorkflowSnapshot | None:
        """Return a workflow with its steps."""
        async with self._db.pipeline() as conn:
            await conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            return await queries.find(conn, workflow_id)

    async def list_workflows(self, which: WorkflowFilter, page: Page) -> tuple[list[WorkflowSnapshot], int]:
        """Workflows with their steps, and how many there are in all; fewer where they are large."""
        async with self._snapshot() as conn:
            return await lists.list_workflows(conn, which, page, self._page_bytes)

    async def list_items(self, which: WorkflowFilter, page: Page) -> tuple[list[ListedWorkflow], int, bool]:
        """Workflows without their steps, how many there are in all, and whether that number is exact."""
        async with self._snapshot() as conn:
            return await lists.list_items(conn, which, page)

    async def stats(self, which: WorkflowFilter) -> WorkflowCounts:
        """Count workflows by their labels."""
        async with self._snapshot() as conn:
            return await counts.stats(conn, which)

    async def fold(self) -> None:
        """Add what was noted of changes to the counters."""
        await counts.fold(self._db)

    async def advance(self, workflow_id: UUID, body: Decide, *, durable: bool = True) -> Decision | None:
        """Decide upon a workflow under its lock and write what was decided; see `WorkflowStore`."""

        async def work() -> Decision | None:
            async with self._db.pipeline(durable=False) as conn:
                whole = await queries.find(conn, workflow_id, lock=True)
                if whole is None:
                    return None
                decision = body(whole.workflow, whole.steps)
                await _write(conn, [(whole, decision)], durable=durable)
            self._keep([(whole, decision)])
            return decision

        return await self._db.retrying(work)

    async def advance_many(self, bodies: Mapping[UUID, Decide], *, durable: bool = True) -> Mapping[UUID, Advanced]:
        """Decide upon several workflows in one transaction; see `WorkflowStore`."""

        async def work() -> dict[UUID, Advanced]:
            async with self._db.pipeline(durable=False) as conn:
                rows = await queries.lock(conn, list(bodies))
                kept = [whole for row in rows if (whole := self._recent.find(*row)) is not None]
                decided = {ident: one for ident, one in _decide(kept, bodies).items() if _is_moved(one)}
                # Where the cache says that nothing is to be done, the rows decide. They are read by statements of their
                # own, sent once the locks are held, so that their snapshots are of after that.
                rest = [ident for ident, _, _ in rows if ident not in decided]
                if rest:
                    decided |= _decide(await queries.find_all(conn, rest), bodies)
                moved = [(before, after) for before, after in decided.values() if isinstance(after, Decision)]
                await _write(conn, moved, durable=durable)
            self._keep(moved)
            return dict.fromkeys(bodies) | {ident: after for ident, (_, after) in decided.items()}

        try:
            return await self._db.retrying(work)
        except DatabaseUnavailableError as error:
            return dict.fromkeys(bodies, error)
        except Exception:
            _log.exception("workflow_batch_failed", workflows=[str(one) for one in bodies])
            for ident in bodies:
                self._recent.forget(ident)
            return await self._advance_each(bodies, durable=durable)

    def _keep(self, decided: Sequence[tuple[WorkflowSnapshot, Decision]]) -> None:
        for before, decision in decided:
            if decision.workflow is not before.workflow:
                self._recent.keep(WorkflowSnapshot(decision.workflow, decision.steps))

    async def _advance_each(self, bodies: Mapping[UUID, Decide], *, durable: bool) -> dict[UUID, Advanced]:
        outcomes: dict[UUID, Advanced] = {}
        for ident, body in bodies.items():
            try:
                outcomes[ident] = await self.advance(ident, body, durable=durable)
            except DatabaseUnavailableError as error:
                # The decisions before this one are committed, and their callers have to know.
                return dict.fromkeys(bodies, error) | outcomes
            except Exception as error:
                outcomes[ident] = error
        return outcomes

    async def accept(self, task_ids: Sequence[UUID]) -> DispatchNote:
        """Note that tasks were made; skip steps whose rows are locked."""
        ids = list(task_ids)
        # If a crash of the database undoes this, the tasks are sent again and found to exist.
        async with self._db.pipeline(durable=False) as conn:
            # A decision upon several workflows locks their steps in any order: to wait here could deadlock.
            await conn.execute(
                "UPDATE steps SET state = 'RUNNING', checked_at = now(), updated_at = now() WHERE id = ANY(ARRAY("
                "SELECT id FROM steps WHERE task_id = ANY(%b) AND state = 'DISPATCHING' FOR UPDATE SKIP LOCKED))",
                (ids,),
            )
            cursor = await conn.execute(
                f"SELECT {columns.STEP} FROM steps WHERE task_id = ANY(%b) "  # noqa: S608 -- fixed names
                "AND (state = 'DISPATCHING' OR state = 'CANCELLED' AND task_open)",
                (ids,),
                binary=True,
            )
            found = [columns.step(row) for row in await cursor.fetchall()]
        return DispatchNote(
            [one for one in found if one.state is StepState.CANCELLED],
            frozenset(one.task_id for one in found if one.state is StepState.DISPATCHING and one.task_id is not None),
        )

    async def steps_behind(self, versions: Mapping[UUID, int]) -> list[StepRecord]:
        """Return the steps of these tasks that have processed a lower version."""
        async with self._db.connection() as conn:
            cursor = await conn.execute(
                f"SELECT {columns.STEP} FROM steps NATURAL JOIN unnest(%b::uuid[], %b::bigint[]) AS n (task_id, seen) "  # noqa: S608 -- fixed names
                "WHERE task_version < seen",
                (list(versions), list(versions.values())),
                binary=True,
            )
            return [columns.step(row) for row in await cursor.fetchall()]

    async def edit(self, workflow_id: UUID, body: Edit) -> WorkflowSnapshot | None:
        """Change members of a workflow that do not move it."""

        async def work() -> WorkflowSnapshot | None:
            async with self._db.pipeline() as conn:
                whole = await queries.find(conn, workflow_id, lock=True)
                if whole is None:
                    return None
                wanted = body(whole.workflow)
                if wanted is whole.workflow:
                    return whole
                wanted = replace(wanted, version=whole.workflow.version + 1)
                await writes.save_workflow(conn, whole.workflow, wanted)
                return WorkflowSnapshot(wanted, whole.steps)

        return await self._db.retrying(work)

    async def due_dispatches(self, age_seconds: float, limit: int) -> list[StepRecord]:
        """Return steps that are DISPATCHING for so long, and note that they are sent again."""
        rows = await self._due("dispatched_at", "state = 'DISPATCHING'", columns.STEP, age_seconds, limit)
        return [columns.step(row) for row in rows]

    async def due_checks(self, age_seconds: float, trusted_since: datetime | None, limit: int) -> list[StepRecord]:
        """Return RUNNING steps without an event for so long, and note that they are asked for."""
        async with self._db.pipeline(durable=False) as conn:
            cursor = await conn.execute(_DUE_CHECKS, {"age": age_seconds, "since": trusted_since, "limit": limit})
            return [columns.step(row) for row in await cursor.fetchall()]

    async def due_cancels(self, age_seconds: float, limit: int) -> list[tuple[StepRecord, float]]:
        """Return ended steps whose task may still run, with the seconds since; mark them as handled."""
        state = "state NOT IN ('DISPATCHING', 'RUNNING')"
        wanted = f"{columns.STEP}, extract(epoch FROM now() - coalesce(completed_at, updated_at))::float8"
        rows = await self._due("checked_at", state, wanted, age_seconds, limit)
        return [(columns.step(row[:-1]), row[-1]) for row in rows]

    async def due_timeouts(self, limit: int) -> list[StepRecord]:
        """Return steps whose task takes longer than it may."""
        async with self._db.connection() as conn:
            cursor = await conn.execute(
                f"SELECT {columns.STEP} FROM steps WHERE task_open AND state IN ('DISPATCHING', 'RUNNING') "  # noqa: S608 -- fixed names
                "AND timeout_seconds IS NOT NULL "
                "AND dispatched_at + make_interval(secs => timeout_seconds) < now() LIMIT %s",
                (limit,),
            )
            return [columns.step(row) for row in await cursor.fetchall()]

    async def untold_ends(self, limit: int) -> list[WorkflowRecord]:
        """Return ended workflows whose webhook is still to be told, oldest first."""
        async with self._db.connection() as conn:
            cursor = await conn.execute(
                f"SELECT {columns.WORKFLOW} FROM workflows WHERE webhook_url IS NOT NULL AND completed_at IS NOT NULL "  # noqa: S608 -- fixed names
                "AND told_end IS DISTINCT FROM completed_at ORDER BY completed_at LIMIT %s",
                (limit,),
            )
            return [columns.workflow(row) for row in await cursor.fetchall()]

    async def note_told(self, record: WorkflowRecord) -> None:
        """Note that the webhook of this end of a workflow was handed in."""
        async with self._db.transaction() as conn:
            await conn.execute("UPDATE workflows SET told_end = %s WHERE id = %s", (record.completed_at, record.id))

    async def purge(self) -> None:
        """Delete old idempotency keys."""
        await idempotency.purge(self._db)

    @asynccontextmanager
    async def _snapshot(self) -> AsyncIterator[Connection]:
        """Return a connection whose statements see the rows of one moment."""
        async with self._db.transaction() as conn:
            await conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            yield conn

    async def _due(self, note: str, state: str, wanted: str, age_seconds: float, limit: int) -> list[Any]:
        async with self._db.transaction() as conn:
            query = _DUE.format(note=note, state=state) + wanted
            return await (await conn.execute(query, (age_seconds, limit))).fetchall()


def _decide(
    wholes: Sequence[WorkflowSnapshot], bodies: Mapping[UUID, Decide]
) -> dict[UUID, tuple[WorkflowSnapshot, Decision | Exception]]:
    """Return what is decided upon each of these workflows, or why nothing is."""
    decided: dict[UUID, tuple[WorkflowSnapshot, Decision | Exception]] = {}
    for whole in wholes:
        try:
            decided[whole.workflow.id] = whole, bodies[whole.workflow.id](whole.workflow, whole.steps)
        except Exception as error:
            decided[whole.workflow.id] = whole, error
    return decided


def _is_moved(decided: tuple[WorkflowSnapshot, Decision | Exception]) -> bool:
    before, after = decided
    return isinstance(after, Decision) and after.workflow is not before.workflow


async def _write(conn: Pipeline, decided: Sequence[tuple[WorkflowSnapshot, Decision]], *, durable: bool) -> None:
    if durable or any(decision.workflow.status is not before.workflow.status for before, decision in decided):
        await conn.execute("SET LOCAL synchronous_commit TO on")
    await writes.apply(conn, decided)
