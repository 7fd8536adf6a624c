from typing import Any

import pytest

from meshkit import errors
from meshkit.errors import FieldViolation, Kind, MeshError


def test_reason_defaults_to_the_kind() -> None:
    assert MeshError(Kind.ABORTED, "x").reason == "ABORTED"


def test_invalid_names_the_member() -> None:
    error = errors.invalid("task.width", "must be positive", "greater_than")
    assert error.kind is Kind.INVALID
    assert error.violations == (FieldViolation("task.width", "must be positive", "greater_than"),)


def test_not_found_carries_what_and_which() -> None:
    error = errors.not_found("Training job", "42")
    assert (error.kind, error.message) == (Kind.NOT_FOUND, "Training job 42 not found")
    assert (error.reason, dict(error.metadata)) == ("TRAINING_JOB_NOT_FOUND", {"id": "42"})


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (errors.conflict, Kind.CONFLICT),
        (errors.forbidden, Kind.FORBIDDEN),
        (errors.unauthenticated, Kind.UNAUTHENTICATED),
        (errors.too_large, Kind.TOO_LARGE),
        (errors.exhausted, Kind.EXHAUSTED),
        (errors.unavailable, Kind.UNAVAILABLE),
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
