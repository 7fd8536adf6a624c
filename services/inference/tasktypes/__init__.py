"""The task types that a worker's device can execute: one module each, named as the type's field in the contract.

A module is registered by being here. It has a function `handler()` that returns the type's `TaskHandler`. What else is
known of a type is declared in the contract (`meshkit.catalog.TASK_TYPES`).

Beside the types stand the pipelines that tasks name as a provider (`_PIPELINES`); a worker that executes a type
executes the type's pipelines too.

Modules are imported when they are asked for, so that a worker of one type does not pay for the others.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterable
from typing import cast

from atelier.tasks.v1.enums_pb2 import TaskType

from meshkit.catalog import PROVIDERS, TASK_TYPES, TaskTypeSpec, type_name
from meshkit.worker.handlers import TaskHandler
from meshkit.worker.pairs import Pair

# Pipelines of this mesh that tasks name as a provider: the module whose handler does their work.
_PIPELINES = {
    "SARTIQ_ULTIMATE_REFINER": f"{__name__}.ultimate_refiner",
    "SARTIQ_ULTIMATE_GARMENT_FIXER": f"{__name__}.detail_enhancer",
    "SARTIQ_ULTIMATE_FACE_FIXER": f"{__name__}.face_enhancer",
}


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
    return {kind: _load(_module(TASK_TYPES[type_name(kind)])) for kind in kinds}


def load_pairs(kinds: Iterable[TaskType.ValueType], *, pipelines: bool = True) -> dict[Pair, TaskHandler]:
    """Import the handlers of these types, by what each executes.

    Args:
        kinds: The types.
        pipelines: Whether the pipelines that execute them are among them.
    """
    wanted = tuple(kinds)
    handlers = {Pair(kind): handler for kind, handler in load_handlers(wanted).items()}
    for name, module in _PIPELINES.items() if pipelines else ():
        for kind in wanted:
            if type_name(kind) in PROVIDERS[name].tasks:
                handlers[Pair(kind, PROVIDERS[name].number)] = _load(module)
    return handlers


def _load(module: str) -> TaskHandler:
    return cast("Callable[[], TaskHandler]", importlib.import_module(module).handler)()
