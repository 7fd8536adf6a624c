"""What the store finds and notes, on rows as other replicas and crashes leave them."""

from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from meshkit.db import Database
from services.workflows.domain import StepRecord, StepState, TaskOutcome, WorkflowRecord, WorkflowStatus, task_id_of
from services.workflows.engine import Decision, decide
from services.workflows.postgres.store import PostgresWorkflowStore
from services.workflows.signals import TaskEnded
from services.workflows.store import DispatchNote, WorkflowSnapshot
from tests.unit.workflows.rows import ID, NOW, step, workflow


@pytest.fixture
async def store(mesh_dsn: str) -> AsyncIterator[PostgresWorkflowStore]:
    db = Database(mesh_dsn, schema="workflows")
    await db.open()
    yield PostgresWorkflowStore(db)
    await db.close()


async def begun(store: PostgresWorkflowStore, **changes: Any) -> tuple[UUID, UUID]:
    """A workflow whose one step has a task: the step and the task."""
    task = task_id_of(ID, "a", 1)
    values = {"state": StepState.RUNNING, "attempt": 1, "task_id": task, "task_open": True, **changes}
    row = workflow(status=WorkflowStatus.RUNNING, started_at=NOW, current_step="a")
    whole = WorkflowSnapshot(row, (step("a", **values),))
    assert await store.create(whole, None, b"") is None
    return whole.steps[0].id, task


@pytest.mark.parametrize(
    ("dispatched", "checked", "trusted", "due"),
    [
        (61, 60, 3600, True),  # never asked for since it was made
        (3600, 60, 7200, False),  # asked for a minute ago, an hour after it was made
        (3600, 1900, 7200, True),  # as long ago as it had taken by then
        (36000, 1000, 72000, True),  # however long it takes
        (3600, 60, None, True),  # without NATS events may be lost
        (3600, 60, 30, True),  # the consumer was made again since
        (3600, 5, None, False),  # only just
    ],
)
async def test_a_long_task_is_asked_for_less_and_less_often_as_long_as_news_can_be_trusted(
    store: PostgresWorkflowStore, dispatched: float, checked: float, trusted: float | None, due: bool
) -> None:
    now = datetime.now(UTC)

    def ago(seconds: float) -> datetime:
        return now - timedelta(seconds=seconds)

    one, _ = await begun(store, dispatched_at=ago(dispatched), checked_at=ago(checked))
    since = None if trusted is None else ago(trusted)
    assert [found.id for found in await store.due_checks(15.0, since, 10)] == ([one] if due else [])
    if due:
        assert await store.due_checks(15.0, None, 10) == [], "it was noted that it is asked for"


async def test_a_made_task_is_noted(store: PostgresWorkflowStore) -> None:
    _, task = await begun(store, state=StepState.DISPATCHING)
    assert await store.accept([task, uuid4()]) == DispatchNote([], frozenset())
    whole = await store.get(ID)
    assert whole is not None
    assert whole.steps[0].state is StepState.RUNNING
    assert whole.steps[0].checked_at is not None


async def test_a_task_that_was_made_for_a_cancelled_step_is_told(store: PostgresWorkflowStore) -> None:
    one, task = await begun(store, state=StepState.CANCELLED, completed_at=NOW)
    assert [found.id for found in (await store.accept([task])).stopped] == [one]


async def test_only_versions_above_the_known_one_are_news(store: PostgresWorkflowStore) -> None:
    one, task = await begun(store, task_version=2)
    assert await store.steps_behind({task: 2, uuid4(): 9}) == []
    assert [found.id for found in await store.steps_behind({task: 3})] == [one]


async def test_that_a_task_was_made_does_not_keep_a_decision_from_being_written(store: PostgresWorkflowStore) -> None:
    one, task = await begun(store, state=StepState.DISPATCHING)
    before = await store.get(ID)
    assert before is not None
    await store.accept([task])

    def late(row: WorkflowRecord, steps: Sequence[StepRecord]) -> Decision:
        # Read before, as by a decision that was under way meanwhile.
        del steps
        return decide(row, before.steps, TaskEnded("a", task, 3, TaskOutcome.COMPLETED, b""), NOW)

    assert await store.advance(ID, late) is not None
    after = await store.get(ID)
    assert after is not None
    assert [(found.id, found.state) for found in after.steps] == [(one, StepState.COMPLETED)]
    assert after.workflow.status is WorkflowStatus.COMPLETED
