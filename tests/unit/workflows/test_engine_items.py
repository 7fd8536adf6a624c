"""Steps with a task for each item of a list."""

from dataclasses import replace

import pytest
from atelier.workflows.v1 import workflow_pb2
from google.protobuf.struct_pb2 import Struct

from services.workflows.domain import OnFailure, StepState, TaskOutcome, WorkflowStatus, task_id_of
from services.workflows.engine import Decision
from services.workflows.signals import Cancel, Pause, Resume, Start, TaskEnded
from tests.unit.workflows.rows import ID, rows
from tests.unit.workflows.world import World, decided, drain, states, task


def with_items(count: int, most: int = 2, **more: OnFailure) -> World:
    """A step with items, begun, and one that needs it."""
    row, steps = rows({"all": [], "end": ["all"]}, lists={"all": (count, most)}, **more)  # type: ignore[arg-type]  # names of `rows`
    world = World(row, steps, {}, most={"all": most})
    world.tell(Start())
    return world


def fail(world: World, name: str) -> Decision:
    return decided(world, TaskEnded(name, task(world, name), 2, TaskOutcome.FAILED, message="no"))


def test_items_are_begun_in_order_as_places_become_free() -> None:
    world = with_items(4)
    assert [one.step_id for one in world.steps if one.state is StepState.DISPATCHING] == ["all[0]", "all[1]"]
    decision = decided(world, TaskEnded("all[1]", task(world, "all[1]"), 2, TaskOutcome.COMPLETED, b""))
    assert [one.step_id for one in decision.dispatch] == ["all[2]"]
    assert world.workflow.current_step == "all"
    assert (world.workflow.total_steps, world.workflow.completed_steps) == (2, 0)


def test_identifiers_of_items_tasks_follow_from_step_item_and_attempt() -> None:
    world = with_items(2)
    assert task(world, "all[1]") == task_id_of(ID, "all[1]", 1)
    assert len({one.task_id for one in world.steps if one.parent} | {task_id_of(ID, "all", 1)}) == 3


def test_a_failed_item_lets_the_others_be_executed_and_then_fails_its_step() -> None:
    world = with_items(3, most=1)
    fail(world, "all[0]")
    assert states(world) == {
        "all": "RUNNING", "end": "PENDING", "all[0]": "FAILED", "all[1]": "DISPATCHING", "all[2]": "PENDING",
    }  # fmt: skip
    drain(world)
    assert states(world)["all"] == "FAILED"
    assert world.workflow.status is WorkflowStatus.FAILED
    assert world.workflow.error_message == "all[0]: no"


def test_a_failed_item_stops_the_others_where_failures_cancel() -> None:
    world = with_items(4, on_failure=OnFailure.CANCEL)
    decision = fail(world, "all[0]")
    assert [one.step_id for one in decision.cancel] == ["all[1]"]
    assert not decision.dispatch
    assert states(world) == {
        "all": "FAILED", "end": "PENDING", "all[0]": "FAILED", "all[1]": "CANCELLED", "all[2]": "PENDING",
        "all[3]": "PENDING",
    }  # fmt: skip
    decided(world, TaskEnded("all[1]", task(world, "all[1]"), 3, TaskOutcome.CANCELLED))
    decision = decided(world, Resume())
    assert [(one.step_id, one.attempt) for one in decision.dispatch] == [("all[0]", 2), ("all[1]", 2)]
    drain(world)
    assert world.workflow.status is WorkflowStatus.COMPLETED


def test_a_pause_begins_no_further_item_and_a_resume_goes_on() -> None:
    world = with_items(3, most=1)
    world.tell(Pause())
    drain(world)
    assert states(world) == {
        "all": "RUNNING", "end": "PENDING", "all[0]": "COMPLETED", "all[1]": "PENDING", "all[2]": "PENDING",
    }  # fmt: skip
    assert world.workflow.status.value == "PAUSED"
    world.tell(Resume())
    drain(world)
    assert world.workflow.status is WorkflowStatus.COMPLETED
    assert world.made["all[0]"] == 1


def test_a_cancel_stops_items_and_those_that_wait() -> None:
    world = with_items(3, most=2)
    decision = decided(world, Cancel())
    assert [one.step_id for one in decision.cancel] == ["all[0]", "all[1]"]
    assert set(states(world).values()) == {"CANCELLED"}


def read_from(value: str | list[str], **more: object) -> World:
    """A step whose items are read from another one's result."""
    row, steps = rows({"a": [], "all": ["a"]}, **more)  # type: ignore[arg-type]  # names of `rows`
    wanted = workflow_pb2.ForEach(from_step="a", from_field="payload", transform="to_list", max_parallel=1)
    if isinstance(value, list):
        wanted.ClearField("transform")
    world = World(row, (steps[0], replace(steps[1], for_each=wanted.SerializeToString())), {})
    decided(world, Start())
    result = Struct()
    result.update({"payload": value})
    decided(world, TaskEnded("a", task(world, "a"), 2, TaskOutcome.COMPLETED, result.SerializeToString()))
    return world


def test_items_are_read_from_a_result() -> None:
    world = read_from("one")
    assert states(world) == {"a": "COMPLETED", "all": "RUNNING", "all[0]": "DISPATCHING"}


@pytest.mark.parametrize("policy", OnFailure)
def test_a_list_that_is_too_long_fails_its_step_with_a_clear_error(policy: OnFailure) -> None:
    world = read_from(["x"] * 201, on_failure=policy)
    assert states(world) == {"a": "COMPLETED", "all": "FAILED"}
    assert world.workflow.error_message == "all: a.payload has 201 items; 200 are the most"
    assert world.workflow.status is WorkflowStatus.FAILED


def test_a_workflow_has_a_thousand_items_at_most() -> None:
    names = [f"s{at}" for at in range(6)]
    row, steps = rows({name: [] for name in names}, lists=dict.fromkeys(names, (200, 1)))
    world = World(row, steps, {})
    world.tell(Start())
    assert sum(one.parent is not None for one in world.steps) == 1000
    assert states(world)["s5"] == "FAILED"
    assert "1000 are the most" in (world.steps[5].error_message or "")


def test_what_a_failure_stops_in_the_decision_that_begins_it_is_never_asked_for() -> None:
    row, steps = rows({"a": [], "b": ["a"], "all": ["a"]}, on_failure=OnFailure.CANCEL)
    wanted = workflow_pb2.ForEach(from_step="a", from_field="payload", max_parallel=1)
    world = World(row, (*steps[:2], replace(steps[2], for_each=wanted.SerializeToString())), {})
    decided(world, Start())
    result = Struct()
    result.update({"payload": ["x"] * 201})
    decision = decided(world, TaskEnded("a", task(world, "a"), 2, TaskOutcome.COMPLETED, result.SerializeToString()))
    assert (decision.dispatch, decision.cancel) == ((), ())
    assert states(world) == {"a": "COMPLETED", "b": "CANCELLED", "all": "FAILED"}
    assert not any(one.task_open for one in world.steps)


def test_a_skipped_step_has_no_items() -> None:
    row, steps = rows({"a": [], "all": ["a"]}, lists={"all": (2, 2)})
    condition = workflow_pb2.StepCondition(from_step="a", from_field="payload", operator="exists")
    world = World(row, (steps[0], replace(steps[1], condition=condition.SerializeToString())), {})
    decided(world, Start())
    decided(world, TaskEnded("a", task(world, "a"), 2, TaskOutcome.COMPLETED, b""))
    assert states(world) == {"a": "COMPLETED", "all": "SKIPPED"}
    assert world.workflow.status is WorkflowStatus.COMPLETED
