"""Members of a task's `config` that steer its type: read, checked, and named where they do not hold."""

from __future__ import annotations

import math
from typing import Any

from atelier.tasks.v1.enums_pb2 import ErrorCategory
from atelier.tasks.v1.task_pb2 import CreateTask, Task
from google.protobuf.descriptor import Descriptor
from google.protobuf.struct_pb2 import Struct

from meshkit.errors import MeshError
from meshkit.steering import steering
from meshkit.worker.handlers import TaskFailed


def invalid(message: str) -> TaskFailed:
    """Return the failure of a task that cannot be executed as it is, now or later."""
    return TaskFailed(message, ErrorCategory.ERROR_CATEGORY_VALIDATION, retryable=False)


def steered(spec: CreateTask, task: Task, message: Descriptor) -> Any:
    """Read the members of a task's `config` that are fields of a message, with its defaults.

    They were checked at the creation; a direct run is checked here alone.

    Raises:
        TaskFailed: One of them does not hold.
    """
    try:
        return steering(task.config if task.HasField("config") else spec.config, message)
    except MeshError as error:
        path = error.violations[0].path
        named = error.message.startswith(path)
        raise invalid(error.message if named else f"{path}: {error.message}") from error


def number(config: Struct, name: str, least: float, most: float) -> float | None:
    """Return a number; None where it is absent or null.

    Raises:
        TaskFailed: It is no number, or lies outside of the bounds.
    """
    kind = _kind(config, name)
    if kind is None:
        return None
    found = config.fields[name].number_value
    if kind != "number_value" or not math.isfinite(found) or not least <= found <= most:
        raise invalid(f"config.{name} must be a number from {least:g} to {most:g}.")
    return found


def whole(config: Struct, name: str, least: int, most: int) -> int | None:
    """Return a whole number; None where it is absent or null.

    Raises:
        TaskFailed: It is no whole number, or lies outside of the bounds.
    """
    found = number(config, name, least, most)
    if found is not None and not found.is_integer():
        raise invalid(f"config.{name} must be a whole number.")
    return None if found is None else int(found)


def text(config: Struct, name: str, longest: int) -> str | None:
    """Return a text; None where it is absent or null.

    Raises:
        TaskFailed: It is no text, or longer than `longest` characters.
    """
    kind = _kind(config, name)
    if kind is None:
        return None
    found = config.fields[name].string_value
    if kind != "string_value" or len(found) > longest:
        raise invalid(f"config.{name} must be text of at most {longest} characters.")
    return found


def switch(config: Struct, name: str, *, default: bool) -> bool:
    """Return whether a switch is on; the default where it is absent or null.

    Raises:
        TaskFailed: It is neither true nor false.
    """
    kind = _kind(config, name)
    if kind is None:
        return default
    if kind != "bool_value":
        raise invalid(f"config.{name} must be true or false.")
    return config.fields[name].bool_value


def _kind(config: Struct, name: str) -> str | None:
    kind = config.fields[name].WhichOneof("kind") if name in config.fields else None
    return None if kind == "null_value" else kind
