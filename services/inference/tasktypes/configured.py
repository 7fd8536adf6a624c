"""Members of a task's `config` that steer a type: read, and refused where they are of another kind or out of range."""

from __future__ import annotations

import math

from atelier.tasks.v1.enums_pb2 import ErrorCategory
from google.protobuf.struct_pb2 import Struct

from meshkit.worker.handlers import TaskFailed


def invalid(message: str) -> TaskFailed:
    """Return the failure of a task whose caller asked for what cannot be."""
    return TaskFailed(message, ErrorCategory.ERROR_CATEGORY_VALIDATION, retryable=False)


def number(config: Struct, name: str, least: float, most: float) -> float | None:
    """Read a number; None where it is absent or null.

    Raises:
        TaskFailed: It is no number, or out of range.
    """
    kind = config.fields[name].WhichOneof("kind") if name in config.fields else None
    if kind in (None, "null_value"):
        return None
    value = config.fields[name].number_value
    if kind != "number_value" or not math.isfinite(value) or not least <= value <= most:
        raise invalid(f"config.{name} must be a number from {_plain(least)} to {_plain(most)}.")
    return value


def whole(config: Struct, name: str, least: int, most: int) -> int | None:
    """Read a whole number; None where it is absent or null.

    Raises:
        TaskFailed: It is no whole number, or out of range.
    """
    value = number(config, name, least, most)
    if value is None:
        return None
    if not value.is_integer():
        raise invalid(f"config.{name} must be a whole number.")
    return int(value)


def text(config: Struct, name: str, longest: int) -> str | None:
    """Read text; None where it is absent or null.

    Raises:
        TaskFailed: It is no text, or too long.
    """
    kind = config.fields[name].WhichOneof("kind") if name in config.fields else None
    if kind in (None, "null_value"):
        return None
    value = config.fields[name].string_value
    if kind != "string_value" or len(value) > longest:
        raise invalid(f"config.{name} must be text of at most {longest} characters.")
    return value


def _plain(bound: float) -> str:
    return str(int(bound)) if float(bound).is_integer() else f"{bound:g}"
