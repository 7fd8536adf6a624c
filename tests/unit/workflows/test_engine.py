"""What the engine makes of events: rules of failures, cancels, pauses, gates, conditions and timeouts."""

import itertools
from dataclasses import replace
from datetime import timedelta
from uuid import uuid4

import pytest
from atelier.workflows.v1 import workflow_pb2
from google.protobuf import json_format
from google.protobuf.struct_pb2 import Struct

from meshkit.errors import ErrorKind, MeshError
from services.workflows.domain import (
    ACTIVE,
    Approval,
    OnFailure,
    StepState,
    TaskOutcome,
    WorkflowStatus,
    may,
    step_may,
    task_id_of,
)
from services.workflows.engine import decide
from services.workflows.signals import (
    Cancel,
    Event,
    Overdue,
    Pause,
    Resume,
    Start,
    TaskAccepted,
    TaskClosed,
    TaskEnded,
    TaskRefused,
)
from tests.unit.workflows.rows import ID, NOW, rows, step, workflow
from tests.unit.workflows.world import World, decided, drain, running, states, task


def test_a_failure_that_cancels_stops_what_runs() -> None:
    world = running({"a": [], "b": [], "c": ["b"]}, on_failure=OnFailure.CANCEL)
    decision = decide(
        world.workflow, world.steps, TaskEnded("a", task(world, "a"), 2, TaskOutcome.FAILED, message="no"), NOW
    )
    assert decision.workflow.status is WorkflowStatus.FAILED
    assert [one.step_id for one in decision.cancel] == ["b"]
    assert [one.state for one in decision.steps] == [StepState.FAILED, StepState.CANCELLED, StepState.PENDING]


def test_a_replica_whose_clock_is_behind_ends_nothing_before_it_began() -> None:
    world = running({"a": []})
    ended = TaskEnded("a", task(world, "a"), 2, TaskOutcome.FAILED, message="no")
    after = decide(world.workflow, world.steps, ended, NOW - timedelta(seconds=5))
    for one in (after.workflow, after.steps[0]):
        assert one.started_at is not None
        assert one.completed_at is not None
        assert one.completed_at >= one.started_at
    assert after.workflow.updated_at > world.workflow.updated_at


def test_a_failure_leaves_independent_branches_to_finish() -> None:
    world = running({"a": [], "b": [], "c": ["b"], "d": ["a"]})
    world.failures["a"] = 1
    drain(world)
    assert states(world) == {"a": "FAILED", "b": "COMPLETED", "c": "COMPLETED", "d": "PENDING"}
    assert world.workflow.status is WorkflowStatus.FAILED
    assert world.workflow.error_message == "a: The task failed"


def test_a_cancel_stops_running_steps_and_late_news_changes_nothing() -> None:
    world = running({"a": [], "b": ["a"]})
    decision = decide(world.workflow, world.steps, Cancel(), NOW)
    assert [one.step_id for one in decision.cancel] == ["a"]
    world.workflow, world.steps = decision.workflow, decision.steps
    world.tell(TaskEnded("a", task(world, "a"), 2, TaskOutcome.COMPLETED, b"late"))
    assert states(world) == {"a": "CANCELLED", "b": "CANCELLED"}
    assert not any(one.task_open for one in world.steps)


def test_a_task_made_after_the_cancel_is_cancelled_too() -> None:
    row, steps = rows({"a": []})
    world = World(row, steps, {})
    world.tell(Start())
    world.tell(Cancel())
    decision = decide(world.workflow, world.steps, TaskAccepted("a", task(world, "a")), NOW)
    assert [one.step_id for one in decision.cancel] == ["a"]


def test_a_paused_workflow_begins_nothing_and_ends_when_nothing_is_left() -> None:
    world = running({"a": [], "b": ["a"]})
    world.tell(Pause())
    drain(world)
    assert states(world) == {"a": "COMPLETED", "b": "PENDING"}
    assert world.workflow.status is WorkflowStatus.PAUSED
    world.tell(Resume())
    world.tell(Pause())
    drain(world)
    assert states(world) == {"a": "COMPLETED", "b": "COMPLETED"}
    assert world.workflow.completed_at is not None


def test_a_refused_task_fails_its_step_without_a_retry() -> None:
    row, steps = rows({"a": []}, max_retries=3)
    world = World(row, steps, {})
    world.tell(Start())
    world.tell(TaskRefused("a", task(world, "a"), "no such field"))
    assert states(world) == {"a": "FAILED"}
    assert world.workflow.errors == ["a: no such field"]


def test_a_task_cancelled_by_someone_fails_its_step() -> None:
    world = running({"a": []})
    world.tell(TaskEnded("a", task(world, "a"), 2, TaskOutcome.CANCELLED))
    assert world.workflow.status is WorkflowStatus.FAILED


ACTIONS = (Start(), Pause(), Resume(), Cancel())
ALLOWED = {
    (WorkflowStatus.PENDING, "Start"), (WorkflowStatus.PENDING, "Cancel"),
    (WorkflowStatus.RUNNING, "Pause"), (WorkflowStatus.RUNNING, "Cancel"),
    (WorkflowStatus.PAUSED, "Pause"), (WorkflowStatus.PAUSED, "Resume"), (WorkflowStatus.PAUSED, "Cancel"),
    (WorkflowStatus.FAILED, "Resume"), (WorkflowStatus.CANCELLED, "Cancel"),
}  # fmt: skip


@pytest.mark.parametrize(("status", "action"), list(itertools.product(WorkflowStatus, ACTIONS)), ids=str)
def test_a_caller_may_do_what_the_state_allows_and_nothing_else(status: WorkflowStatus, action: Event) -> None:
    row = workflow(status=status)
    if (status, type(action).__name__) in ALLOWED:
        decide(row, (step("a"),), action, NOW)
        return
    with pytest.raises(MeshError) as raised:
        decide(row, (step("a"),), action, NOW)
    assert raised.value.kind is ErrorKind.CONFLICT


def test_every_pair_of_states_and_every_event_keeps_to_the_tables() -> None:
    """All states of two steps in a row, all states of the workflow, all events: nothing illegal can be reached."""
    first = task_id_of(ID, "a", 1)
    news: list[Event] = [
        *ACTIONS,
        TaskAccepted("a", first),
        TaskRefused("a", first, "no"),
        TaskClosed("a", first),
        Overdue("a", first),
        *(TaskEnded("a", first, 2, outcome, b"") for outcome in TaskOutcome),
    ]
    for status, one, two, event, retries, policy in itertools.product(
        WorkflowStatus, StepState, StepState, news, (0, 1), OnFailure
    ):
        row = workflow(2, "b", status=status, on_failure=policy)
        steps = (
            step("a", state=one, attempt=1, task_id=first, task_open=one in ACTIVE, max_retries=retries),
            step("b", ("a",), 1, state=two, attempt=1, task_id=task_id_of(ID, "b", 1), task_open=two in ACTIVE),
        )
        try:
            decision = decide(row, steps, event, NOW)
        except MeshError:
            continue
        after = decision.workflow.status
        assert (
            after is status
            or may(status, after)
            or (may(status, WorkflowStatus.RUNNING) and may(WorkflowStatus.RUNNING, after))
        )
        for old, new in zip(steps, decision.steps, strict=True):
            again = step_may(old.state, StepState.PENDING) and step_may(StepState.PENDING, new.state)
            assert new.state is old.state or step_may(old.state, new.state) or again
            assert new.task_open or new.state not in ACTIVE, "the database refuses it"
            begun = new.state is StepState.DISPATCHING and not (new.task_id == old.task_id and old.state in ACTIVE)
            assert new.attempt == old.attempt + begun
        assert decide(decision.workflow, decision.steps, TaskClosed("none", uuid4()), NOW).workflow.status is after


def test_nothing_happens_twice() -> None:
    world = running({"a": [], "b": ["a"]})
    done = TaskEnded("a", task(world, "a"), 2, TaskOutcome.COMPLETED, b"r")
    world.tell(done)
    again = decide(world.workflow, world.steps, done, NOW)
    assert again.workflow is world.workflow
    assert not again.dispatch
    older = replace(done, version=1, outcome=TaskOutcome.FAILED)
    assert decide(world.workflow, world.steps, older, NOW).workflow is world.workflow


def test_a_gate_pauses_the_workflow_until_it_is_resumed() -> None:
    row, steps = rows({"a": [], "b": ["a"], "c": []})
    world = World(row, (steps[0], replace(steps[1], approval=Approval.NEEDED), steps[2]), {})
    decided(world, Start())
    ready = [one for one in world.steps if one.state is StepState.DISPATCHING]
    for one in ready:
        world.make(one)
    first = task(world, "a")
    decided(world, TaskEnded("a", first, 2, TaskOutcome.COMPLETED, b""))
    assert world.workflow.status is WorkflowStatus.PAUSED
    assert world.workflow.current_step == "c"
    decided(world, TaskEnded("c", task(world, "c"), 2, TaskOutcome.COMPLETED, b""))
    assert (world.workflow.status, world.workflow.current_step) == (WorkflowStatus.PAUSED, "b")
    decision = decided(world, Resume())
    assert [one.step_id for one in decision.dispatch] == ["b"]
    assert states(world) == {"a": "COMPLETED", "b": "DISPATCHING", "c": "COMPLETED"}


def test_a_pause_by_a_caller_does_not_open_a_gate_that_was_not_reached() -> None:
    row, steps = rows({"a": [], "b": ["a"]})
    world = World(row, (steps[0], replace(steps[1], approval=Approval.NEEDED)), {})
    for event in (Start(), Pause(), Resume()):
        decided(world, event)
    decided(world, TaskEnded("a", task(world, "a"), 2, TaskOutcome.COMPLETED, b""))
    assert world.workflow.status is WorkflowStatus.PAUSED
    assert states(world)["b"] == "PENDING"


def conditional(operator: str, value: object = None) -> World:
    row, steps = rows({"a": [], "b": ["a"], "c": ["b"], "d": ["a"]})
    fields = {"from_step": "a", "from_field": "steps", "operator": operator, "value": value}
    condition = json_format.ParseDict(
        {name: one for name, one in fields.items() if one is not None}, workflow_pb2.StepCondition()
    )
    gated = replace(steps[1], condition=condition.SerializeToString())
    world = World(row, (steps[0], gated, *steps[2:]), {})
    decided(world, Start())
    result = Struct()
    result.update({"steps": 3})
    decided(world, TaskEnded("a", task(world, "a"), 2, TaskOutcome.COMPLETED, result.SerializeToString()))
    return world


@pytest.mark.parametrize(
    ("operator", "value", "begun"),
    [
        ("exists", None, True),
        ("missing", None, False),
        ("equals", 3, True),
        ("not_equals", 3, False),
        ("less", 3, False),
        ("less", 3.5, True),
        ("greater", 2, True),
    ],
)
def test_a_step_is_begun_where_its_condition_holds_and_else_skipped_with_all_that_need_it(
    operator: str, value: object, begun: bool
) -> None:
    world = conditional(operator, value)
    expected = ("DISPATCHING", "PENDING") if begun else ("SKIPPED", "SKIPPED")
    assert (states(world)["b"], states(world)["c"]) == expected
    assert states(world)["d"] == "DISPATCHING"


def test_a_workflow_whose_last_steps_are_skipped_completes() -> None:
    world = conditional("missing")
    decided(world, TaskEnded("d", task(world, "d"), 2, TaskOutcome.COMPLETED, b""))
    assert world.workflow.status is WorkflowStatus.COMPLETED
    assert world.workflow.progress == 100


def test_a_task_that_takes_too_long_is_cancelled_and_tried_again() -> None:
    row, steps = rows({"a": []}, max_retries=1)
    world = World(row, (replace(steps[0], timeout_seconds=5.0),), {})
    decided(world, Start())
    first = task(world, "a")
    for _ in range(2):
        decision = decided(world, Overdue("a", first))
        assert [one.task_id for one in decision.cancel] == [first]
    decision = decided(world, TaskEnded("a", first, 2, TaskOutcome.CANCELLED))
    assert [one.attempt for one in decision.dispatch] == [2]
    assert world.workflow.errors == ["a: The task took longer than 5 s"]
    second = task(world, "a")
    decided(world, Overdue("a", second))
    decided(world, TaskEnded("a", second, 2, TaskOutcome.COMPLETED, b"made it after all"))
    assert world.workflow.status is WorkflowStatus.COMPLETED
