"""The models whose LoRAs the library takes, by the shapes of their layers. No model is loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from modelkit.flux_layers import LayerNames, modules_of

FLUX_DEV: Final = "black-forest-labs/FLUX.1-dev"
SHIPPED: Final = "models/garments/weights"
# `transformer/config.json` and `text_encoder/config.json` of the model, as far as they say the shapes of layers.
_FLUX_DEV_TRANSFORMER: Final[Mapping[str, Any]] = MappingProxyType(
    {
        "num_layers": 19,
        "num_single_layers": 38,
        "num_attention_heads": 24,
        "attention_head_dim": 128,
        "in_channels": 64,
        "joint_attention_dim": 4096,
        "pooled_projection_dim": 768,
        "guidance_embeds": True,
    }
)
_FLUX_DEV_TEXT_ENCODER: Final[Mapping[str, Any]] = MappingProxyType(
    {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12}
)
# Folders are looked for beside the packages too, as workers do.
_ROOT: Final = Path(__file__).parents[3]


@dataclass(frozen=True, slots=True)
class BaseModel:
    """A model that a LoRA may be for.

    Attributes:
        name: Its name, which the library shows.
        layers: Its layers by all their names.
    """

    name: str
    layers: LayerNames


def known_bases(places: Sequence[str]) -> tuple[BaseModel, ...]:
    """Return the models that settings name.

    Args:
        places: Folders of models, or the name of FLUX.1-dev.

    Raises:
        ValueError: One of them is neither, or is no FLUX.
    """
    return tuple(_known(place) for place in places)


def _known(place: str) -> BaseModel:
    folder = next((one for one in (Path(place), _ROOT / place) if (one / "transformer/config.json").is_file()), None)
    if folder is None:
        if place != FLUX_DEV:
            raise ValueError(f"{place} is no folder of a FLUX model, and its layers are not known")
        return BaseModel(FLUX_DEV, LayerNames(modules_of(_FLUX_DEV_TRANSFORMER, _FLUX_DEV_TEXT_ENCODER)))
    try:
        modules = modules_of(_read(folder / "transformer/config.json"), _read(folder / "text_encoder/config.json"))
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise ValueError(f"{place} is not readable as a folder of a FLUX model") from error
    card = folder / "atelier.json"
    name = str(_read(card).get("name") or folder.name) if card.is_file() else folder.name
    return BaseModel(name, LayerNames(modules))


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text()))
