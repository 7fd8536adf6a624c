"""A world that workflows live in, for tests of the engine: it loses, repeats and reorders what may be."""

from collections import Counter, deque
from dataclasses import dataclass, field
from random import Random
from uuid import UUID

from google.protobuf.struct_pb2 import Struct

from services.workflows.domain import (
    ACTIVE,
    STEP_TRANSITIONS,
    OnFailure,
    StepRecord,
    StepState,
    TaskOutcome,
    WorkflowRecord,
    WorkflowStatus,
    step_may,
)
from services.workflows.engine import Decision, decide
from services.workflows.signals import Cancel, Event, Pause, Resume, Start, TaskAccepted, TaskEnded
from tests.unit.workflows.rows import NOW, rows


@dataclass
class World:
    """A tasks service that never forgets, a bus that repeats and reorders, and a service that dies at any moment."""

    workflow: WorkflowRecord
    steps: tuple[StepRecord, ...]
    failures: dict[str, int]  # how many tasks of a step fail before one succeeds
    tasks: dict[UUID, str] = field(default_factory=dict)
    made: Counter[str] = field(default_factory=Counter)
    ended: dict[UUID, TaskEnded] = field(default_factory=dict)
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
        assert (after.completed_at is None) == (
            after.status not in (WorkflowStatus.COMPLETED, WorkflowStatus.FAILED, WorkflowStatus.CANCELLED)
        )
        for new in decision.steps[len(before) :]:
            self.allowed.setdefault(new.step_id, new.max_retries + 1)

    def make(self, one: StepRecord) -> None:
        """What a dispatcher does: it may do so any number of times."""
        assert one.task_id is not None
        if one.task_id not in self.tasks:
            self.tasks[one.task_id] = one.step_id
            self.made[one.step_id] += 1
        self.news.append(TaskAccepted(one.step_id, one.task_id))

    def finish(self, task_id: UUID) -> None:
        if task_id in self.ended:
            return
        name = self.tasks[task_id]
        fails = self.failures.get(name, 0) > 0
        if fails:
            self.failures[name] -= 1
        result = Struct()
        result.update({"result_path": name})
        outcome = TaskOutcome.FAILED if fails else TaskOutcome.COMPLETED
        self.ended[task_id] = TaskEnded(name, task_id, 3, outcome, result.SerializeToString())
        self.news.append(self.ended[task_id])


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
    row, steps = rows(shape, **more)  # type: ignore[arg-type]  # names of `rows`
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


def decided(world: World, event: Event) -> Decision:
    decision = decide(world.workflow, world.steps, event, NOW)
    world.workflow, world.steps = decision.workflow, decision.steps
    return decision
