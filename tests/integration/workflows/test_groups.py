"""Many workflows decided upon in one transaction, beside everything else that writes their rows."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from atelier.tasks.v1 import enums_pb2, task_pb2
from atelier.workflows.v1 import workflow_pb2

from meshkit.channel import MeshChannel
from meshkit.db import Database
from services.workflows.domain import (
    ACTIVE,
    StepRecord,
    StepState,
    TaskOutcome,
    WorkflowRecord,
    WorkflowStatus,
    step_row_id,
)
from services.workflows.engine import Decision, decide
from services.workflows.executor import WorkflowExecutor
from services.workflows.postgres import queries
from services.workflows.postgres.store import PostgresWorkflowStore
from services.workflows.signals import Event, Start, TaskEnded
from services.workflows.store import Decide, DispatchNote, WorkflowSnapshot
from services.workflows.training_calls import TrainingCalls
from tests.unit.workflows.rows import rows

NOOP = workflow_pb2.WorkflowStepDefinition(task_type=enums_pb2.TASK_TYPE_NOOP)
CHAIN: dict[str, list[str]] = {"a": [], "b": ["a"], "c": ["b"]}


@pytest.fixture
async def db(mesh_dsn: str) -> AsyncIterator[Database]:
    db = Database(mesh_dsn, schema="workflows")
    await db.open()
    yield db
    await db.close()


@pytest.fixture
def store(db: Database) -> PostgresWorkflowStore:
    return PostgresWorkflowStore(db)


def told(*events: Event) -> Decide:
    def body(workflow: WorkflowRecord, steps: Sequence[StepRecord]) -> Decision:
        decision = Decision(workflow, tuple(steps))
        for event in events:
            decision = decide(decision.workflow, decision.steps, event, datetime.now(UTC))
        return decision

    return body


def broken(workflow: WorkflowRecord, steps: Sequence[StepRecord]) -> Decision:
    raise LookupError(f"{workflow.name} has {len(steps)} steps")


async def made(store: PostgresWorkflowStore, shape: dict[str, list[str]] = CHAIN, **more: Any) -> UUID:
    """A workflow of this graph that waits for its start."""
    row, steps = rows(shape, **more)
    ident = uuid4()
    own = tuple(
        replace(one, id=step_row_id(ident, one.step_id), workflow_id=ident, definition=NOOP.SerializeToString())
        for one in steps
    )
    await store.create(WorkflowSnapshot(replace(row, id=ident), own), None, b"")
    return ident


async def begun(store: PostgresWorkflowStore, shape: dict[str, list[str]] = CHAIN, **more: Any) -> UUID:
    ident = await made(store, shape, **more)
    await store.advance(ident, told(Start()))
    return ident


async def found(store: PostgresWorkflowStore, ident: UUID) -> WorkflowSnapshot:
    whole = await store.get(ident)
    assert whole is not None
    return whole


async def ends_of(
    store: PostgresWorkflowStore, ident: UUID, outcome: TaskOutcome = TaskOutcome.COMPLETED
) -> list[TaskEnded]:
    """The ends of the tasks that a workflow waits for."""
    text = "" if outcome is TaskOutcome.COMPLETED else "no"
    return [
        TaskEnded(one.step_id, one.task_id, 3, outcome, b"", message=text)
        for one in (await found(store, ident)).steps
        if one.state in ACTIVE and one.task_id is not None
    ]


async def end_of(store: PostgresWorkflowStore, ident: UUID, outcome: TaskOutcome = TaskOutcome.COMPLETED) -> TaskEnded:
    """The end of the only task that a workflow waits for."""
    (end,) = await ends_of(store, ident, outcome)
    return end


async def states(store: PostgresWorkflowStore, ident: UUID) -> dict[str, str]:
    return {one.step_id: one.state.value for one in (await found(store, ident)).steps}


async def values(db: Database, query: str, *arguments: Any) -> list[Any]:
    async with db.connection() as conn:
        return [row[0] for row in await (await conn.execute(query, arguments)).fetchall()]


@asynccontextmanager
async def holding(mesh_dsn: str, statement: str, *arguments: Any) -> AsyncIterator[None]:
    """Locks that somebody else has meanwhile."""
    async with await psycopg.AsyncConnection.connect(mesh_dsn, options="-c search_path=workflows") as conn:
        await conn.execute(statement, arguments)
        yield


async def test_workflows_of_a_group_share_a_transaction(store: PostgresWorkflowStore, db: Database) -> None:
    idents = [await begun(store) for _ in range(5)]
    outcomes = await store.advance_many({one: told(await end_of(store, one)) for one in idents}, durable=False)
    assert {type(one) for one in outcomes.values()} == {Decision}
    for ident in idents:
        assert await states(store, ident) == {"a": "COMPLETED", "b": "DISPATCHING", "c": "PENDING"}
        outcome = outcomes[ident]
        assert isinstance(outcome, Decision)
        assert (outcome.workflow, outcome.steps) == (
            (await found(store, ident)).workflow,
            (await found(store, ident)).steps,
        )
    assert len(await values(db, "SELECT DISTINCT xmin::text FROM workflows")) == 1
    assert len(await values(db, "SELECT DISTINCT xmin::text FROM steps WHERE step_id IN ('a', 'b')")) == 1
    # Created, started and moved on, each.
    assert len(await values(db, "SELECT id FROM outbox")) == 15


async def test_each_workflow_of_a_group_goes_its_own_way(store: PostgresWorkflowStore) -> None:
    """Different columns change: one begins, one goes on, one fails, one tries again, one ends, one opens its items."""
    fresh = await made(store)
    goes, fails = await begun(store), await begun(store)
    again = await begun(store, {"a": []}, max_retries=1)
    ends = await begun(store, {"a": []})
    opens = await begun(store, {"a": [], "all": ["a"]}, lists={"all": (3, 2)})
    bodies = {
        fresh: told(Start()),
        goes: told(await end_of(store, goes)),
        fails: told(await end_of(store, fails, TaskOutcome.FAILED)),
        again: told(await end_of(store, again, TaskOutcome.FAILED)),
        ends: told(await end_of(store, ends)),
        opens: told(await end_of(store, opens)),
    }
    outcomes = await store.advance_many(bodies)
    for ident, outcome in outcomes.items():
        assert isinstance(outcome, Decision)
        whole = await found(store, ident)
        assert (whole.workflow, whole.steps) == (outcome.workflow, outcome.steps)
    assert [(await found(store, one)).workflow.status for one in bodies] == [
        WorkflowStatus.RUNNING, WorkflowStatus.RUNNING, WorkflowStatus.FAILED,
        WorkflowStatus.RUNNING, WorkflowStatus.COMPLETED, WorkflowStatus.RUNNING,
    ]  # fmt: skip
    assert (await found(store, fails)).workflow.errors == ["a: no"]
    assert (await found(store, again)).steps[0].attempt == 2
    assert list((await states(store, opens)).values()).count("DISPATCHING") == 2


async def test_a_body_that_raises_leaves_out_its_own_workflow_alone(store: PostgresWorkflowStore) -> None:
    first, second, third = [await begun(store) for _ in range(3)]
    before = await found(store, second)
    bodies: dict[UUID, Decide] = {
        first: told(await end_of(store, first)),
        second: broken,
        third: told(await end_of(store, third)),
    }
    outcomes = await store.advance_many(bodies)
    assert isinstance(outcomes[second], LookupError)
    assert await found(store, second) == before
    for ident in (first, third):
        assert (await states(store, ident))["b"] == "DISPATCHING"


async def test_a_missing_workflow_and_one_that_moved_on_change_nothing(store: PostgresWorkflowStore) -> None:
    moved, other, missing = await begun(store), await begun(store), uuid4()
    late = await end_of(store, moved)
    await store.advance(moved, told(late))
    before = await found(store, moved)
    bodies = {moved: told(late), missing: told(Start()), other: told(await end_of(store, other))}
    outcomes = await store.advance_many(bodies)
    assert outcomes[missing] is None
    decision = outcomes[moved]
    assert isinstance(decision, Decision)
    assert (decision.dispatch, decision.cancel) == ((), ())
    assert await found(store, moved) == before
    assert (await states(store, other))["b"] == "DISPATCHING"


async def test_what_the_database_refuses_of_one_workflow_does_not_stop_the_others(store: PostgresWorkflowStore) -> None:
    bad, good = await begun(store), await begun(store)
    end = await end_of(store, bad)

    def impossible(workflow: WorkflowRecord, steps: Sequence[StepRecord]) -> Decision:
        decision = decide(workflow, steps, end, datetime.now(UTC))
        return replace(decision, workflow=replace(decision.workflow, completed_steps=99))

    outcomes = await store.advance_many({bad: impossible, good: told(await end_of(store, good))})
    assert isinstance(outcomes[bad], psycopg.errors.CheckViolation)
    assert isinstance(outcomes[good], Decision)
    assert await states(store, bad) == {"a": "DISPATCHING", "b": "PENDING", "c": "PENDING"}
    assert await states(store, good) == {"a": "COMPLETED", "b": "DISPATCHING", "c": "PENDING"}


@pytest.mark.parametrize(
    ("durable", "shape", "waits"),
    [(False, CHAIN, "off"), (True, CHAIN, "on"), (False, {"a": []}, "on")],
    ids=["goes on", "was asked for", "ends"],
)
async def test_the_disk_is_waited_for_where_one_of_the_workflows_needs_it(
    store: PostgresWorkflowStore, db: Database, durable: bool, shape: dict[str, list[str]], waits: str
) -> None:
    idents = [await begun(store), await begun(store, shape)]
    bodies = {one: told(await end_of(store, one)) for one in idents}
    async with db.transaction() as conn:
        await conn.execute("CREATE TABLE seen (waits text)")
        await conn.execute(
            "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS "
            "$$BEGIN INSERT INTO seen VALUES (current_setting('synchronous_commit')); RETURN NULL; END$$"
        )
        await conn.execute("CREATE TRIGGER note AFTER UPDATE ON workflows FOR EACH ROW EXECUTE FUNCTION note()")
    await store.advance_many(bodies, durable=durable)
    assert await values(db, "SELECT waits FROM seen") == [waits, waits]


async def test_a_note_passes_over_steps_that_others_hold_and_says_so(
    store: PostgresWorkflowStore, mesh_dsn: str
) -> None:
    held, free = await begun(store), await begun(store)
    tasks = {one: (await end_of(store, one)).task_id for one in (held, free)}
    async with holding(mesh_dsn, "SELECT FROM steps WHERE task_id = %s FOR UPDATE", tasks[held]):
        assert await store.accept(list(tasks.values())) == DispatchNote([], frozenset({tasks[held]}))
    assert (await states(store, held))["a"] == "DISPATCHING"
    assert (await states(store, free))["a"] == "RUNNING"
    assert await store.accept(list(tasks.values())) == DispatchNote([], frozenset())
    assert (await states(store, held))["a"] == "RUNNING"


async def test_a_new_attempt_is_dispatching_also_where_the_last_one_was_noted_meanwhile(
    store: PostgresWorkflowStore,
) -> None:
    idents = [await begun(store, {"a": []}, max_retries=1) for _ in range(2)]
    before = {one: await found(store, one) for one in idents}
    ends = {one: await end_of(store, one, TaskOutcome.FAILED) for one in idents}
    await store.accept([end.task_id for end in ends.values()])

    def late(ident: UUID) -> Decide:
        # Read before the note, as by a decision that was under way meanwhile.
        return lambda row, _: told(ends[ident])(row, before[ident].steps)

    await store.advance(idents[0], late(idents[0]))
    await store.advance_many({one: late(one) for one in idents})
    for ident in idents:
        assert [(one.state, one.attempt) for one in (await found(store, ident)).steps] == [(StepState.DISPATCHING, 2)]


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many workflows are read whole from now on, one entry a read."""
    reads: list[int] = []

    async def find_all(conn: Any, workflow_ids: list[UUID]) -> list[WorkflowSnapshot]:
        reads.append(len(workflow_ids))
        return await real(conn, workflow_ids)

    real = queries.find_all
    monkeypatch.setattr(queries, "find_all", find_all)
    return reads


async def test_what_this_process_wrote_last_is_not_read_again(
    store: PostgresWorkflowStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = counted(monkeypatch)
    idents = [await begun(store) for _ in range(3)]
    for _ in CHAIN:
        await store.advance_many({one: told(await end_of(store, one)) for one in idents})
    assert reads == []
    assert {(await found(store, one)).workflow.status for one in idents} == {WorkflowStatus.COMPLETED}


async def undone(db: Database, ident: UUID) -> None:
    """A crash lost a decision, and another replica decided anew: the same version, of another moment."""
    async with db.transaction() as conn:
        await conn.execute("UPDATE workflows SET updated_at = now(), current_step = 'b' WHERE id = %s", (ident,))
        await conn.execute(
            "UPDATE steps SET state = 'COMPLETED', result = '', completed_at = now(), task_open = false "
            "WHERE workflow_id = %s AND step_id = 'a'",
            (ident,),
        )
        await conn.execute(
            "UPDATE steps SET state = 'DISPATCHING', attempt = 1, task_id = gen_random_uuid(), task_open = true "
            "WHERE workflow_id = %s AND step_id = 'b'",
            (ident,),
        )


@pytest.mark.parametrize("who", ["another replica", "an edit", "a crash"])
async def test_what_others_wrote_meanwhile_is_read(
    store: PostgresWorkflowStore, db: Database, monkeypatch: pytest.MonkeyPatch, who: str
) -> None:
    changed, same = await begun(store), await begun(store)
    if who == "another replica":
        await PostgresWorkflowStore(db).advance(changed, told(await end_of(store, changed)))
    elif who == "an edit":
        await PostgresWorkflowStore(db).edit(changed, lambda row: replace(row, name="new"))
    else:
        await undone(db, changed)
    reads = counted(monkeypatch)
    outcomes = await store.advance_many({one: told(await end_of(store, one)) for one in (changed, same)})
    assert reads == [1]
    for ident, outcome in outcomes.items():
        assert isinstance(outcome, Decision)
        whole = await found(store, ident)
        assert (whole.workflow, whole.steps) == (outcome.workflow, outcome.steps)
    ahead = {"a": "COMPLETED", "b": "COMPLETED", "c": "DISPATCHING"}
    behind = {"a": "COMPLETED", "b": "DISPATCHING", "c": "PENDING"}
    assert await states(store, changed) == (behind if who == "an edit" else ahead)
    assert await states(store, same) == behind


async def test_notes_and_the_reconciler_do_not_make_a_kept_workflow_wrong(
    store: PostgresWorkflowStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = counted(monkeypatch)
    idents = [await begun(store, {"a": [], "b": ["a"]}, max_retries=1) for _ in range(3)]
    for outcome in (TaskOutcome.COMPLETED, TaskOutcome.FAILED, TaskOutcome.COMPLETED):
        ends = {one: await end_of(store, one, outcome) for one in idents}
        assert len(await store.due_dispatches(0.0, 100)) == 3
        await store.accept([end.task_id for end in ends.values()])
        assert len(await store.due_checks(0.0, None, 100)) == 3
        await store.advance_many({one: told(end) for one, end in ends.items()}, durable=False)
    assert reads == []
    for ident in idents:
        whole = await found(store, ident)
        assert whole.workflow.status is WorkflowStatus.COMPLETED
        assert [(one.state, one.attempt) for one in whole.steps] == [(StepState.COMPLETED, 1), (StepState.COMPLETED, 2)]


async def test_a_group_locks_its_workflows_in_the_order_of_their_identifiers(
    store: PostgresWorkflowStore, db: Database, mesh_dsn: str
) -> None:
    low, middle, high = idents = sorted([await begun(store) for _ in range(3)])
    bodies = {one: told(await end_of(store, one)) for one in reversed(idents)}
    free = "SELECT id FROM workflows WHERE id = %s FOR UPDATE SKIP LOCKED"
    async with holding(mesh_dsn, "SELECT FROM workflows WHERE id = %s FOR UPDATE", middle):
        moving = asyncio.create_task(store.advance_many(bodies))
        async with asyncio.timeout(60):
            while await values(db, free, low):  # noqa: ASYNC110 -- another connection takes it
                await asyncio.sleep(0.01)
        assert await values(db, free, high) == [high]
    assert {type(one) for one in (await moving).values()} == {Decision}


@dataclass
class Crowd:
    """All that writes rows of the same workflows, at once and in different orders."""

    store: PostgresWorkflowStore
    db: Database
    idents: Sequence[UUID]
    done: asyncio.Event = field(default_factory=asyncio.Event)

    async def move(self, idents: Sequence[UUID]) -> None:
        while not self.done.is_set():
            running = [
                one for one in idents if (await found(self.store, one)).workflow.status is WorkflowStatus.RUNNING
            ]
            if not running:
                self.done.set()
            bodies = {one: told(*await ends_of(self.store, one)) for one in running}
            await self.store.advance_many(bodies, durable=False)

    async def note(self) -> None:
        while not self.done.is_set():
            await self.store.accept(await values(self.db, "SELECT task_id FROM steps WHERE state = 'DISPATCHING'"))

    async def edit(self) -> None:
        while not self.done.is_set():
            for ident in reversed(self.idents):
                await self.store.edit(ident, lambda row: replace(row, description=f"version {row.version}"))

    async def reconcile(self) -> None:
        while not self.done.is_set():
            await self.store.due_checks(0.0, None, 100)
            await self.store.due_dispatches(0.0, 100)


async def test_groups_notes_edits_and_the_reconciler_do_not_deadlock(
    store: PostgresWorkflowStore, db: Database, mesh_dsn: str
) -> None:
    # Two chains in each, so that a group writes several steps of a workflow.
    shape = {f"{chain}{at}": [f"{chain}{at - 1}"] if at else [] for chain in "xy" for at in range(12)}
    idents = [await begun(store, shape) for _ in range(12)]
    crowd = Crowd(store, db, idents)
    async with asyncio.timeout(60):
        await asyncio.gather(
            crowd.move(idents), crowd.move(idents[::-1]), crowd.note(), crowd.edit(), crowd.reconcile()
        )
    for ident in idents:
        whole = await found(store, ident)
        assert whole.workflow.status is WorkflowStatus.COMPLETED
        assert {one.state for one in whole.steps} == {StepState.COMPLETED}
        assert {one.attempt for one in whole.steps} == {1}
    await db.close()  # what its connections counted is known at their end
    async with await psycopg.AsyncConnection.connect(mesh_dsn) as conn:
        cursor = await conn.execute("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
        assert await cursor.fetchone() == (0,)


class Tasks:
    """A tasks service that makes nothing before it was asked for so many."""

    def __init__(self, together: int) -> None:
        self.barrier = asyncio.Barrier(together)

    async def create(self, task: task_pb2.CreateTask, task_id: UUID, workflow_id: UUID, tenant: str) -> None:
        del task, task_id, workflow_id, tenant
        await self.barrier.wait()


def executor(store: PostgresWorkflowStore, tasks: Tasks) -> WorkflowExecutor:
    return WorkflowExecutor(
        store,
        tasks,  # type: ignore[arg-type]  # the one method that is called
        TrainingCalls(MeshChannel("127.0.0.1:9", lambda: "")),  # no step of these trains
        clock=lambda: datetime.now(UTC),
        on_commit=lambda: None,
        concurrency=32,
        abandon_seconds=60.0,
    )


def ended(ident: UUID, end: TaskEnded) -> task_pb2.Task:
    return task_pb2.Task(
        id=str(end.task_id), workflow_id=str(ident), version=end.version, status=enums_pb2.TASK_STATUS_COMPLETED
    )


async def test_what_a_group_begins_is_asked_for_together_and_noted_once_its_steps_are_free(
    store: PostgresWorkflowStore, mesh_dsn: str
) -> None:
    idents = [await begun(store) for _ in range(3)]
    moves = executor(store, Tasks(3))
    heard = {one: [ended(one, await end_of(store, one))] for one in idents}
    outcomes = await moves.tell_ended(heard)
    assert {type(one) for one in outcomes.values()} == {Decision}
    async with asyncio.timeout(60):
        while len(moves._made) < 3:  # noqa: ASYNC110 -- filled by tasks of its own
            await asyncio.sleep(0.01)
    async with holding(mesh_dsn, "SELECT FROM steps WHERE workflow_id = %s FOR UPDATE", idents[0]):
        await moves.note_made()
    assert [(await states(store, one))["b"] for one in idents] == ["DISPATCHING", "RUNNING", "RUNNING"]
    await moves.note_made()
    assert (await states(store, idents[0]))["b"] == "RUNNING"
    assert not moves._made
    await moves.close()


async def test_a_database_that_is_away_is_told_of_each_workflow(mesh_dsn: str) -> None:
    db = Database(mesh_dsn, schema="workflows")
    await db.open()
    store = PostgresWorkflowStore(db)
    idents = [await begun(store) for _ in range(2)]
    bodies = {one: told(await end_of(store, one)) for one in idents}
    await db.close()

    async def once(body: Callable[[], Any], attempts: int = 1) -> Any:
        del attempts
        return await body()

    db.retrying = once  # type: ignore[method-assign]  # its pauses are of seconds
    outcomes = await store.advance_many(bodies)
    assert [getattr(one, "reason", None) for one in outcomes.values()] == ["DATABASE_UNAVAILABLE"] * 2
