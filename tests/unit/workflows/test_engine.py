"""The engine against a model that is simple enough to be seen to be right."""

import itertools
from collections import Counter, deque
from dataclasses import dataclass, field, replace
from random import Random
from uuid import UUID, uuid4

import pytest
from atelier.workflows.v1 import workflow_pb2
from google.protobuf import json_format
from google.protobuf.struct_pb2 import Struct
from hypothesis import given, settings
from hypothesis import strategies as st

from meshkit.errors import Kind, MeshError
from services.workflows import graph
from services.workflows.domain import (
    ACTIVE,
    STEP_TRANSITIONS,
    Approval,
    OnFailure,
    Outcome,
    Status,
    StepRecord,
    StepState,
    WorkflowRecord,
    item_name,
    may,
    step_may,
    task_id_of,
)
from services.workflows.engine import Decision, decide, decide_all
from services.workflows.signals import Accepted, Cancel, Closed, Ended, Event, Overdue, Pause, Refused, Resume, Start
from tests.unit.workflows.rows import ID, NOW, rows, step, workflow


@dataclass
class World:
    """A tasks service that never forgets, a bus that repeats and reorders, and a service that dies at any moment."""

    workflow: WorkflowRecord
    steps: tuple[StepRecord, ...]
    failures: dict[str, int]  # how many tasks of a step fail before one succeeds
    tasks: dict[UUID, str] = field(default_factory=dict)
    made: Counter[str] = field(default_factory=Counter)
    ended: dict[UUID, Ended] = field(default_factory=dict)
    news: deque[Event] = field(default_factory=deque)
    allowed: Counter[str] = field(default_factory=Counter)  # tasks that a step may have before it fails for good
    most: dict[str, int] = field(default_factory=dict)  # items of a step at once
    # What a crash of the database may leave: every state since the last one that was waited for.
    unsafe: list[tuple[WorkflowRecord, tuple[StepRecord, ...]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.allowed.update({one.step_id: one.max_retries + 1 for one in self.steps})

    def tell(self, event: Event) -> None:
        before = self.steps
        if isinstance(event, Resume):
            # A resume tries failed steps again, also where another branch was still paused.
            failed = {one.step_id: one.max_retries + 1 for one in before if one.state is StepState.FAILED}
            self.allowed.update(failed)
        decision = decide(self.workflow, self.steps, event, NOW)
        self.check(before, decision)
        # As the store does: what a caller asked for, and each change of the workflow's state, waits for the disk.
        if isinstance(event, Start | Pause | Resume | Cancel) or decision.workflow.status is not self.workflow.status:
            self.unsafe.clear()
        self.workflow, self.steps = decision.workflow, decision.steps
        self.unsafe.append((self.workflow, self.steps))

    def crash(self, chance: Random) -> None:
        """The database comes back without its last commits."""
        at = chance.randrange(len(self.unsafe))
        self.workflow, self.steps = self.unsafe[at]
        del self.unsafe[at + 1 :]

    def ask(self) -> None:
        """What the reconciler does: it asks for the tasks of active steps."""
        for one in self.steps:
            if one.state in ACTIVE and one.task_id in self.ended:
                self.news.append(self.ended[one.task_id])

    def check(self, before: tuple[StepRecord, ...], decision: Decision) -> None:
        named = [one for one in decision.steps if one.parent is None]
        done = {one.step_id for one in named if one.state is StepState.COMPLETED}
        needs = {one.step_id: one.depends_on for one in named}
        ends = STEP_TRANSITIONS[StepState.RUNNING]
        for old, new in zip(before, decision.steps, strict=False):
            # A retry passes through PENDING within one decision, a step with items through RUNNING.
            idle = {StepState.PENDING, StepState.FAILED, StepState.CANCELLED}
            assert (
                old.state is new.state
                or step_may(old.state, new.state)
                or (
                    old.state in {*ACTIVE, StepState.FAILED, StepState.CANCELLED} and new.state is StepState.DISPATCHING
                )
                or (new.for_each is not None and old.state in idle and new.state in {StepState.RUNNING, *ends})
            )
            if old.state is StepState.COMPLETED:
                assert new == old, "a completed step was touched"
        for new in decision.steps:
            if new.state in ACTIVE:
                assert done.issuperset(needs[new.parent or new.step_id]), "begun before what it depends on"
        for parent, most in self.most.items():
            assert sum(one.state in ACTIVE for one in decision.steps if one.parent == parent) <= most
        after = decision.workflow
        assert after.completed_steps == len(done)
        assert after.progress == 100 * len(done) / len(named)
        assert after.current_step == next((one.step_id for one in named if one.state in ACTIVE), None)
        assert (after.completed_at is None) == (after.status not in (Status.COMPLETED, Status.FAILED, Status.CANCELLED))
        for new in decision.steps[len(before) :]:
            self.allowed.setdefault(new.step_id, new.max_retries + 1)

    def make(self, one: StepRecord) -> None:
        """What a dispatcher does: it may do so any number of times."""
        assert one.task_id is not None
        if one.task_id not in self.tasks:
            self.tasks[one.task_id] = one.step_id
            self.made[one.step_id] += 1
        self.news.append(Accepted(one.step_id, one.task_id))

    def finish(self, task_id: UUID) -> None:
        if task_id in self.ended:
            return
        name = self.tasks[task_id]
        fails = self.failures.get(name, 0) > 0
        if fails:
            self.failures[name] -= 1
        result = Struct()
        result.update({"result_path": name})
        outcome = Outcome.FAILED if fails else Outcome.COMPLETED
        self.ended[task_id] = Ended(name, task_id, 3, outcome, result.SerializeToString())
        self.news.append(self.ended[task_id])


def turn(world: World, chance: Random) -> None:
    """One thing that happens: of all that can, any."""
    if chance.random() < 0.02:
        world.crash(chance)
        world.ask()
    rand, pick = chance.random(), chance.choice
    ordered = [one for one in world.steps if one.state is StepState.DISPATCHING]
    running = [task for task in world.tasks if task not in world.ended]
    status = world.workflow.status
    if not (ordered or running or world.news):
        world.ask()  # the end of a task that was made before a crash was heard before it
    assert ordered or running or world.news or status is Status.PAUSED, "stuck"
    if status is Status.PAUSED and (rand < 0.3 or not (ordered or running or world.news)):
        world.tell(Resume())
    elif status is Status.RUNNING and rand < 0.03:
        world.tell(Pause())
    elif ordered and rand < 0.5:
        world.make(pick(ordered))
    elif running and rand < 0.75:
        world.finish(pick(running))
    elif world.news:
        hear(world, chance)


def hear(world: World, chance: Random) -> None:
    """News comes late, twice or in another order; what a process knew of an accepted task dies with it."""
    rand, pick = chance.random(), chance.choice
    world.news.rotate(pick(range(len(world.news))))
    event = world.news.popleft() if rand < 0.8 else world.news[0]
    if not (isinstance(event, Accepted) and rand < 0.1):
        world.tell(event)


Lists = dict[str, tuple[int, int]]


def reference(
    shape: dict[str, list[str]], lists: Lists, failures: dict[str, int], allowed: Counter[str]
) -> dict[str, StepState]:
    """Where steps and items end when nothing but tasks' failures interferes."""
    found: dict[str, StepState] = {}

    def task_ends(name: str) -> StepState:
        return StepState.FAILED if failures.get(name, 0) >= allowed[name] else StepState.COMPLETED

    for name in graph.topological_order(shape):
        if any(found[one] is not StepState.COMPLETED for one in shape[name]):
            found[name] = StepState.PENDING
        elif name in lists:
            items = {item_name(name, at): task_ends(item_name(name, at)) for at in range(lists[name][0])}
            fails = StepState.FAILED in items.values()
            found |= {**items, name: StepState.FAILED if fails else StepState.COMPLETED}
        else:
            found[name] = task_ends(name)
    return found


@st.composite
def listed(draw: st.DrawFn, shape: dict[str, list[str]]) -> Lists:
    """Some of the steps have items, a few or none, one or several at once."""
    chance = Random(draw(st.integers(0, 2**32)))
    return {name: (chance.randint(0, 5), chance.randint(1, 3)) for name in shape if chance.random() < 0.3}


@st.composite
def shapes(draw: st.DrawFn) -> dict[str, list[str]]:
    count = draw(st.integers(1, 60))
    chance = Random(draw(st.integers(0, 2**32)))
    names = [f"s{index}" for index in range(count)]
    return {name: sorted(chance.sample(names[:at], min(at, chance.randint(0, 3)))) for at, name in enumerate(names)}


def tasks_of(shape: dict[str, list[str]], lists: Lists) -> list[str]:
    """Names of the steps and items that have tasks."""
    items = [item_name(name, at) for name, (count, _) in lists.items() for at in range(count)]
    return [*(name for name in shape if name not in lists), *items]


@settings(max_examples=60, deadline=None)
@given(st.data(), shapes(), st.integers(0, 2**32), st.integers(0, 2))
def test_any_interleaving_ends_as_the_reference_says(
    data: st.DataObject, shape: dict[str, list[str]], seed: int, retries: int
) -> None:
    chance = Random(seed)
    lists = data.draw(listed(shape))
    failures = {name: chance.choice([0, 0, 0, 1, 2, 3]) for name in tasks_of(shape, lists)}
    row, steps = rows(shape, max_retries=retries, lists=lists)
    world = World(row, steps, dict(failures), most={name: most for name, (_, most) in lists.items()})
    world.tell(Start())
    while world.news or world.workflow.status in (Status.RUNNING, Status.PAUSED):
        turn(world, chance)
    expected = reference(shape, lists, failures, world.allowed)
    assert {one.step_id: one.state for one in world.steps} == expected
    fails = StepState.FAILED in expected.values()
    assert world.workflow.status is (Status.FAILED if fails else Status.COMPLETED)
    for name in failures.keys() & expected.keys():
        wanted = {StepState.PENDING: 0, StepState.FAILED: world.allowed[name]}.get(expected[name], failures[name] + 1)
        assert world.made[name] == wanted, "a task was made twice, or not at all"
    assert set(world.made) <= failures.keys(), "a step with items has no task of its own"
    assert len(set(world.tasks)) == sum(world.made.values()), "two tasks of one identifier"
    for one in world.steps:
        if one.for_each is not None and one.state is StepState.COMPLETED:
            assert one.result is not None
            assert result_of(one.result) == {"count": lists[one.step_id][0], "items": results(world, one.step_id)}


def result_of(data: bytes) -> dict[str, object]:
    return json_format.MessageToDict(Struct.FromString(data))


def results(world: World, name: str) -> list[dict[str, object]]:
    items = {one.item_index: one for one in world.steps if one.parent == name}
    return [{"result_path": items[at].step_id} for at in range(len(items))]


@settings(max_examples=30, deadline=None)
@given(st.data(), shapes(), st.integers(0, 2**32))
def test_a_resumed_failure_reuses_every_completed_step(
    data: st.DataObject, shape: dict[str, list[str]], seed: int
) -> None:
    chance = Random(seed)
    lists = data.draw(listed(shape))
    failures = {name: chance.choice([0, 0, 1]) for name in tasks_of(shape, lists)}
    row, steps = rows(shape, lists=lists)
    world = World(row, steps, dict(failures), most={name: most for name, (_, most) in lists.items()})
    world.tell(Start())
    for _ in range(len(shape) + 2):
        drain(world)
        if world.workflow.status is Status.COMPLETED:
            break
        assert world.workflow.status is Status.FAILED
        world.tell(Resume())
    assert world.workflow.status is Status.COMPLETED
    assert world.workflow.error_message is None
    assert world.made == {name: count + 1 for name, count in failures.items()}


def drain(world: World) -> None:
    while True:
        for one in world.steps:
            if one.state is StepState.DISPATCHING:
                world.make(one)
        for task in list(world.tasks):
            world.finish(task)
        if not world.news:
            return
        while world.news:
            world.tell(world.news.popleft())


def running(shape: dict[str, list[str]], **more: OnFailure) -> World:
    row, steps = rows(shape, **more)  # type: ignore[arg-type]
    world = World(row, steps, {})
    world.tell(Start())
    for one in world.steps:
        if one.state is StepState.DISPATCHING:
            world.make(one)
    while world.news:
        world.tell(world.news.popleft())
    return world


def states(world: World) -> dict[str, str]:
    return {one.step_id: one.state.value for one in world.steps}


def task(world: World, name: str) -> UUID:
    found = next(one.task_id for one in world.steps if one.step_id == name)
    assert found is not None
    return found


def test_a_failure_that_cancels_stops_what_runs() -> None:
    world = running({"a": [], "b": [], "c": ["b"]}, on_failure=OnFailure.CANCEL)
    decision = decide(world.workflow, world.steps, Ended("a", task(world, "a"), 2, Outcome.FAILED, message="no"), NOW)
    assert decision.workflow.status is Status.FAILED
    assert [one.step_id for one in decision.cancel] == ["b"]
    assert [one.state for one in decision.steps] == [StepState.FAILED, StepState.CANCELLED, StepState.PENDING]


def test_a_failure_leaves_independent_branches_to_finish() -> None:
    world = running({"a": [], "b": [], "c": ["b"], "d": ["a"]})
    world.failures["a"] = 1
    drain(world)
    assert states(world) == {"a": "FAILED", "b": "COMPLETED", "c": "COMPLETED", "d": "PENDING"}
    assert world.workflow.status is Status.FAILED
    assert world.workflow.error_message == "a: The task failed"


def test_a_cancel_stops_running_steps_and_late_news_changes_nothing() -> None:
    world = running({"a": [], "b": ["a"]})
    decision = decide(world.workflow, world.steps, Cancel(), NOW)
    assert [one.step_id for one in decision.cancel] == ["a"]
    world.workflow, world.steps = decision.workflow, decision.steps
    world.tell(Ended("a", task(world, "a"), 2, Outcome.COMPLETED, b"late"))
    assert states(world) == {"a": "CANCELLED", "b": "CANCELLED"}
    assert not any(one.task_open for one in world.steps)


def test_a_task_made_after_the_cancel_is_cancelled_too() -> None:
    row, steps = rows({"a": []})
    world = World(row, steps, {})
    world.tell(Start())
    world.tell(Cancel())
    decision = decide(world.workflow, world.steps, Accepted("a", task(world, "a")), NOW)
    assert [one.step_id for one in decision.cancel] == ["a"]


def test_a_paused_workflow_begins_nothing_and_ends_when_nothing_is_left() -> None:
    world = running({"a": [], "b": ["a"]})
    world.tell(Pause())
    drain(world)
    assert states(world) == {"a": "COMPLETED", "b": "PENDING"}
    assert world.workflow.status is Status.PAUSED
    world.tell(Resume())
    world.tell(Pause())
    drain(world)
    assert states(world) == {"a": "COMPLETED", "b": "COMPLETED"}
    assert world.workflow.completed_at is not None


def test_a_refused_task_fails_its_step_without_a_retry() -> None:
    row, steps = rows({"a": []}, max_retries=3)
    world = World(row, steps, {})
    world.tell(Start())
    world.tell(Refused("a", task(world, "a"), "no such field"))
    assert states(world) == {"a": "FAILED"}
    assert world.workflow.errors == ["a: no such field"]


def test_a_task_cancelled_by_someone_fails_its_step() -> None:
    world = running({"a": []})
    world.tell(Ended("a", task(world, "a"), 2, Outcome.CANCELLED))
    assert world.workflow.status is Status.FAILED


ACTIONS = (Start(), Pause(), Resume(), Cancel())
ALLOWED = {
    (Status.PENDING, "Start"), (Status.PENDING, "Cancel"),
    (Status.RUNNING, "Pause"), (Status.RUNNING, "Cancel"),
    (Status.PAUSED, "Pause"), (Status.PAUSED, "Resume"), (Status.PAUSED, "Cancel"),
    (Status.FAILED, "Resume"), (Status.CANCELLED, "Cancel"),
}  # fmt: skip


@pytest.mark.parametrize(("status", "action"), list(itertools.product(Status, ACTIONS)), ids=str)
def test_a_caller_may_do_what_the_state_allows_and_nothing_else(status: Status, action: Event) -> None:
    row = workflow(status=status)
    if (status, type(action).__name__) in ALLOWED:
        decide(row, (step("a"),), action, NOW)
        return
    with pytest.raises(MeshError) as raised:
        decide(row, (step("a"),), action, NOW)
    assert raised.value.kind is Kind.CONFLICT


def test_every_pair_of_states_and_every_event_keeps_to_the_tables() -> None:
    """All states of two steps in a row, all states of the workflow, all events: nothing illegal can be reached."""
    first = task_id_of(ID, "a", 1)
    news: list[Event] = [
        *ACTIONS,
        Accepted("a", first),
        Refused("a", first, "no"),
        Closed("a", first),
        Overdue("a", first),
        *(Ended("a", first, 2, outcome, b"") for outcome in Outcome),
    ]
    for status, one, two, event, retries, policy in itertools.product(
        Status, StepState, StepState, news, (0, 1), OnFailure
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
        assert after is status or may(status, after) or (may(status, Status.RUNNING) and may(Status.RUNNING, after))
        for old, new in zip(steps, decision.steps, strict=True):
            again = step_may(old.state, StepState.PENDING) and step_may(StepState.PENDING, new.state)
            assert new.state is old.state or step_may(old.state, new.state) or again
            begun = new.state is StepState.DISPATCHING and not (new.task_id == old.task_id and old.state in ACTIVE)
            assert new.attempt == old.attempt + begun
        assert decide(decision.workflow, decision.steps, Closed("none", uuid4()), NOW).workflow.status is after


@settings(max_examples=60, deadline=None)
@given(shapes(), st.integers(0, 2**32), st.sampled_from(OnFailure))
def test_ends_decided_upon_together_do_what_they_do_one_by_one(
    shape: dict[str, list[str]], seed: int, policy: OnFailure
) -> None:
    chance = Random(seed)
    world = running(shape, on_failure=policy)
    ends: list[Event] = [
        Ended(one.step_id, one.task_id, 2, chance.choice([Outcome.COMPLETED, Outcome.COMPLETED, Outcome.FAILED]), b"")
        for one in world.steps
        if one.task_id is not None
    ]
    together = decide_all(world.workflow, world.steps, ends, NOW)
    for event in chance.sample(ends, len(ends)):
        world.tell(event)
    status = world.workflow.status
    assert together.workflow.status is status
    if policy is OnFailure.FINISH_RUNNING:  # else what had not ended at the first failure was stopped
        assert [one.state for one in together.steps] == [one.state for one in world.steps]


def test_nothing_happens_twice() -> None:
    world = running({"a": [], "b": ["a"]})
    done = Ended("a", task(world, "a"), 2, Outcome.COMPLETED, b"r")
    world.tell(done)
    again = decide(world.workflow, world.steps, done, NOW)
    assert again.workflow is world.workflow
    assert not again.dispatch
    older = replace(done, version=1, outcome=Outcome.FAILED)
    assert decide(world.workflow, world.steps, older, NOW).workflow is world.workflow


def decided(world: World, event: Event) -> Decision:
    decision = decide(world.workflow, world.steps, event, NOW)
    world.workflow, world.steps = decision.workflow, decision.steps
    return decision


def test_a_gate_pauses_the_workflow_until_it_is_resumed() -> None:
    row, steps = rows({"a": [], "b": ["a"], "c": []})
    world = World(row, (steps[0], replace(steps[1], approval=Approval.NEEDED), steps[2]), {})
    decided(world, Start())
    ready = [one for one in world.steps if one.state is StepState.DISPATCHING]
    for one in ready:
        world.make(one)
    first = task(world, "a")
    decided(world, Ended("a", first, 2, Outcome.COMPLETED, b""))
    assert world.workflow.status is Status.PAUSED
    assert world.workflow.current_step == "c"
    decided(world, Ended("c", task(world, "c"), 2, Outcome.COMPLETED, b""))
    assert (world.workflow.status, world.workflow.current_step) == (Status.PAUSED, "b")
    decision = decided(world, Resume())
    assert [one.step_id for one in decision.dispatch] == ["b"]
    assert states(world) == {"a": "COMPLETED", "b": "DISPATCHING", "c": "COMPLETED"}


def test_a_pause_by_a_caller_does_not_open_a_gate_that_was_not_reached() -> None:
    row, steps = rows({"a": [], "b": ["a"]})
    world = World(row, (steps[0], replace(steps[1], approval=Approval.NEEDED)), {})
    for event in (Start(), Pause(), Resume()):
        decided(world, event)
    decided(world, Ended("a", task(world, "a"), 2, Outcome.COMPLETED, b""))
    assert world.workflow.status is Status.PAUSED
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
    decided(world, Ended("a", task(world, "a"), 2, Outcome.COMPLETED, result.SerializeToString()))
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
    decided(world, Ended("d", task(world, "d"), 2, Outcome.COMPLETED, b""))
    assert world.workflow.status is Status.COMPLETED
    assert world.workflow.progress == 100


def test_a_task_that_takes_too_long_is_cancelled_and_tried_again() -> None:
    row, steps = rows({"a": []}, max_retries=1)
    world = World(row, (replace(steps[0], timeout_seconds=5.0),), {})
    decided(world, Start())
    first = task(world, "a")
    for _ in range(2):
        decision = decided(world, Overdue("a", first))
        assert [one.task_id for one in decision.cancel] == [first]
    decision = decided(world, Ended("a", first, 2, Outcome.CANCELLED))
    assert [one.attempt for one in decision.dispatch] == [2]
    assert world.workflow.errors == ["a: The task took longer than 5 s"]
    second = task(world, "a")
    decided(world, Overdue("a", second))
    decided(world, Ended("a", second, 2, Outcome.COMPLETED, b"made it after all"))
    assert world.workflow.status is Status.COMPLETED


def with_items(count: int, most: int = 2, **more: OnFailure) -> World:
    """A step with items, begun, and one that needs it."""
    row, steps = rows({"all": [], "end": ["all"]}, lists={"all": (count, most)}, **more)  # type: ignore[arg-type]
    world = World(row, steps, {}, most={"all": most})
    world.tell(Start())
    return world


def fail(world: World, name: str) -> Decision:
    return decided(world, Ended(name, task(world, name), 2, Outcome.FAILED, message="no"))


def test_items_are_begun_in_order_as_places_become_free() -> None:
    world = with_items(4)
    assert [one.step_id for one in world.steps if one.state is StepState.DISPATCHING] == ["all[0]", "all[1]"]
    decision = decided(world, Ended("all[1]", task(world, "all[1]"), 2, Outcome.COMPLETED, b""))
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
    assert world.workflow.status is Status.FAILED
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
    decided(world, Ended("all[1]", task(world, "all[1]"), 3, Outcome.CANCELLED))
    decision = decided(world, Resume())
    assert [(one.step_id, one.attempt) for one in decision.dispatch] == [("all[0]", 2), ("all[1]", 2)]
    drain(world)
    assert world.workflow.status is Status.COMPLETED


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
    assert world.workflow.status is Status.COMPLETED
    assert world.made["all[0]"] == 1


def test_a_cancel_stops_items_and_those_that_wait() -> None:
    world = with_items(3, most=2)
    decision = decided(world, Cancel())
    assert [one.step_id for one in decision.cancel] == ["all[0]", "all[1]"]
    assert set(states(world).values()) == {"CANCELLED"}


def read_from(value: str | list[str], **more: object) -> World:
    """A step whose items are read from another one's result."""
    row, steps = rows({"a": [], "all": ["a"]}, **more)  # type: ignore[arg-type]
    wanted = workflow_pb2.ForEach(from_step="a", from_field="payload", transform="to_list", max_parallel=1)
    if isinstance(value, list):
        wanted.ClearField("transform")
    world = World(row, (steps[0], replace(steps[1], for_each=wanted.SerializeToString())), {})
    decided(world, Start())
    result = Struct()
    result.update({"payload": value})
    decided(world, Ended("a", task(world, "a"), 2, Outcome.COMPLETED, result.SerializeToString()))
    return world


def test_items_are_read_from_a_result() -> None:
    world = read_from("one")
    assert states(world) == {"a": "COMPLETED", "all": "RUNNING", "all[0]": "DISPATCHING"}


@pytest.mark.parametrize("policy", OnFailure)
def test_a_list_that_is_too_long_fails_its_step_with_a_clear_error(policy: OnFailure) -> None:
    world = read_from(["x"] * 201, on_failure=policy)
    assert states(world) == {"a": "COMPLETED", "all": "FAILED"}
    assert world.workflow.error_message == "all: a.payload has 201 items; 200 are the most"
    assert world.workflow.status is Status.FAILED


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
    decision = decided(world, Ended("a", task(world, "a"), 2, Outcome.COMPLETED, result.SerializeToString()))
    assert (decision.dispatch, decision.cancel) == ((), ())
    assert states(world) == {"a": "COMPLETED", "b": "CANCELLED", "all": "FAILED"}
    assert not any(one.task_open for one in world.steps)


def test_a_skipped_step_has_no_items() -> None:
    row, steps = rows({"a": [], "all": ["a"]}, lists={"all": (2, 2)})
    condition = workflow_pb2.StepCondition(from_step="a", from_field="payload", operator="exists")
    world = World(row, (steps[0], replace(steps[1], condition=condition.SerializeToString())), {})
    decided(world, Start())
    decided(world, Ended("a", task(world, "a"), 2, Outcome.COMPLETED, b""))
    assert states(world) == {"a": "COMPLETED", "all": "SKIPPED"}
    assert world.workflow.status is Status.COMPLETED
