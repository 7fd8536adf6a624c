"""The engine against a model that is simple enough to be seen to be right."""

from collections import Counter
from random import Random

from google.protobuf import json_format
from google.protobuf.struct_pb2 import Struct
from hypothesis import given, settings
from hypothesis import strategies as st

from services.workflows import graph
from services.workflows.domain import OnFailure, StepState, TaskOutcome, WorkflowStatus, item_name
from services.workflows.engine import decide_all
from services.workflows.signals import Event, Pause, Resume, Start, TaskAccepted, TaskEnded
from tests.unit.workflows.rows import NOW, rows
from tests.unit.workflows.world import World, drain, running


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
    assert ordered or running or world.news or status is WorkflowStatus.PAUSED, "stuck"
    if status is WorkflowStatus.PAUSED and (rand < 0.3 or not (ordered or running or world.news)):
        world.tell(Resume())
    elif status is WorkflowStatus.RUNNING and rand < 0.03:
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
    if not (isinstance(event, TaskAccepted) and rand < 0.1):
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
    while world.news or world.workflow.status in (WorkflowStatus.RUNNING, WorkflowStatus.PAUSED):
        turn(world, chance)
    expected = reference(shape, lists, failures, world.allowed)
    assert {one.step_id: one.state for one in world.steps} == expected
    fails = StepState.FAILED in expected.values()
    assert world.workflow.status is (WorkflowStatus.FAILED if fails else WorkflowStatus.COMPLETED)
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
        if world.workflow.status is WorkflowStatus.COMPLETED:
            break
        assert world.workflow.status is WorkflowStatus.FAILED
        world.tell(Resume())
    assert world.workflow.status is WorkflowStatus.COMPLETED
    assert world.workflow.error_message is None
    assert world.made == {name: count + 1 for name, count in failures.items()}


@settings(max_examples=60, deadline=None)
@given(shapes(), st.integers(0, 2**32), st.sampled_from(OnFailure))
def test_ends_decided_upon_together_do_what_they_do_one_by_one(
    shape: dict[str, list[str]], seed: int, policy: OnFailure
) -> None:
    chance = Random(seed)
    world = running(shape, on_failure=policy)
    ends: list[Event] = [
        TaskEnded(
            one.step_id,
            one.task_id,
            2,
            chance.choice([TaskOutcome.COMPLETED, TaskOutcome.COMPLETED, TaskOutcome.FAILED]),
            b"",
        )
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
