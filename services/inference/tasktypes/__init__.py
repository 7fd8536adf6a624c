"""The task types a worker can execute: one module each, one line each in `_HANDLERS`.

Modules are imported when they are asked for, so that a worker of one type does not pay for the others.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import cast

from atelier.tasks.v1.enums_pb2 import (
    TASK_TYPE_GENERATION,
    TASK_TYPE_IMAGE_ADJUSTER,
    TASK_TYPE_NOOP,
    TaskType,
)

from meshkit.spelling import value_names
from meshkit.worker.handlers import TaskHandler

_HANDLERS: dict[TaskType.ValueType, tuple[str, str]] = {
    TASK_TYPE_GENERATION: ("generation", "GenerationHandler"),
    TASK_TYPE_IMAGE_ADJUSTER: ("image_adjuster", "ImageAdjusterHandler"),
    TASK_TYPE_NOOP: ("noop", "NoopHandler"),
}

_DETAILS: dict[str, TaskType.ValueType] = {
    "generation": TASK_TYPE_GENERATION,
    "image_adjuster": TASK_TYPE_IMAGE_ADJUSTER,
    "noop": TASK_TYPE_NOOP,
}
"""Name of the `detail` variant of each type, in every message that has one."""

DEFAULT_TYPES = tuple(kind for kind in _HANDLERS if kind != TASK_TYPE_NOOP)
"""What a worker serves when it is not told."""


def type_name(kind: TaskType.ValueType) -> str:
    """Return the documented name of a type (`GENERATION`)."""
    return value_names(TaskType.DESCRIPTOR)[kind]


def parse_types(names: Iterable[str]) -> tuple[TaskType.ValueType, ...]:
    """Types by their documented names; all but NOOP where none is named.

    Raises:
        ValueError: a name is no type that this worker can execute.
    """
    known = {type_name(kind): kind for kind in _HANDLERS}
    wanted = [name.strip().upper() for name in names]
    if unknown := sorted(set(wanted) - set(known)):
        raise ValueError(f"unknown task types {', '.join(unknown)}; known are {', '.join(sorted(known))}")
    return tuple(dict.fromkeys(known[name] for name in wanted)) or DEFAULT_TYPES


def type_of_detail(detail: str | None) -> TaskType.ValueType | None:
    """Return the type whose `detail` variant has this name."""
    return _DETAILS.get(detail or "")


def load_handlers(kinds: Iterable[TaskType.ValueType]) -> dict[TaskType.ValueType, TaskHandler]:
    """Import the handlers of these types."""
    handlers: dict[TaskType.ValueType, TaskHandler] = {}
    for kind in kinds:
        module, name = _HANDLERS[kind]
        handlers[kind] = cast("TaskHandler", getattr(importlib.import_module(f"{__name__}.{module}"), name)())
    return handlers
