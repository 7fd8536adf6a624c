"""The providers that a worker can call: one module each, one line each in `_MODULES`.

A provider's module has a function `handlers(kit)` that returns a `CallHandler` for each task type that the provider
executes. Its queue, its types and its capabilities are declared in the contract (`meshkit.catalog.PROVIDERS`). LOCAL is
not among them: it is the worker's own device, and the handlers of `tasktypes` do its work.

Modules are imported when they are asked for, so that a worker of one provider does not pay for the others. What they
share: `http` (connections), `errors` (what follows from a failure), `paid` (requests that cost money, each sent once),
`given` (pictures of tasks), `choices` (members of `config`), `results` (files of answers), `config` (settings), and
`kit`, which holds all of it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, cast

from atelier.tasks.v1.enums_pb2 import TaskType

from meshkit.catalog import PROVIDERS
from meshkit.worker.handlers import CallHandler
from meshkit.worker.pairs import Pair

if TYPE_CHECKING:
    from meshkit.worker.host import CallWork

    # It reads settings, which name providers.
    from services.inference.providers.kit import ProviderKit

LOCAL = "LOCAL"

Handlers = Callable[["ProviderKit"], Mapping[TaskType.ValueType, CallHandler]]

# Module, by the spelling of the provider.
_MODULES: dict[str, str] = {
    "FAL_STANDARD": f"{__name__}.fal_standard",
    "FAL_SHOOTIFY_REFINER": f"{__name__}.fal_shootify_refiner",
    "FAL_GARMENT_FIXER": f"{__name__}.fal_garment_fixer",
    "FASHN_STANDARD": f"{__name__}.fashn_standard",
    "FREEPIK_MAGNIFIC": f"{__name__}.freepik_magnific",
    "FREEPIK_MAGNIFIC_PRECISION": f"{__name__}.freepik_magnific_precision",
    "VERTEX": f"{__name__}.vertex",
    "AI_CORE": f"{__name__}.ai_core",
    "NANO_BANANA_UPSCALER": f"{__name__}.nano_banana_upscaler",
    "SARTIQ_ULTIMATE_REFINER": f"{__name__}.ultimate_refiner",
    "SARTIQ_ULTIMATE_GARMENT_FIXER": f"{__name__}.ultimate_garment_fixer",
    "SARTIQ_ULTIMATE_FACE_FIXER": f"{__name__}.ultimate_face_fixer",
}


def parse_providers(names: Iterable[str]) -> tuple[str, ...]:
    """Return providers by their documented names, LOCAL among them where the device is to work.

    Raises:
        ValueError: A name is no provider that this worker can call, or none is named.
    """
    known = {LOCAL, *_MODULES}
    wanted = tuple(dict.fromkeys(name.strip().upper() for name in names))
    if not wanted:
        raise ValueError(f"name at least one provider; known are {', '.join(sorted(known))}")
    if unknown := sorted(set(wanted) - known):
        raise ValueError(f"unknown providers {', '.join(unknown)}; known are {', '.join(sorted(known))}")
    return wanted


def queues_of(names: Iterable[str]) -> tuple[str, ...]:
    """Return the queues of these providers, each once; LOCAL is passed over."""
    return tuple(dict.fromkeys(PROVIDERS[name].queue for name in names if name != LOCAL))


def load_calls(names: Iterable[str], slots: int, kit: ProviderKit) -> tuple[CallWork, ...]:
    """Import the handlers of these providers, and group them by their queues.

    Args:
        names: Spellings of providers; LOCAL is passed over.
        slots: Calls at once, for each queue.
        kit: What handlers are given.
    """
    from meshkit.worker.host import CallWork  # noqa: PLC0415 -- it declares metrics, for workers alone to show

    queues: dict[str, dict[Pair, CallHandler]] = {}
    for name in names:
        if name == LOCAL:
            continue
        spec = PROVIDERS[name]
        module = importlib.import_module(_MODULES[name])
        handlers = cast("Handlers", module.handlers)(kit)
        pairs = {Pair(kind, spec.number): handler for kind, handler in handlers.items()}
        queues.setdefault(spec.queue, {}).update(pairs)
    return tuple(CallWork(queue, handlers, slots) for queue, handlers in queues.items())
