"""FASHN's models, and what each takes: the tasks service refuses what does not hold, workers send the rest.

Members of a task's `config.fashn` are inputs of the model that it names, or that the workers are set to.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.struct_pb2 import Struct

from meshkit.errors import invalid

MEMBER = "fashn"
_REFERENCES = ("reference_images", "reference_image_data", "reference_image_url")
_QUALITY: Mapping[str, tuple[str, ...]] = {
    "generation_mode": ("fast", "balanced", "quality"),
    "resolution": ("1k", "2k", "4k"),
}


@dataclass(frozen=True, slots=True)
class FashnModel:
    """What a model calls its inputs.

    Attributes:
        picture: Input that takes the base image.
        reference: Input that takes the first reference; None where it takes none.
        needs_reference: Whether it cannot do without one.
        prompted: Whether it takes a prompt.
        choices: Further inputs and what they may be.
        switches: Further inputs that are true or false.
    """

    picture: str
    reference: str | None = None
    needs_reference: bool = False
    prompted: bool = True
    choices: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: _QUALITY)
    switches: tuple[str, ...] = ()


MODELS: Mapping[str, FashnModel] = {
    "tryon-v1.6": FashnModel(
        "model_image",
        "garment_image",
        needs_reference=True,
        prompted=False,
        choices={
            "category": ("auto", "tops", "bottoms", "one-pieces"),
            "garment_photo_type": ("auto", "flat-lay", "model"),
            "mode": ("performance", "balanced", "quality"),
            "moderation_level": ("conservative", "permissive", "none"),
        },
        switches=("segmentation_free",),
    ),
    "tryon-max": FashnModel(
        "model_image",
        "product_image",
        needs_reference=True,
        choices={**_QUALITY, "generation_mode": ("balanced", "quality")},
    ),
    "product-to-model": FashnModel("model_image", "product_image", needs_reference=True),
    "model-swap": FashnModel(
        "model_image", "face_reference", choices={**_QUALITY, "face_reference_mode": ("match_base", "match_reference")}
    ),
    "edit": FashnModel("image", "image_context"),
    "background-change": FashnModel("image"),
}


def check_inputs(config: Struct, path: str, detail: Any = None) -> None:
    """Refuse members of `config.fashn` that no model takes, or that the one it names does not.

    Args:
        config: The task's `config`.
        path: Path of `config`, for the error.
        detail: The task's Create message; where it is absent, nothing is told of what the task lacks.

    Raises:
        MeshError: `INVALID` naming the first of them.
    """
    if (kind := _kind(config, MEMBER)) is None:
        return
    path = f"{path}.{MEMBER}"
    if kind != "struct_value":
        raise invalid(path, "Input should be an object", "dict_type")
    given = config.fields[MEMBER].struct_value
    named = given.fields["model"].string_value if _kind(given, "model") is not None else ""
    if _kind(given, "model") is not None:
        _one_of(named, MODELS, f"{path}.model")
        if MODELS[named].needs_reference and not _referenced(detail):
            raise invalid(f"{path}.model", f"{named} needs a reference image: the garment", "reference_required")
    models = [MODELS[named]] if named else list(MODELS.values())
    for name in sorted(set(given.fields) - {"model"}):
        if (member := _kind(given, name)) is None:
            continue
        values = {value: None for model in models for value in model.choices.get(name, ())}
        if values:
            _one_of(given.fields[name].string_value, values, f"{path}.{name}")
        elif any(name in model.switches for model in models):
            if member != "bool_value":
                raise invalid(f"{path}.{name}", "Input should be a valid boolean", "bool_type")
        else:
            known = sorted({one for model in models for one in (*model.choices, *model.switches)} | {"model"})
            text = f"{named or 'No model'} takes no such member; {'it takes' if named else 'they take'} "
            raise invalid(f"{path}.{name}", text + ", ".join(known), "unknown_member")


def _referenced(detail: Any) -> bool:
    return detail is None or any(getattr(detail, name) for name in _REFERENCES)


def _one_of(found: str, values: Collection[str], path: str) -> None:
    if found not in values:
        raise invalid(path, f"Input should be one of {', '.join(values)}", "enum")


def _kind(members: Struct, name: str) -> str | None:
    kind = members.fields[name].WhichOneof("kind") if name in members.fields else None
    return None if kind == "null_value" else kind
