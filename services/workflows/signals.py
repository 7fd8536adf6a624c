"""What may happen to a workflow: what callers ask for, and what its tasks report. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from services.workflows.domain import TaskOutcome


@dataclass(frozen=True, slots=True)
class Start:
    """A caller starts it."""


@dataclass(frozen=True, slots=True)
class Pause:
    """A caller pauses it."""


@dataclass(frozen=True, slots=True)
class Resume:
    """A caller resumes it."""


@dataclass(frozen=True, slots=True)
class Cancel:
    """A caller cancels it."""


@dataclass(frozen=True, slots=True)
class TaskAccepted:
    """The tasks service has the task of a step."""

    step_id: str
    task_id: UUID


@dataclass(frozen=True, slots=True)
class TaskRefused:
    """The task of a step cannot be made, now or later."""

    step_id: str
    task_id: UUID
    message: str


@dataclass(frozen=True, slots=True)
class TaskEnded:
    """A task ended.

    Attributes:
        version: Its version, above every version processed before.
        result: Serialized Struct of its result.
        retryable: Whether another task might fare better.
    """

    step_id: str
    task_id: UUID
    version: int
    outcome: TaskOutcome
    result: bytes | None = None
    message: str = ""
    retryable: bool = True


@dataclass(frozen=True, slots=True)
class TaskClosed:
    """The task of a step runs no more, or will never exist."""

    step_id: str
    task_id: UUID


@dataclass(frozen=True, slots=True)
class Overdue:
    """The task of a step takes longer than it may."""

    step_id: str
    task_id: UUID


Event = Start | Pause | Resume | Cancel | TaskAccepted | TaskRefused | TaskEnded | TaskClosed | Overdue
