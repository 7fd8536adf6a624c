"""Counters equal the rows at every moment, whatever happens to workflows, beside each other."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from meshkit import migration
from meshkit.db import Connection, Database
from meshkit.errors import MeshError
from meshkit.topology import WORKFLOWS
from services.workflows.domain import TaskOutcome, WorkflowStatus, step_row_id
from services.workflows.postgres import counts
from services.workflows.postgres.store import PostgresWorkflowStore
from services.workflows.signals import Cancel, Pause, Resume, Start
from services.workflows.store import WorkflowCounts, WorkflowFilter, WorkflowSnapshot
from tests.integration.workflows.test_groups import NOOP, ends_of, told
from tests.unit.workflows.rows import rows

SHAPES: tuple[dict[str, list[str]], ...] = (
    {"a": []},
    {"a": [], "b": ["a"]},
    {"a": [], "b": ["a"], "c": ["a"], "d": ["b", "c"]},
)
TENANTS = ("acme", "zeta")
INSTANCES = ("shop", "lab")
ZONES = (None, "", "eu")
AGES = (timedelta(0), timedelta(minutes=59, seconds=58), timedelta(hours=2), timedelta(hours=30))

_BY_ROWS = """
SELECT tenant, origin_instance, origin_zone, status, is_deleted, count(*), sum(total_steps) FROM workflows
GROUP BY 1, 2, 3, 4, 5
"""
_BY_COUNTERS = """
SELECT tenant, origin_instance, origin_zone, status, is_deleted, sum(workflows)::bigint, sum(steps)::bigint FROM (
    SELECT * FROM workflow_counts UNION ALL
    SELECT tenant, origin_instance, origin_zone, status, is_deleted, workflows, steps FROM workflow_changes
) c GROUP BY 1, 2, 3, 4, 5 HAVING sum(workflows) <> 0
"""


@pytest.fixture
async def db(mesh_dsn: str) -> AsyncIterator[Database]:
    db = Database(mesh_dsn, schema="workflows", max_size=16)
    await db.open()
    yield db
    await db.close()


@pytest.fixture
def store(db: Database) -> PostgresWorkflowStore:
    return PostgresWorkflowStore(db)


async def fetched(conn: Connection, query: str, *values: Any) -> list[Any]:
    return await (await conn.execute(query, values)).fetchall()


async def execute(db: Database, query: str, *values: Any) -> int:
    async with db.transaction() as conn:
        return (await conn.execute(query, values)).rowcount


async def counted(conn: Connection, which: WorkflowFilter) -> WorkflowCounts:
    """The same by the rows."""
    conditions, values = ["NOT is_deleted"], []
    for name in ("tenant", "origin_instance", "origin_zone"):
        if (value := getattr(which, name)) is not None:
            conditions.append(f"{name} = %s")
            values.append(value)
    found = await fetched(
        conn,
        "SELECT status, total_steps, created_at >= now() - interval '1 hour', "
        f"created_at >= now() - interval '24 hours' FROM workflows WHERE {' AND '.join(conditions)}",
        *values,
    )
    return WorkflowCounts(
        Counter(row[0] for row in found),
        sum(row[2] for row in found),
        sum(row[3] for row in found),
        sum(row[1] for row in found) / len(found) if found else 0.0,
    )


async def check(db: Database) -> None:
    """Compare the counters with the rows, both of one moment."""
    async with db.transaction() as conn:
        await conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        assert Counter(await fetched(conn, _BY_COUNTERS)) == Counter(await fetched(conn, _BY_ROWS))
        for tenant, instance, zone in product((None, *TENANTS), (None, *INSTANCES), ZONES):
            which = WorkflowFilter(tenant=tenant, origin_instance=instance, origin_zone=zone)
            expected = await counted(conn, which)
            assert await counts.stats(conn, which) == expected, which
            assert await counts.total(conn, which) == sum(expected.by_status.values()), which
            for status in WorkflowStatus:
                of_status = replace(which, status=status)
                assert await counts.total(conn, of_status) == expected.by_status.get(status, 0), of_status


class Churn:
    """Does to workflows one of everything that can happen, drawn by a seed, several at a time."""

    def __init__(self, db: Database, store: PostgresWorkflowStore, seed: int) -> None:
        self._db = db
        self._store = store
        self._random = random.Random(seed)
        self._idents: list[UUID] = []
        self.happened = Counter[str]()

    async def run(self, steps: int) -> None:
        for _ in range(steps):
            name = "make" if len(self._idents) < 5 else self._random.choice(_NAMES)
            try:
                done = await getattr(self, name)()
            except MeshError:  # its state does not allow it
                done = False
            self.happened[name] += done

    def _drawn(self) -> UUID:
        return self._random.choice(self._idents)

    async def make(self) -> bool:
        draw = self._random.choice
        row, steps = rows(draw(SHAPES), max_retries=1)
        ident = uuid4()
        own = tuple(
            replace(one, id=step_row_id(ident, one.step_id), workflow_id=ident, definition=NOOP.SerializeToString())
            for one in steps
        )
        row = replace(
            row,
            id=ident,
            tenant=draw(TENANTS),
            origin_instance=draw(INSTANCES),
            origin_zone=draw(ZONES),
            created_at=datetime.now(UTC) - draw(AGES),
        )
        await self._store.create(WorkflowSnapshot(row, own), None, b"")
        self._idents.append(ident)
        return True

    async def begin(self) -> bool:
        return await self._store.advance(self._drawn(), told(Start())) is not None

    async def pause(self) -> bool:
        return await self._store.advance(self._drawn(), told(Pause())) is not None

    async def resume(self) -> bool:
        return await self._store.advance(self._drawn(), told(Resume())) is not None

    async def cancel(self) -> bool:
        return await self._store.advance(self._drawn(), told(Cancel())) is not None

    async def end(self) -> bool:
        """Tasks of several workflows end together."""
        outcome = TaskOutcome.FAILED if self._random.random() < 0.3 else TaskOutcome.COMPLETED
        idents = self._random.sample(self._idents, min(4, len(self._idents)))
        bodies = {}
        for ident in idents:
            if await self._store.get(ident) is not None:
                bodies[ident] = told(*await ends_of(self._store, ident, outcome))
        outcomes = await self._store.advance_many(bodies)
        return any(one is not None and not isinstance(one, Exception) for one in outcomes.values())

    async def rename(self) -> bool:
        return await self._store.edit(self._drawn(), lambda row: replace(row, name=f"{row.name}+")) is not None

    async def relabel(self) -> bool:
        changed = await execute(
            self._db, "UPDATE workflows SET origin_zone = 'eu', origin_instance = 'lab' WHERE id = %s", self._drawn()
        )
        return changed > 0

    async def hide(self) -> bool:
        changed = await execute(
            self._db,
            "UPDATE workflows SET is_deleted = true, deleted_at = now() WHERE id = %s AND completed_at IS NOT NULL "
            "AND NOT is_deleted",
            self._drawn(),
        )
        return changed > 0

    async def remove(self) -> bool:
        gone = await execute(
            self._db, "DELETE FROM workflows WHERE is_deleted AND completed_at IS NOT NULL AND id = %s", self._drawn()
        )
        return gone > 0

    async def undo(self) -> bool:
        """A transaction that is rolled back leaves no note."""
        with suppress(LookupError):
            async with self._db.transaction() as conn:
                await conn.execute("DELETE FROM workflows WHERE id = %s", (self._drawn(),))
                raise LookupError
        return True

    async def fold(self) -> bool:
        await self._store.fold()
        return True


# What is named several times is drawn as often.
_NAMES = (
    *("make", "make", "begin", "begin", "begin", "end", "end", "end", "end"),
    *("pause", "pause", "resume", "resume", "resume", "cancel", "rename", "relabel", "hide", "remove", "undo", "fold"),
)


@pytest.mark.parametrize("seed", [1, 2, pytest.param(3, marks=pytest.mark.long)])
@pytest.mark.timeout(300)
async def test_counters_equal_the_rows_while_workflows_change_side_by_side(
    db: Database, store: PostgresWorkflowStore, seed: int
) -> None:
    churns = [Churn(db, store, seed * 100 + number) for number in range(6)]
    work = asyncio.gather(*(churn.run(150) for churn in churns))
    checks = 0
    while not work.done():
        await check(db)
        checks += 1
    await work
    happened = sum((churn.happened for churn in churns), Counter[str]())
    assert min(happened[name] for name in _NAMES) > 0, happened
    assert checks > 1
    for _ in range(2):  # the same before and after the last notes are added up
        await check(db)
        await store.fold()
    async with db.connection() as conn:
        assert await fetched(conn, "SELECT FROM workflow_changes") == []
        assert await fetched(conn, "SELECT FROM workflow_counts WHERE workflows <= 0") == []


async def test_a_change_that_moves_no_workflow_leaves_no_note(db: Database, store: PostgresWorkflowStore) -> None:
    churn = Churn(db, store, 1)
    for _ in range(3):
        await churn.make()
    await store.fold()
    await churn.rename()
    assert await execute(db, "UPDATE workflows SET completed_steps = 1, version = version + 1") == 3
    async with db.connection() as conn:
        assert await fetched(conn, "SELECT FROM workflow_changes") == []


async def test_workflows_of_before_the_counters_count_and_those_that_the_release_before_goes_on_writing(
    make_database: Callable[[str], str],
) -> None:
    dsn = make_database("workflows_counts")
    await asyncio.to_thread(migration.upgrade, dsn, WORKFLOWS.schema, WORKFLOWS.migrations, "0009")
    insert = """
    INSERT INTO workflows (id, tenant, name, status, on_failure, config, suppress_subtask_events, origin_instance,
        origin_zone, total_steps, completed_steps, final_step_id, errors, completed_at, created_at, updated_at,
        is_deleted, version, traceparent)
    SELECT gen_random_uuid(), 'acme', 'w', CASE WHEN n % 2 = 0 THEN 'CANCELLED' ELSE 'PENDING' END, 'cancel', '', true,
        'shop', CASE WHEN n % 3 = 0 THEN 'eu' END, 1 + n % 3, 0, 'a', '{}', CASE WHEN n % 2 = 0 THEN now() END,
        now() - n * interval '1 hour', now(), n % 5 = 0, 1, ''
    FROM generate_series(1, 40) n
    """
    options = f"-c search_path={WORKFLOWS.schema}"
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True, options=options) as before:
        await before.execute(insert)
        await asyncio.to_thread(migration.upgrade, dsn, WORKFLOWS.schema, WORKFLOWS.migrations)
        await before.execute("UPDATE workflows SET status = 'CANCELLED', completed_at = now() WHERE status = 'PENDING'")
        await before.execute(insert)
        await before.execute("DELETE FROM workflows WHERE is_deleted")
    db = Database(dsn, schema=WORKFLOWS.schema)
    await db.open()
    try:
        await check(db)
        await PostgresWorkflowStore(db).fold()
        await check(db)
    finally:
        await db.close()
