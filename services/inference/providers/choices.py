"""Members of a task's `config` that steer a provider: each one of a few values, and named where it is not."""

from __future__ import annotations

from collections.abc import Collection
from typing import TypeVar, cast

from atelier.tasks.v1.enums_pb2 import ERROR_CATEGORY_VALIDATION
from google.protobuf.struct_pb2 import Struct

from meshkit.worker.handlers import TaskFailed

S = TypeVar("S", bound=str)


def invalid(message: str) -> TaskFailed:
    """Return the failure of a task that cannot be executed as it is, now or later."""
    return TaskFailed(message, ERROR_CATEGORY_VALIDATION, retryable=False)


def choice(members: Struct, name: str, values: Collection[S], *, path: str = "config") -> S | None:
    """Return which of the values a member has; None where it is absent or null.

    Raises:
        TaskFailed: It has none of them.
    """
    if _kind(members, name) is None:
        return None
    found = members.fields[name].string_value
    if found not in values:
        raise invalid(f"{path}.{name} must be one of {', '.join(values)}.")
    return cast("S", found)


def switch(members: Struct, name: str, *, path: str = "config") -> bool | None:
    """Return whether a switch is on; None where it is absent or null.

    Raises:
        TaskFailed: It is neither true nor false.
    """
    kind = _kind(members, name)
    if kind not in (None, "bool_value"):
        raise invalid(f"{path}.{name} must be true or false.")
    return None if kind is None else members.fields[name].bool_value


def group(members: Struct, name: str, *, path: str = "config") -> Struct:
    """Return a member that is an object; an empty one where it is absent or null.

    Raises:
        TaskFailed: It is something else.
    """
    kind = _kind(members, name)
    if kind not in (None, "struct_value"):
        raise invalid(f"{path}.{name} must be an object.")
    return Struct() if kind is None else members.fields[name].struct_value


def _kind(members: Struct, name: str) -> str | None:
    kind = members.fields[name].WhichOneof("kind") if name in members.fields else None
    return None if kind == "null_value" else kind
