"""What can go wrong with a model, in sentences that a caller may read."""

from __future__ import annotations

import enum


class ModelErrorKind(enum.StrEnum):
    """Whose matter a failure is."""

    VALIDATION = "validation"
    """What was asked cannot be done; asking again would fail alike."""
    RESOURCE = "resource"
    """Memory or a file of this worker is missing; another worker, or a later attempt, may have it."""


class ModelError(Exception):
    """A failure with a sentence free of paths and of libraries' own text.

    Args:
        message: The sentence.
        fault: Whose matter it is.
        retryable: Whether another attempt could succeed.
    """

    def __init__(
        self, message: str, fault: ModelErrorKind = ModelErrorKind.VALIDATION, *, retryable: bool = False
    ) -> None:
        super().__init__(message)
        self.message = message
        self.fault = fault
        self.retryable = retryable
