"""Failures of models, with messages that a caller may read."""

from __future__ import annotations

import enum


class ModelErrorKind(enum.StrEnum):
    """Who can do something about a failure."""

    VALIDATION = "validation"
    """The caller: the request cannot be met, and a second attempt would fail too."""
    RESOURCE = "resource"
    """The operator: this worker lacks memory or a file; another worker, or a later attempt, may have it."""


class ModelError(Exception):
    """A failure whose message holds no path and no text of a library.

    Args:
        message: One sentence.
        fault: Who can do something about it.
        retryable: Whether another attempt could succeed.
    """

    def __init__(
        self, message: str, fault: ModelErrorKind = ModelErrorKind.VALIDATION, *, retryable: bool = False
    ) -> None:
        super().__init__(message)
        self.message = message
        self.fault = fault
        self.retryable = retryable
