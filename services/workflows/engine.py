"""What an event does to a workflow: a pure function of the rows and the event to new rows and work to be done.

Nothing is lost when a process dies, because rows say what is still to be done. A DISPATCHING step needs its task made.
A step with an open task in an ended workflow needs that task cancelled. Any process may do either again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from atelier.workflows.v1 import workflow_pb2

from services.workflows.condition import holds
from services.workflows.domain import (
    ACTIVE,
    DONE,
    ENDED,
    MAX_ERRORS,
    MAX_STEPS,
    Approval,
    OnFailure,
    StepRecord,
    StepState,
    TaskOutcome,
    WorkflowRecord,
    WorkflowStatus,
    clip_error,
    item_name,
    may,
    step_may,
    step_row_id,
    task_id_of,
)
from services.workflows.errors import cleaned_up, illegal_transition
from services.workflows.items import MAX_ITEMS, MAX_ITEMS_IN_ALL, ItemsError, collected, items_of
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

_TICK = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Decision:
    """What an event did.

    Attributes:
        workflow: The workflow after it; the same object where nothing changed.
        steps: Its steps after it, in the same order; the same objects where they did not change. Items that it began
            come after them.
        dispatch: Steps whose tasks are to be made now.
        cancel: Steps whose tasks are to be cancelled now.
    """

    workflow: WorkflowRecord
    steps: tuple[StepRecord, ...]
    dispatch: tuple[StepRecord, ...] = ()
    cancel: tuple[StepRecord, ...] = ()


def decide(workflow: WorkflowRecord, steps: Sequence[StepRecord], event: Event, now: datetime) -> Decision:
    """Return what an event does.

    Args:
        workflow: The workflow.
        steps: All of its steps, in the order of the definition.
        event: What happened; repeated and late ones change nothing.
        now: The moment, in UTC.

    Raises:
        MeshError: `CONFLICT` where a caller asks for what the state does not allow.
    """
    return decide_all(workflow, steps, [event], now)


def decide_all(
    workflow: WorkflowRecord, steps: Sequence[StepRecord], events: Sequence[Event], now: datetime
) -> Decision:
    """Return what events do that came together: one decision, whatever their order.

    Args:
        workflow: The workflow.
        steps: All of its steps, in the order of the definition.
        events: What happened.
        now: The moment, in UTC.

    Raises:
        MeshError: `CONFLICT` where a caller asks for what the state does not allow.
    """
    work = _Draft(workflow, list(steps), now)
    for event in events:
        match event:
            case Start():
                work.start()
            case Pause():
                work.pause()
            case Resume():
                work.resume()
            case Cancel():
                work.cancel()
            case _:
                work.process(event)
    work.settle()
    return work.decision(workflow, steps)


class _Draft:
    """The rows while they are decided upon."""

    def __init__(self, workflow: WorkflowRecord, steps: list[StepRecord], now: datetime) -> None:
        self.workflow = workflow
        self.steps = steps
        # Replicas have clocks of their own: what follows is later than what it follows from.
        self.now = max(now, workflow.updated_at + _TICK)
        self._fresh: list[int] = []
        self._stopped: list[int] = []
        self._abandoned: list[StepRecord] = []

    def start(self) -> None:
        if self.workflow.is_deleted:
            raise cleaned_up()
        if self.workflow.status is not WorkflowStatus.PENDING:
            raise illegal_transition(self.workflow.status, "started")
        self._go(WorkflowStatus.RUNNING)
        self.workflow = replace(self.workflow, started_at=self.now)

    def pause(self) -> None:
        if self.workflow.status is WorkflowStatus.PAUSED:
            return
        if self.workflow.status is not WorkflowStatus.RUNNING:
            raise illegal_transition(self.workflow.status, "paused")
        self._go(WorkflowStatus.PAUSED)

    def resume(self) -> None:
        if self.workflow.is_deleted:
            raise cleaned_up()
        if self.workflow.status not in (WorkflowStatus.FAILED, WorkflowStatus.PAUSED):
            raise illegal_transition(self.workflow.status, "resumed")
        for index, step in enumerate(self.steps):
            if step.state in (StepState.FAILED, StepState.CANCELLED):
                if step.task_open:
                    # Its end was not confirmed, and its row is about to name another task.
                    self._abandoned.append(step)
                self._move(
                    index,
                    StepState.PENDING,
                    retry_count=0,
                    error_message=None,
                    started_at=None,
                    completed_at=None,
                    task_open=False,
                )
        for index, step in enumerate(self.steps):
            if step.approval is Approval.ASKED:
                self.steps[index] = replace(step, approval=Approval.GIVEN)
        self._go(WorkflowStatus.RUNNING)
        self.workflow = replace(self.workflow, error_message=None, completed_at=None)

    def cancel(self) -> None:
        if self.workflow.status is WorkflowStatus.CANCELLED:
            return
        if not may(self.workflow.status, WorkflowStatus.CANCELLED):
            raise illegal_transition(self.workflow.status, "cancelled")
        for index, step in enumerate(self.steps):
            if step_may(step.state, StepState.CANCELLED):
                self._stop(index, step)
        self._end(WorkflowStatus.CANCELLED)

    def process(self, event: TaskAccepted | TaskRefused | TaskEnded | TaskClosed | Overdue) -> None:
        index = next((place for place, step in enumerate(self.steps) if step.step_id == event.step_id), None)
        # Events of a task of an earlier attempt change nothing.
        if index is None or self.steps[index].task_id != event.task_id:
            return
        step = self.steps[index]
        match event:
            case TaskAccepted():
                self._accepted(index, step)
            case TaskRefused():
                if step.state is StepState.DISPATCHING:
                    self._fail(index, event.message, retryable=False)
                elif step.state not in ACTIVE and step.task_open:
                    self.steps[index] = replace(step, task_open=False)
            case TaskClosed():
                if step.state not in ACTIVE and step.task_open:
                    self.steps[index] = replace(step, task_open=False)
            case Overdue():
                self._overdue(index, step)
            case TaskEnded():
                self._ended(index, step, event)

    def settle(self) -> None:
        """Start the steps that may start, and end the workflow where nothing is left to do."""
        if self.workflow.status not in (WorkflowStatus.RUNNING, WorkflowStatus.PAUSED):
            return
        self._gather()
        if self._is_stopped_by_failure():
            return
        ready = self._ready()
        if self.workflow.status is WorkflowStatus.RUNNING:
            ready = self._begin(ready)
            if self._is_stopped_by_failure():
                return
        if not ready and not any(step.state in ACTIVE for step in self.steps):
            self._end(WorkflowStatus.FAILED if self._any_failed() else WorkflowStatus.COMPLETED)

    def _any_failed(self) -> bool:
        return any(step.state is StepState.FAILED for step in self.steps)

    def _is_stopped_by_failure(self) -> bool:
        """Whether a failed step ends the workflow at once; then it has."""
        if self.workflow.on_failure is not OnFailure.CANCEL or not self._any_failed():
            return False
        for index, step in enumerate(self.steps):
            if step.state in ACTIVE:
                self._stop(index, step)
        self._end(WorkflowStatus.FAILED)
        return True

    def decision(self, before: WorkflowRecord, steps: Sequence[StepRecord]) -> Decision:
        fresh = self.steps[len(steps) :]
        changed = [new is not old for new, old in zip(self.steps, steps, strict=False)] + [False] * len(fresh)
        if self.workflow is before and not any(changed):
            return Decision(before, tuple(steps), cancel=tuple(self.steps[index] for index in self._stopped))
        self.steps = [
            replace(step, updated_at=self.now) if moved else step
            for step, moved in zip(self.steps, changed, strict=True)
        ]
        named = [step for step in self.steps if step.parent is None]
        asked = (step.step_id for step in named if step.approval is Approval.ASKED)
        ended = self.workflow.status in ENDED
        running = next((step.step_id for step in named if step.state in ACTIVE), None if ended else next(asked, None))
        self.workflow = replace(
            self.workflow,
            completed_steps=sum(step.state in DONE for step in named),
            current_step=running,
            version=before.version + 1,
            updated_at=self.now,
        )
        return Decision(
            self.workflow,
            tuple(self.steps),
            tuple(self.steps[index] for index in self._fresh),
            (*self._abandoned, *(self.steps[index] for index in self._stopped)),
        )

    def _accepted(self, index: int, step: StepRecord) -> None:
        if step.state is StepState.DISPATCHING:
            self._move(index, StepState.RUNNING, checked_at=self.now)
        elif step.state is StepState.CANCELLED and step.task_open:
            # The task was made after its cancel had not found it.
            self._stopped.append(index)

    def _begin(self, ready: list[int]) -> list[int]:
        """Start steps, skip them, or pause for a decision on them; return those that still wait for one."""
        gated: list[int] = []
        while ready:
            for index in ready:
                step = self.steps[index]
                if step.parent is None and self._is_skipped(step):
                    self._move(index, StepState.SKIPPED, completed_at=self.now)
                elif step.approval in (Approval.NEEDED, Approval.ASKED):
                    self.steps[index] = replace(step, approval=Approval.ASKED)
                    gated.append(index)
                elif step.for_each is not None:
                    self._open(index)
                else:
                    self._dispatch(index)
            self._gather()
            # A step that was skipped, or had no items, may be the last one that others waited for.
            ready = [index for index in self._ready() if index not in gated]
        if gated:
            self._go(WorkflowStatus.PAUSED)
        return gated

    def _is_skipped(self, step: StepRecord) -> bool:
        by_name = {one.step_id: one for one in self.steps}
        if any(by_name[name].state is StepState.SKIPPED for name in step.depends_on):
            return True
        if step.condition is None or step.attempt or self._has_items(step):
            return False
        source = workflow_pb2.StepCondition.FromString(step.condition).from_step
        return not holds(step.condition, by_name[source])

    def _overdue(self, index: int, step: StepRecord) -> None:
        if step.state in ACTIVE:
            if not step.overdue:
                self.steps[index] = replace(step, overdue=True)
            # Its end follows from its task's: until that is processed, the cancel is repeated.
            self._stopped.append(index)

    def _ended(self, index: int, step: StepRecord, event: TaskEnded) -> None:
        if event.version <= step.task_version:
            return
        processed = replace(step, task_version=event.version, task_open=False)
        self.steps[index] = processed
        if step.state not in ACTIVE:
            return
        if event.outcome is TaskOutcome.COMPLETED:
            self._move(index, StepState.COMPLETED, result=event.result, error_message=None, completed_at=self.now)
        elif event.outcome is TaskOutcome.CANCELLED and step.overdue:
            self._fail(index, f"The task took longer than {step.timeout_seconds:g} s", retryable=True)
        elif event.outcome is TaskOutcome.CANCELLED:
            self._fail(index, event.message or "The task was cancelled", retryable=False)
        else:
            self._fail(index, event.message or "The task failed", retryable=event.retryable)

    def _fail(self, index: int, message: str, *, retryable: bool) -> None:
        step, text = self.steps[index], clip_error(message)
        sentence = clip_error(f"{step.step_id}: {text}")
        self.workflow = replace(self.workflow, errors=[*self.workflow.errors, sentence][-MAX_ERRORS:])
        if retryable and step.retry_count < step.max_retries:
            self._move(index, StepState.PENDING, retry_count=step.retry_count + 1, error_message=text, task_open=False)
            return
        self._move(index, StepState.FAILED, error_message=text, completed_at=self.now, task_open=False)
        if self.workflow.error_message is None:
            self.workflow = replace(self.workflow, error_message=sentence)

    def _ready(self) -> list[int]:
        done = {step.step_id for step in self.steps if step.state in DONE}
        places = self._free_places()
        ready: list[int] = []
        for index, step in enumerate(self.steps):
            if step.state is not StepState.PENDING:
                continue
            if step.parent is None:
                if done.issuperset(step.depends_on):
                    ready.append(index)
            elif places.get(step.parent, 0) > 0:
                places[step.parent] -= 1
                ready.append(index)
        return ready

    def _free_places(self) -> dict[str, int]:
        """How many further items may be begun of each step that has some."""
        places = {
            step.step_id: workflow_pb2.ForEach.FromString(step.for_each).max_parallel
            for step in self.steps
            if step.for_each is not None and step.state is StepState.RUNNING
        }
        for step in self.steps if places else ():
            if step.parent in places and step.state in ACTIVE:
                places[step.parent] -= 1
        return places

    def _has_items(self, step: StepRecord) -> bool:
        return any(one.parent == step.step_id for one in self.steps)

    def _open(self, index: int) -> None:
        """Start a step with items: give each item a row, unless it has one from before a resume."""
        step = self.steps[index]
        self._move(index, StepState.RUNNING, started_at=step.started_at or self.now)
        if self._has_items(step):
            return
        try:
            found = items_of(step, {one.step_id: one for one in self.steps})
            known = sum(one.parent is not None for one in self.steps)
            if known + len(found) > MAX_ITEMS_IN_ALL:
                text = f"{len(found)} items are too many: with {known} before them, {MAX_ITEMS_IN_ALL} are the most"
                raise ItemsError(text)
        except ItemsError as error:
            self._fail(index, str(error), retryable=False)
            return
        for place, item in enumerate(found):
            self.steps.append(self._item(step, place, item))

    def _item(self, step: StepRecord, place: int, item: bytes) -> StepRecord:
        name = item_name(step.step_id, place)
        return replace(
            step,
            id=step_row_id(step.workflow_id, name),
            step_id=name,
            # After all steps, items of one step together.
            position=MAX_STEPS + step.position * MAX_ITEMS + place,
            definition=b"",  # its step's
            depends_on=[],
            state=StepState.PENDING,
            condition=None,
            approval=Approval.NOT_NEEDED,
            started_at=None,
            created_at=self.now,
            updated_at=self.now,
            for_each=None,
            parent=step.step_id,
            item=item,
            item_index=place,
        )

    def _gather(self) -> None:
        """End steps whose items have ended; a step with a failed item goes on with the others, as a workflow does."""
        for index, step in enumerate(self.steps):
            if step.for_each is None or step.state is not StepState.RUNNING:
                continue
            items = [one for one in self.steps if one.parent == step.step_id]
            failed = [one for one in items if one.state is StepState.FAILED]
            waits = any(one.state is StepState.PENDING or one.state in ACTIVE for one in items)
            if failed and (not waits or self.workflow.on_failure is OnFailure.CANCEL):
                first = f"{failed[0].step_id}: {failed[0].error_message}"
                text = clip_error(f"{len(failed)} of {len(items)} items failed, the first of them {first}")
                self._move(index, StepState.FAILED, error_message=text, completed_at=self.now)
            elif not waits and not failed:
                items.sort(key=lambda one: one.item_index or 0)
                self._move(
                    index, StepState.COMPLETED, result=collected(items), error_message=None, completed_at=self.now
                )

    def _dispatch(self, index: int) -> None:
        step = self.steps[index]
        attempt = step.attempt + 1
        self._move(
            index,
            StepState.DISPATCHING,
            attempt=attempt,
            task_id=task_id_of(step.workflow_id, step.step_id, attempt),
            task_version=0,
            task_open=True,
            overdue=False,
            started_at=step.started_at or self.now,
            dispatched_at=self.now,
        )
        self._fresh.append(index)

    def _stop(self, index: int, step: StepRecord) -> None:
        if index in self._fresh:
            # A task that the same decision starts and stops is never made.
            self._fresh.remove(index)
            self._move(index, StepState.CANCELLED, completed_at=self.now, task_open=False)
            return
        if step.state in ACTIVE and step.for_each is None:
            self._stopped.append(index)
        self._move(index, StepState.CANCELLED, completed_at=self.now)

    def _go(self, status: WorkflowStatus) -> None:
        assert may(self.workflow.status, status), f"{self.workflow.status} to {status}"
        self.workflow = replace(self.workflow, status=status)

    def _end(self, status: WorkflowStatus) -> None:
        assert status in ENDED, "an end"
        self._go(status)
        self.workflow = replace(self.workflow, completed_at=self.now)

    def _move(self, index: int, state: StepState, **changes: object) -> None:
        step = self.steps[index]
        assert step_may(step.state, state), f"{step.state} to {state}"
        self.steps[index] = replace(step, state=state, **changes)  # type: ignore[arg-type]  # names of its fields
