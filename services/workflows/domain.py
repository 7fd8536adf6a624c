"""Workflows and steps, their states and what may follow what. Pure: no clock, no database, no wire.

Spellings of states are those of the contract's enums without their prefix, except DISPATCHING, which callers see as
RUNNING; the database's CHECK constraints are made of the same values, and a test asserts both.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from uuid import UUID, uuid5

MAX_STEPS = 200
MAX_ERRORS = 200
MAX_ERROR_LENGTH = 2048


class WorkflowStatus(enum.StrEnum):
    """Where a workflow stands."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


class StepState(enum.StrEnum):
    """Where a step stands."""

    PENDING = "PENDING"
    DISPATCHING = "DISPATCHING"
    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    SKIPPED = "SKIPPED"
    CANCELLED = "CANCELLED"


class OnFailure(enum.StrEnum):
    """What a failed step does to the steps that do not need it."""

    FINISH_RUNNING = "finish_running"
    CANCEL = "cancel"


class Approval(enum.StrEnum):
    """Whether a step may begin, as far as people decide it."""

    NOT_NEEDED = "not_needed"
    NEEDED = "needed"
    ASKED = "asked"
    GIVEN = "given"


class TaskOutcome(enum.StrEnum):
    """How a task ended."""

    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


# Every legal change of a workflow's state, and nothing else. FAILED is left by a resume alone.
TRANSITIONS: Mapping[WorkflowStatus, frozenset[WorkflowStatus]] = MappingProxyType(
    {
        WorkflowStatus.PENDING: frozenset({WorkflowStatus.RUNNING, WorkflowStatus.CANCELLED}),
        WorkflowStatus.RUNNING: frozenset(
            {WorkflowStatus.PAUSED, WorkflowStatus.COMPLETED, WorkflowStatus.FAILED, WorkflowStatus.CANCELLED}
        ),
        # Steps that ran at the pause may be the last ones.
        WorkflowStatus.PAUSED: frozenset(
            {WorkflowStatus.RUNNING, WorkflowStatus.COMPLETED, WorkflowStatus.FAILED, WorkflowStatus.CANCELLED}
        ),
        WorkflowStatus.COMPLETED: frozenset(),
        WorkflowStatus.FAILED: frozenset({WorkflowStatus.RUNNING}),
        WorkflowStatus.CANCELLED: frozenset(),
    }
)

# Every legal change of a step's state. PENDING follows a task that failed and may be tried again, or a resume.
STEP_TRANSITIONS: Mapping[StepState, frozenset[StepState]] = MappingProxyType(
    {
        # One with items runs without a task of its own.
        StepState.PENDING: frozenset(
            {StepState.DISPATCHING, StepState.RUNNING, StepState.SKIPPED, StepState.CANCELLED}
        ),
        StepState.DISPATCHING: frozenset(
            {StepState.RUNNING, StepState.COMPLETED, StepState.FAILED, StepState.CANCELLED, StepState.PENDING}
        ),
        StepState.RUNNING: frozenset({StepState.COMPLETED, StepState.FAILED, StepState.CANCELLED, StepState.PENDING}),
        StepState.COMPLETED: frozenset(),
        StepState.FAILED: frozenset({StepState.PENDING}),
        StepState.SKIPPED: frozenset(),
        StepState.CANCELLED: frozenset({StepState.PENDING}),
    }
)

ENDED = frozenset({WorkflowStatus.COMPLETED, WorkflowStatus.FAILED, WorkflowStatus.CANCELLED})
ACTIVE = frozenset({StepState.DISPATCHING, StepState.RUNNING})
DONE = frozenset({StepState.COMPLETED, StepState.SKIPPED})


@dataclass(frozen=True, slots=True)
class WorkflowRecord:
    """A workflow as the database holds it. The order of the fields is the order of the columns in every query.

    Attributes:
        config: The serialized Struct that its steps share.
        completed_steps: Steps that completed or were skipped.
        current_step: The first step, in the order of the definition, that is being executed.
        final_step_id: The last step in topological order.
        version: Rises with every change.
        traceparent: Trace of the request that created it.
    """

    id: UUID
    tenant: str
    name: str
    description: str | None
    status: WorkflowStatus
    on_failure: OnFailure
    config: bytes
    suppress_subtask_events: bool
    origin_instance: str
    origin_zone: str | None
    origin_reference: str | None
    webhook_url: str | None
    total_steps: int
    completed_steps: int
    current_step: str | None
    final_step_id: str
    error_message: str | None
    errors: Sequence[str]
    started_at: datetime | None
    completed_at: datetime | None
    created_at: datetime
    updated_at: datetime
    is_deleted: bool
    deleted_at: datetime | None
    version: int
    traceparent: str

    @property
    def progress(self) -> float:
        """Percent done."""
        return progress(self.completed_steps, self.total_steps)


@dataclass(frozen=True, slots=True)
class StepRecord:
    """A step as the database holds it, or one item of a step that has a task for each.

    An item is a row like a step's, with a state, tasks, retries and a result of its own. The order of the fields is the
    order of the columns in every query.

    Attributes:
        step_id: Name of the step in its workflow; of an item `name[index]`.
        position: Place in the definition, from 0.
        definition: The serialized WorkflowStepDefinition.
        attempt: Number of the last task made for it; 0 before the first.
        task_id: Identifier of that task: it follows from workflow, step and attempt.
        task_version: Last version of the task that was processed.
        task_open: Whether that task may still be running.
        result: The serialized Struct of its task's result.
        dispatched_at: When the task was last to be made.
        checked_at: When the task was last asked for.
        condition: The serialized StepCondition, if it has one.
        approval: Whether people decide on its beginning; ASKED while the workflow is paused for it.
        timeout_seconds: How long its task may take from its making, waiting included.
        overdue: Whether its task took longer and is being cancelled.
        for_each: The serialized ForEach of a step with items, which has no task itself.
        parent: Of an item, the name of its step.
        item: Of an item, the serialized Value.
        item_index: Of an item, its place in the list.
    """

    id: UUID
    workflow_id: UUID
    step_id: str
    position: int
    task_type: str
    definition: bytes
    depends_on: Sequence[str]
    state: StepState
    attempt: int
    task_id: UUID | None
    task_version: int
    task_open: bool
    result: bytes | None
    error_message: str | None
    retry_count: int
    max_retries: int
    started_at: datetime | None
    completed_at: datetime | None
    created_at: datetime
    updated_at: datetime
    dispatched_at: datetime | None
    checked_at: datetime | None
    condition: bytes | None = None
    approval: Approval = Approval.NOT_NEEDED
    timeout_seconds: float | None = None
    overdue: bool = False
    for_each: bytes | None = None
    parent: str | None = None
    item: bytes | None = None
    item_index: int | None = None


def progress(completed_steps: int, total_steps: int) -> float:
    """Return how much of so many steps is done, in percent."""
    return 100.0 * completed_steps / total_steps if total_steps else 0.0


def may(current: WorkflowStatus, following: WorkflowStatus) -> bool:
    """Whether a workflow in `current` may go to `following`."""
    return following in TRANSITIONS[current]


def step_may(current: StepState, following: StepState) -> bool:
    """Whether a step in `current` may go to `following`."""
    return following in STEP_TRANSITIONS[current]


def task_id_of(workflow_id: UUID, step_id: str, attempt: int) -> UUID:
    """Return the identifier of the task of a step's attempt: the same each time it is created."""
    return uuid5(workflow_id, f"{step_id}/{attempt}")


def item_name(step_id: str, index: int) -> str:
    """Name of an item's row: no step can have it, because a step's name has no brackets."""
    return f"{step_id}[{index}]"


def step_row_id(workflow_id: UUID, step_id: str) -> UUID:
    """Return identifier of a step's row."""
    return uuid5(workflow_id, step_id)


def clip_error(text: str) -> str:
    """Return an error's sentence, short enough for a row."""
    return text if len(text) <= MAX_ERROR_LENGTH else f"{text[: MAX_ERROR_LENGTH - 1]}\u2026"
