"""The task types that a worker's device can execute: one module each, named as the type's field in the contract.

A module is registered by being here. It has a function `handler()` that returns the type's `TaskHandler`. What else is
known of a type is declared in the contract (`meshkit.catalog.TASK_TYPES`).

Modules are imported when they are asked for, so that a worker of one type does not pay for the others.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterable
from typing import cast

from atelier.tasks.v1.enums_pb2 import TaskType

from meshkit.catalog import TASK_TYPES, TaskTypeSpec, type_name
from meshkit.worker.handlers import TaskHandler


def _module(spec: TaskTypeSpec) -> str:
    return f"{__name__}.{spec.detail}"


def handled_types() -> dict[str, TaskType.ValueType]:
    """Return the types that have a module here: their numbers by their spellings."""
    return {name: spec.number for name, spec in TASK_TYPES.items() if importlib.util.find_spec(_module(spec))}


def parse_types(names: Iterable[str]) -> tuple[TaskType.ValueType, ...]:
    """Return types by their documented names; all but the internal ones where none is named.

    Raises:
        ValueError: A name is no type that this worker can execute.
    """
    known = handled_types()
    wanted = [name.strip().upper() for name in names]
    if unknown := sorted(set(wanted) - set(known)):
        raise ValueError(f"unknown task types {', '.join(unknown)}; known are {', '.join(sorted(known))}")
    default = (number for name, number in known.items() if not TASK_TYPES[name].internal)
    return tuple(dict.fromkeys(known[name] for name in wanted)) or tuple(default)


def load_handlers(kinds: Iterable[TaskType.ValueType]) -> dict[TaskType.ValueType, TaskHandler]:
    """Import the handlers of these types."""
    handlers: dict[TaskType.ValueType, TaskHandler] = {}
    for kind in kinds:
        module = importlib.import_module(_module(TASK_TYPES[type_name(kind)]))
        handlers[kind] = cast("Callable[[], TaskHandler]", module.handler)()
    return handlers
