"""Failures of models, told as failures of tasks."""

from __future__ import annotations

from atelier.tasks.v1.enums_pb2 import ERROR_CATEGORY_RESOURCE, ERROR_CATEGORY_VALIDATION

from meshkit.worker.handlers import TaskFailed
from modelkit.errors import ModelError, ModelErrorKind

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
