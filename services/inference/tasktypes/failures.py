"""Failures of models, told as failures of tasks, and kept from the other members of a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from atelier.tasks.v1.enums_pb2 import ERROR_CATEGORY_RESOURCE, ERROR_CATEGORY_VALIDATION

from meshkit.worker.handlers import Output, TaskCancelled, TaskFailed
from modelkit.errors import ModelError, ModelErrorKind

_Context = TypeVar("_Context")
_CATEGORIES = {
    ModelErrorKind.VALIDATION: ERROR_CATEGORY_VALIDATION,
    ModelErrorKind.RESOURCE: ERROR_CATEGORY_RESOURCE,
}


def explained(error: Exception) -> Exception:
    """Turn a model's failure into the task's, with the same sentence; return any other exception as it is."""
    if not isinstance(error, ModelError):
        return error
    failure = TaskFailed(error.message, _CATEGORIES[error.fault], error.retryable)
    failure.__cause__ = error
    return failure


def one_by_one(batch: Sequence[_Context], work: Callable[[_Context], Output]) -> list[Output | Exception]:
    """Execute the members of a batch in turn; one that fails or is cancelled does not stop the others."""
    outcomes: list[Output | Exception] = []
    for context in batch:
        try:
            outcomes.append(work(context))
        except (ModelError, TaskFailed, TaskCancelled) as outcome:
            outcomes.append(explained(outcome))
    return outcomes
