"""Errors of the tasks service, as its callers and workers see them."""

from __future__ import annotations

from meshkit.errors import MeshError, conflict, not_found
from services.tasks.domain import TaskStatus

LEASE_LOST = "LEASE_LOST"
TASK_ENDED = "TASK_ENDED"


def task_not_found(task_id: object) -> MeshError:
    """No such task for this caller."""
    return not_found("Task", str(task_id))


def job_not_found(job_id: object) -> MeshError:
    """No such job."""
    return not_found("Job", str(job_id))


def delivery_not_found(delivery_id: object) -> MeshError:
    """No such delivery for this caller."""
    return not_found("Delivery", str(delivery_id))


def session_not_found(session_id: object) -> MeshError:
    """Build the error: the session ended, expired, belongs to someone else or never was; the worker opens a new one."""
    return not_found("Session", str(session_id))


def lease_lost() -> MeshError:
    """Build the error: the attempt is not the worker's any more: it expired, was cancelled, or was given to another."""
    return conflict("The lease of this attempt was lost", reason=LEASE_LOST)


def task_ended() -> MeshError:
    """Build the error: the attempt's task has ended, and no other attempt goes on with what this one has begun."""
    return conflict("The task of this attempt has ended", reason=TASK_ENDED)


def illegal_transition(current: TaskStatus, wanted: TaskStatus) -> MeshError:
    """Build the error: the task's state does not allow what was asked."""
    return conflict(f"A task that is {current.value} cannot become {wanted.value}", reason="ILLEGAL_TRANSITION")


def executing(action: str) -> MeshError:
    """Build the error: what was asked has to wait for the task's end."""
    return conflict(f"A task cannot be {action} while it executes; cancel it first", reason="TASK_EXECUTING")


def identifier_used(task_id: object) -> MeshError:
    """Build the error: the identifier belonged to a task that was deleted, or belongs to another tenant's."""
    return conflict(f"The identifier {task_id} was used before", reason="TASK_ID_USED")
