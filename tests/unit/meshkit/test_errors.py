from typing import Any

import pytest

from meshkit import errors
from meshkit.errors import ErrorKind, FieldViolation, MeshError


def test_reason_defaults_to_the_kind() -> None:
    assert MeshError(ErrorKind.ABORTED, "x").reason == "ABORTED"


def test_invalid_names_the_member() -> None:
    error = errors.invalid("task.width", "must be positive", "greater_than")
    assert error.kind is ErrorKind.INVALID
    assert error.violations == (FieldViolation("task.width", "must be positive", "greater_than"),)


def test_not_found_carries_what_and_which() -> None:
    error = errors.not_found("Training job", "42")
    assert (error.kind, error.message) == (ErrorKind.NOT_FOUND, "Training job 42 not found")
    assert (error.reason, dict(error.metadata)) == ("TRAINING_JOB_NOT_FOUND", {"id": "42"})


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (errors.conflict, ErrorKind.CONFLICT),
        (errors.forbidden, ErrorKind.FORBIDDEN),
        (errors.unauthenticated, ErrorKind.UNAUTHENTICATED),
        (errors.too_large, ErrorKind.TOO_LARGE),
        (errors.exhausted, ErrorKind.EXHAUSTED),
        (errors.unavailable, ErrorKind.UNAVAILABLE),
    ],
)
def test_helpers_make_their_kind(make: Any, kind: Any) -> None:
    error = make("because")
    assert (error.kind, error.message, error.reason) == (kind, "because", kind.value)
    assert make("because", reason="OTHER").reason == "OTHER"


def test_equal_parts_make_equal_errors() -> None:
    assert errors.not_found("Task", "1") == errors.not_found("Task", "1")
    assert errors.not_found("Task", "1") != errors.not_found("Task", "2")
    assert hash(errors.conflict("x")) == hash(errors.conflict("x"))
    assert errors.conflict("x") != "x"
