"""The task types a worker can execute: one module each, one line each in `_HANDLERS`.

Modules are imported when they are asked for, so that a worker of one type does not pay for the others.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import cast

from atelier.tasks.v1.enums_pb2 import TaskType

from meshkit.catalog import TASK_TYPES, type_name
from meshkit.worker.handlers import TaskHandler

# Module and class, by the spelling of the type.
_HANDLERS = {
    "GENERATION": "generation:GenerationHandler",
    "IMAGE_ADJUSTER": "image_adjuster:ImageAdjusterHandler",
    "NOOP": "noop:NoopHandler",
}

DEFAULT_TYPES = tuple(TASK_TYPES[name].number for name in _HANDLERS if not TASK_TYPES[name].internal)
"""What a worker serves when it is not told."""


def parse_types(names: Iterable[str]) -> tuple[TaskType.ValueType, ...]:
    """Return types by their documented names; all but the internal ones where none is named.

    Raises:
        ValueError: A name is no type that this worker can execute.
    """
    known = {name: TASK_TYPES[name].number for name in _HANDLERS}
    wanted = [name.strip().upper() for name in names]
    if unknown := sorted(set(wanted) - set(known)):
        raise ValueError(f"unknown task types {', '.join(unknown)}; known are {', '.join(sorted(known))}")
    return tuple(dict.fromkeys(known[name] for name in wanted)) or DEFAULT_TYPES


def load_handlers(kinds: Iterable[TaskType.ValueType]) -> dict[TaskType.ValueType, TaskHandler]:
    """Import the handlers of these types."""
    handlers: dict[TaskType.ValueType, TaskHandler] = {}
    for kind in kinds:
        module, _, name = _HANDLERS[type_name(kind)].partition(":")
        handlers[kind] = cast("TaskHandler", getattr(importlib.import_module(f"{__name__}.{module}"), name)())
    return handlers
