"""The protocol of a family of models: which models it runs, how large they are, how one is loaded and closed.

A family is one module with a class that satisfies `Family`, and one line in `FAMILIES`. `modelkit.residency` keeps the
models of all families under one budget of bytes.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from modelkit.card import ModelCard

if TYPE_CHECKING:  # it imports torch, which not every family needs
    from modelkit.device import Device

FAMILIES: dict[str, str] = {
    "content": "modelkit.content:ContentFamily",
    "cutout": "modelkit.cutout:CutoutFamily",
    "flux": "modelkit.flux:FluxFamily",
    "kontext": "modelkit.kontext:KontextFamily",
    "language": "modelkit.language:LanguageFamily",
    "likeness": "modelkit.likeness:LikenessFamily",
    "upscaler": "modelkit.upscale:UpscalerFamily",
    "video": "modelkit.video:VideoFamily",
    "vision": "modelkit.vision:VisionFamily",
}
"""Class of each family, by the family's name; imported when a process serves the family."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where a model comes from.

    Attributes:
        card: The model's card.
        folder: Folder of its weights, or their only file; None where they come with a Python package, which the family
            finds by itself.
    """

    card: ModelCard
    folder: Path | None = None


class LoadedModel(Protocol):
    """A model in memory. Several threads may use it at once."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels of its loaded adapters."""
        ...

    def holdings(self) -> Mapping[Hashable, int]:
        """Return the bytes it holds, by what holds them; what two models share has the same key in both.

        A model that loads parts on first use counts them from the start. The call must not wait for a computation.
        """
        ...

    def close(self) -> None:
        """Let go of all memory. Nobody uses the model now or later."""
        ...


class Family(Protocol):
    """One kind of model.

    Attributes:
        packaged: Cards of the models whose weights come with a Python package, the default first.
    """

    packaged: Sequence[ModelCard]

    def matches(self, card: ModelCard) -> bool:
        """Tell whether this family runs the model of a folder that has this card."""
        ...

    def size(self, source: Source, device: Device) -> int:
        """Return the bytes that a model will hold once it is loaded, without loading it.

        Raises:
            ModelError: The source holds no such model.
        """
        ...

    def load(self, source: Source, device: Device) -> LoadedModel:
        """Load a model.

        Raises:
            ModelError: It does not load.
        """
        ...


def load_families(names: Iterable[str] | None = None) -> dict[str, Family]:
    """Import and build the families of these names; all where None."""
    return {
        name: cast("Family", pkgutil.resolve_name(FAMILIES[name])()) for name in (FAMILIES if names is None else names)
    }
