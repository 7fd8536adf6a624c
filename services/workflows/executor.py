"""Carries out what the engine decided: makes and cancels tasks, processes their ends, and looks for what was missed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any
from uuid import UUID, uuid5

from atelier.tasks.v1 import enums_pb2, task_pb2
from atelier.training.v1 import training_pb2

from meshkit import metrics
from meshkit.db import DatabaseUnavailableError
from meshkit.errors import ErrorKind, MeshError
from meshkit.logging import get_logger
from meshkit.loops import cancel
from services.workflows import events
from services.workflows.building import BuildError, task_of, training_of
from services.workflows.domain import StepRecord, StepState, TaskOutcome, WorkflowRecord
from services.workflows.engine import Decision, decide, decide_all
from services.workflows.fields import TRAINING, result_of, result_of_training
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
from services.workflows.store import Advanced, WorkflowSnapshot, WorkflowStore
from services.workflows.task_calls import TaskCalls
from services.workflows.training_calls import TrainingCalls

_log = get_logger(__name__)

_DISPATCHED = metrics.counter("workflow_steps_dispatched", "Tasks asked for by steps", ("task_type", "outcome"))
_ENDED = metrics.counter("workflows_ended", "Workflows that ended", ("status",))

# Errors of a create that another try would get again.
_FINAL = frozenset(
    {
        ErrorKind.INVALID,
        ErrorKind.FORBIDDEN,
        ErrorKind.NOT_FOUND,
        ErrorKind.CONFLICT,
        ErrorKind.TOO_LARGE,
        ErrorKind.UNIMPLEMENTED,
    }
)
_OUTCOMES = {
    enums_pb2.TASK_STATUS_COMPLETED: TaskOutcome.COMPLETED,
    enums_pb2.TASK_STATUS_FAILED: TaskOutcome.FAILED,
    enums_pb2.TASK_STATUS_CANCELLED: TaskOutcome.CANCELLED,
}
_TRAINING_OUTCOMES = {
    training_pb2.TRAINING_STATUS_COMPLETED: TaskOutcome.COMPLETED,
    training_pb2.TRAINING_STATUS_FAILED: TaskOutcome.FAILED,
    training_pb2.TRAINING_STATUS_CANCELLED: TaskOutcome.CANCELLED,
}
# A new task with the same request would fail for the same reason.
_HOPELESS = frozenset(
    {
        enums_pb2.ERROR_CATEGORY_VALIDATION,
        enums_pb2.ERROR_CATEGORY_CONTENT_POLICY,
        enums_pb2.ERROR_CATEGORY_CANCELLED,
    }
)
_BATCH = 100
# A crash of the database must not undo what a caller was told.
_ASKED = Start | Pause | Resume | Cancel


class WorkflowExecutor:
    """Moves workflows.

    Args:
        store: The database.
        tasks: The tasks service.
        trainings: The training service.
        clock: Gives the present, in UTC.
        on_commit: Called after a commit that may have written events.
        concurrency: Calls to the tasks service at once.
        abandon_seconds: Time after which a task that was never found is taken not to exist.
    """

    def __init__(
        self,
        store: WorkflowStore,
        tasks: TaskCalls,
        trainings: TrainingCalls,
        *,
        clock: Callable[[], datetime],
        on_commit: Callable[[], None],
        concurrency: int,
        abandon_seconds: float,
    ) -> None:
        self._store = store
        self._tasks = tasks
        self._trainings = trainings
        self._clock = clock
        self._on_commit = on_commit
        self._gate = asyncio.Semaphore(concurrency)
        self._abandon_seconds = abandon_seconds
        self._running: set[asyncio.Task[None]] = set()
        self._dispatching: set[UUID] = set()
        self._made: set[UUID] = set()
        self._trusted_since: datetime | None = None

    async def close(self) -> None:
        """Cancel what is under way; the rows say what is left to do."""
        await cancel(self._running)

    async def tell(self, workflow_id: UUID, event: Event) -> Decision | None:
        """Let the engine decide upon an event, and carry the decision out in the background.

        Args:
            workflow_id: The workflow.
            event: What happened.

        Returns:
            The decision; None without such a workflow.

        Raises:
            MeshError: `CONFLICT` where a caller asks for what the state does not allow, `UNAVAILABLE`.
        """
        decision = await self._store.advance(
            workflow_id,
            lambda workflow, steps: decide(workflow, steps, event, self._clock()),
            durable=isinstance(event, _ASKED),
        )
        if decision is not None:
            self.carry_out(decision)
        return decision

    async def tell_ended(self, ended: Mapping[UUID, Sequence[task_pb2.Task]]) -> Mapping[UUID, Advanced]:
        """Let the engine decide upon the ends of tasks, as `tell` does, of all workflows together.

        Args:
            ended: The tasks that ended, by their workflows.

        Returns:
            What became of each workflow; an exception where its ends must be told again.
        """
        tasks_of = {ident: {UUID(task.id): task for task in tasks} for ident, tasks in ended.items()}
        bodies = {ident: partial(self._process_ends, tasks) for ident, tasks in tasks_of.items()}
        outcomes = await self._store.advance_many(bodies, durable=False)
        for ident, outcome in outcomes.items():
            if isinstance(outcome, Exception):
                continue
            self._made.difference_update(tasks_of[ident])
            if outcome is not None:
                # All of them begin before one is waited for, so that their calls travel together.
                self.carry_out(outcome)
        return outcomes

    def _process_ends(
        self, tasks: Mapping[UUID, task_pb2.Task], workflow: WorkflowRecord, steps: Sequence[StepRecord]
    ) -> Decision:
        ends = [
            _ended(step, step.task_id, tasks[step.task_id])
            for step in steps
            if step.task_id is not None and step.task_id in tasks and tasks[step.task_id].version > step.task_version
        ]
        return decide_all(workflow, steps, ends, self._clock())

    def carry_out(self, decision: Decision) -> None:
        """Make and cancel tasks as a committed decision says."""
        self._on_commit()
        if (
            decision.workflow.completed_at is not None
            and decision.workflow.updated_at == decision.workflow.completed_at
        ):
            _ENDED.labels(decision.workflow.status.value).inc()
        whole = WorkflowSnapshot(decision.workflow, decision.steps)
        for step in decision.dispatch:
            self._spawn(self._dispatch(whole, step))
        for step in decision.cancel:
            self._spawn(self._cancel(decision.workflow, step))

    async def note_made(self) -> bool:
        """Note which tasks were made, unless their ends were processed before: for a short task it is never written."""
        made = set(self._made)
        if made:
            noted = await self._store.accept(list(made))
            for step in noted.stopped:
                if step.task_id is not None:
                    await self.tell(step.workflow_id, TaskAccepted(step.step_id, step.task_id))
            self._made -= made - noted.left
        return False

    def trust_events(self) -> None:
        """Note that no event is lost from now on; earlier ones may have been."""
        self._trusted_since = self._clock()

    async def resend(self, age_seconds: float) -> bool:
        """Make the tasks of steps that were left DISPATCHING.

        Returns:
            Whether more wait.
        """
        due = await self._store.due_dispatches(age_seconds, _BATCH)
        await self._each(due, self._resend)
        return len(due) == _BATCH

    async def check(self, age_seconds: float, *, connected: bool) -> bool:
        """Ask for the tasks of RUNNING steps without events.

        Args:
            age_seconds: For how long none did.
            connected: Whether events come at all now; where they do, a task that runs for long is seldom asked for.

        Returns:
            Whether more wait.
        """
        due = await self._store.due_checks(age_seconds, self._trusted_since if connected else None, _BATCH)
        await self._each(due, self._check)
        return len(due) == _BATCH

    async def expire(self) -> None:
        """Cancel the tasks of steps that take longer than they may; their ends are processed as any other."""
        for step in await self._store.due_timeouts(_BATCH):
            if step.task_id is not None:
                await self.tell(step.workflow_id, Overdue(step.step_id, step.task_id))

    async def tell_ends(self) -> bool:
        """Hand in the webhooks of workflows that ended.

        Returns:
            Whether more wait.
        """
        untold = await self._store.untold_ends(_BATCH)
        for record in untold:
            # An end has one identifier, however often it is handed in.
            ident = uuid5(record.id, f"end/{record.completed_at}")
            try:
                await self._tasks.enqueue_webhook(events.status_update(record), ident, record)
            except MeshError as error:
                if error.kind not in _FINAL:
                    raise
                _log.warning("webhook_refused", workflow_id=str(record.id), reason=error.reason)
            await self._store.note_told(record)
        return len(untold) == _BATCH

    async def stop_tasks(self, age_seconds: float) -> bool:
        """Cancel the tasks of steps that ended before them.

        Returns:
            Whether more wait.
        """
        due = await self._store.due_cancels(age_seconds, _BATCH)
        ages = {step.id: age for step, age in due}

        async def stop(workflow: WorkflowRecord, step: StepRecord) -> None:
            await self._cancel(workflow, step, ages[step.id])

        await self._each([step for step, _ in due], stop)
        return len(due) == _BATCH

    async def cancel_now(self, decision: Decision) -> None:
        """Cancel the tasks of a decision and wait for the answers."""
        self._on_commit()
        await asyncio.gather(*(self._guarded(self._cancel(decision.workflow, step)) for step in decision.cancel))

    async def ask(self, step: StepRecord, tenant: str) -> None:
        """Read the task of a step and tell the engine if it ended.

        Raises:
            MeshError: It could not be read, or not be decided upon now.
        """
        assert step.task_id is not None, "a step that is asked for has a task"
        task: task_pb2.Task | training_pb2.TrainingTask
        try:
            if step.task_type == TRAINING:
                task = await self._trainings.get(step.task_id, tenant)
            else:
                task = await self._tasks.get(step.task_id, tenant)
        except MeshError as error:
            if error.kind is not ErrorKind.NOT_FOUND or step.state is not StepState.RUNNING:
                raise
            gone = TaskEnded(
                step.step_id, step.task_id, step.task_version + 1, TaskOutcome.CANCELLED, message="The task was deleted"
            )
            await self.tell(step.workflow_id, gone)
            return
        if isinstance(task, training_pb2.TrainingTask):
            if task.status in _TRAINING_OUTCOMES:
                self._made.discard(step.task_id)
                await self.tell(step.workflow_id, _training_ended(step, step.task_id, task))
        elif task.status in _OUTCOMES:
            outcomes = await self.tell_ended({step.workflow_id: [task]})
            if isinstance(failed := outcomes[step.workflow_id], Exception):
                raise failed

    async def _each(
        self, due: list[StepRecord], work: Callable[[WorkflowRecord, StepRecord], Coroutine[Any, Any, None]]
    ) -> None:
        found: dict[UUID, WorkflowSnapshot | None] = {}
        for step in due:
            if step.workflow_id not in found:
                found[step.workflow_id] = await self._store.get(step.workflow_id)
        jobs = [
            self._guarded(work(whole.workflow, step)) for step in due if (whole := found[step.workflow_id]) is not None
        ]
        await asyncio.gather(*jobs)

    async def _resend(self, workflow: WorkflowRecord, step: StepRecord) -> None:
        whole = await self._store.get(workflow.id)
        if whole is not None:
            await self._dispatch(whole, next(one for one in whole.steps if one.id == step.id))

    async def _check(self, workflow: WorkflowRecord, step: StepRecord) -> None:
        await self.ask(step, workflow.tenant)

    async def _dispatch(self, whole: WorkflowSnapshot, step: StepRecord) -> None:
        if step.state is not StepState.DISPATCHING or step.task_id is None or step.task_id in self._dispatching:
            return
        self._dispatching.add(step.task_id)
        try:
            await self._make(whole, step, step.task_id)
        finally:
            self._dispatching.discard(step.task_id)

    async def _make(self, whole: WorkflowSnapshot, step: StepRecord, task_id: UUID) -> None:
        workflow = whole.workflow
        try:
            await self._send(whole, step, task_id)
        except BuildError as error:
            event = TaskRefused(step.step_id, task_id, str(error))
        except MeshError as error:
            if error.kind not in _FINAL:
                _DISPATCHED.labels(step.task_type, "deferred").inc()
                _log.info("task_creation_delayed", step=step.step_id, workflow_id=str(workflow.id), reason=error.reason)
                return
            event = TaskRefused(step.step_id, task_id, _sentence(error))
        else:
            _DISPATCHED.labels(step.task_type, "accepted").inc()
            self._made.add(task_id)
            return
        _DISPATCHED.labels(step.task_type, "refused").inc()
        await self.tell(workflow.id, event)

    async def _send(self, whole: WorkflowSnapshot, step: StepRecord, task_id: UUID) -> None:
        workflow = whole.workflow
        if step.task_type == TRAINING:
            training = training_of(workflow, step, whole.steps)
            async with self._gate:
                await self._trainings.create(training, task_id, workflow.tenant)
            return
        task = task_of(workflow, step, whole.steps)
        async with self._gate:
            await self._tasks.create(task, task_id, workflow.id, workflow.tenant)

    async def _cancel(self, workflow: WorkflowRecord, step: StepRecord, age_seconds: float = 0.0) -> None:
        assert step.task_id is not None, "an open task has an identifier"
        try:
            async with self._gate:
                calls = self._trainings if step.task_type == TRAINING else self._tasks
                await calls.cancel(step.task_id, workflow.tenant)
        except MeshError as error:
            missing = error.kind is ErrorKind.NOT_FOUND
            # A task that is not found may be about to be made, until no such call can be under way any more.
            if not (error.kind is ErrorKind.CONFLICT or (missing and age_seconds > self._abandon_seconds)):
                return
        await self.tell(workflow.id, TaskClosed(step.step_id, step.task_id))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(self._guarded(work))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    @staticmethod
    async def _guarded(work: Coroutine[Any, Any, None]) -> None:
        """Leave the work to the reconciler: the rows still say what is to be done."""
        try:
            await work
        except (MeshError, DatabaseUnavailableError) as error:
            _log.info("left_to_reconciler", cause=type(error).__name__)
        except Exception:
            _log.exception("step_not_moved")


def _ended(step: StepRecord, task_id: UUID, task: task_pb2.Task) -> TaskEnded:
    outcome = _OUTCOMES[task.status]
    return TaskEnded(
        step.step_id,
        task_id,
        task.version,
        outcome,
        result=result_of(task, step.task_type).SerializeToString() if outcome is TaskOutcome.COMPLETED else None,
        message=task.errors[-1] if task.errors else "",
        retryable=not (task.HasField("error_category") and task.error_category in _HOPELESS),
    )


def _training_ended(step: StepRecord, training_id: UUID, training: training_pb2.TrainingTask) -> TaskEnded:
    outcome = _TRAINING_OUTCOMES[training.status]
    completed = outcome is TaskOutcome.COMPLETED
    return TaskEnded(
        step.step_id,
        training_id,
        training.version,
        outcome,
        result=result_of_training(training).SerializeToString() if completed else None,
        message=training.error_message,
        retryable=not (training.HasField("error_category") and training.error_category in _HOPELESS),
    )


def _sentence(error: MeshError) -> str:
    if not error.violations:
        return error.message
    return "; ".join(
        f"{one.path.removeprefix('task.').removeprefix('training.')}: {one.message}" for one in error.violations
    )
