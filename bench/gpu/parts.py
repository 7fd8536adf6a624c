"""The parts of the check: a part is a generator of figures, and one line in `PARTS`."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

from bench.gpu.setting import Figure, Setting

Measure = Callable[[Setting], Iterator[Figure]]


@dataclass(frozen=True, slots=True)
class Part:
    """One part.

    Attributes:
        name: Its name on the command line and in the table.
        entry: `module:function` of what measures it; it is imported in the part's own process alone.
        seconds: How long it may take.
        uses_mesh: Whether it is given a running mesh.
        needs: Parts that have to go well before it.
    """

    name: str
    entry: str
    seconds: float
    uses_mesh: bool = False
    needs: tuple[str, ...] = ()


PARTS = (
    Part("shipped", "bench.gpu.shipped:measure", 90, uses_mesh=True),
    Part("clips", "bench.gpu.clips:measure", 60),
    Part("editing", "bench.gpu.editing:measure", 60),
    Part("build", "bench.gpu.model:measure", 120),
    Part("bare", "bench.gpu.bare:measure", 90, needs=("build",)),
    Part("compile", "bench.gpu.bare:measure_compiled", 120, needs=("build",)),
    Part("kontext", "bench.gpu.editing:measure_large", 90, needs=("build",)),
    Part("worker", "bench.gpu.worker:measure", 120, uses_mesh=True, needs=("build",)),
    Part("training", "bench.gpu.training:measure", 240, needs=("build",)),
)


def choose(names: Iterable[str], parts: Sequence[Part] = PARTS) -> list[Part]:
    """Return the named parts and what they need, in the table's order; all parts where none is named.

    Raises:
        ValueError: A name is none of a part.
    """
    by_name = {part.name: part for part in parts}
    wanted = list(names) or list(by_name)
    chosen: set[str] = set()
    while wanted:
        name = wanted.pop()
        if name not in by_name:
            message = f"There is no part {name}; there are {', '.join(by_name)}."
            raise ValueError(message)
        if name not in chosen:
            chosen.add(name)
            wanted.extend(by_name[name].needs)
    return [part for part in parts if part.name in chosen]


def load(entry: str) -> Measure:
    """Import what measures a part."""
    module, _, function = entry.partition(":")
    return cast("Measure", getattr(importlib.import_module(module), function))
