"""The card of a model, `atelier.json`: its name, its architecture and its limits.

The card stands in the model's folder. A folder without one is taken for a language model where its `config.json` says
so, for a FLUX.1-Kontext, an LTX or a Wan model where its pipeline says so, for a FLUX.1-schnell where its transformer
takes no guidance, else for a FLUX.1-dev. A GGUF file needs no card. Models that make no pictures leave the members on
sizes and steps at their defaults.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from modelkit.errors import ModelError, ModelErrorKind

CARD_NAME = "atelier.json"
GGUF = "gguf"
"""Architecture of a language model in a GGUF file."""
CAUSAL = "causal-lm"
"""Architecture of a language model in a folder of transformers."""


class _CardPart(BaseModel):
    """A part of a card. Other programs read cards too, so unknown members are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())


class StepRange(_CardPart):
    """Denoising steps.

    Attributes:
        default: Steps if the caller names none.
        min: Least that a caller may ask for.
        max: Most that a caller may ask for.
    """

    default: Annotated[int, Field(ge=1)] = 28
    min: Annotated[int, Field(ge=1)] = 1
    max: Annotated[int, Field(ge=1, le=1000)] = 100

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.min <= self.default <= self.max:
            raise ValueError("min <= default <= max must hold")
        return self


class Guidance(_CardPart):
    """How the model follows its prompt.

    Attributes:
        embedded: The transformer was distilled on a guidance scale and takes it as an input.
        scale_default: That scale, if the caller names none.
        true_cfg_scale: Scale of classifier-free guidance by a second, negative prediction; 1 and less is none.
        negative_prompt: Prompt of that prediction, if the caller names none.
    """

    embedded: bool = True
    scale_default: Annotated[float, Field(ge=0, le=100)] = 3.5
    true_cfg_scale: Annotated[float, Field(ge=0, le=100)] = 1.0
    negative_prompt: str = ""

    @property
    def default(self) -> float:
        """The scale that a picture is made with, if the caller names none."""
        return self.scale_default if self.embedded else self.true_cfg_scale


class VideoLimits(_CardPart):
    """Frames of a model that makes clips.

    Attributes:
        min_frames: Least that the model draws well.
        max_frames: Most that it draws in one call; longer clips are made of them and of frames in between.
        frame_multiple: Their number is one more than a multiple of it.
        frame_rate: Frames a second that the model was trained at.
    """

    min_frames: Annotated[int, Field(ge=2, le=1024)] = 9
    max_frames: Annotated[int, Field(ge=2, le=1024)] = 121
    frame_multiple: Annotated[int, Field(ge=1, le=64)] = 8
    frame_rate: Annotated[float, Field(gt=0, le=120)] = 25.0

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_frames > self.max_frames:
            raise ValueError("min_frames <= max_frames must hold")
        if (self.min_frames - 1) % self.frame_multiple or (self.max_frames - 1) % self.frame_multiple:
            raise ValueError("min_frames and max_frames must be one more than a multiple of frame_multiple")
        return self

    def frames_of(self, seconds: float) -> int:
        """Return the frames to draw for a clip of this length: as many as it has, within the model's range."""
        whole = math.ceil(seconds * self.frame_rate / self.frame_multiple) * self.frame_multiple + 1
        return min(max(whole, self.min_frames), self.max_frames)


class LoraTargets(_CardPart):
    """What a training adapts, and what it has to know of the model.

    Attributes:
        target_modules: Layers of a block that are adapted; all of attention and feed-forward where there are none.
        learning_rate_scale: Factor of the learning rate that a training asks for. Rates are meant for FLUX.1-dev; a
            model with far narrower layers learns as much only at a higher one.
        preserved_prompts: Prompts whose pictures a training keeps as they are, in all wordings that the model knows.
    """

    target_modules: tuple[str, ...] = ()
    learning_rate_scale: Annotated[float, Field(gt=0, le=1000)] = 1.0
    preserved_prompts: Annotated[tuple[str, ...], Field(max_length=1000)] = ()


class ModelCard(_CardPart):
    """Properties of a model that a worker needs to run it; all sizes in pixels.

    Attributes:
        name: Name under which tasks ask for the model.
        architecture: What the model is (`flux`, `flux-kontext`, `ltx`, `wan`); the families of `modelkit.family` decide
            by it which of them runs it.
        license: SPDX name of the weights' licence, where known.
        native_size: Side of the square that the model was trained on.
        min_size: Smallest side that the model draws well; smaller results are drawn larger and reduced.
        max_size: Largest side that the model draws well; larger results are drawn natively and enlarged.
        size_multiple: Sides are multiples of it.
        max_sequence_length: Tokens of the long prompt encoder; prompts are padded and cut to it.
        references: Most pictures that an edit may draw on beside the one that it changes.
        steps: Denoising steps.
        guidance: Guidance.
        lora: Layers that a training adapts.
        video: Frames, of models that make clips.
        dtype: Type of numbers that the weights were trained in.
    """

    name: Annotated[str, Field(min_length=1, max_length=255)] = "flux"
    architecture: Annotated[str, Field(min_length=1, max_length=64)] = "flux"
    license: str = ""
    native_size: Annotated[int, Field(ge=16, le=8192)] = 1024
    min_size: Annotated[int, Field(ge=8, le=8192)] = 256
    max_size: Annotated[int, Field(ge=16, le=8192)] = 2048
    size_multiple: Annotated[int, Field(ge=1, le=1024)] = 16
    max_sequence_length: Annotated[int, Field(ge=1, le=512)] = 512
    references: Annotated[int, Field(ge=0, le=64)] = 16
    steps: StepRange = StepRange()
    guidance: Guidance = Guidance()
    lora: LoraTargets = LoraTargets()
    video: VideoLimits = VideoLimits()
    dtype: str = "bfloat16"

    @model_validator(mode="before")
    @classmethod
    def _smallest(cls, data: Any) -> Any:
        if isinstance(data, dict) and "min_size" not in data and isinstance(data.get("native_size"), int):
            return {**data, "min_size": min(256, data["native_size"])}
        return data

    @model_validator(mode="after")
    def _sizes(self) -> Self:
        if not self.min_size <= self.native_size <= self.max_size:
            raise ValueError("min_size <= native_size <= max_size must hold")
        if self.native_size % self.size_multiple or self.max_size % self.size_multiple:
            raise ValueError("native_size and max_size must be multiples of size_multiple")
        return self


def read_card(folder: Path) -> ModelCard:
    """Read a model's card.

    Args:
        folder: The model's folder, or its GGUF file.

    Raises:
        ModelError: The card is not JSON, or a member of it is out of range.
    """
    if is_gguf(folder):
        return ModelCard(name=folder.stem, architecture=GGUF)
    path = folder / CARD_NAME
    try:
        data = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return _guess(folder)
    except (OSError, ValueError) as error:
        raise ModelError("The model's card atelier.json is not readable JSON.", ModelErrorKind.RESOURCE) from error
    if not isinstance(data, dict):
        raise ModelError("The model's card atelier.json must hold an object.", ModelErrorKind.RESOURCE)
    try:
        return ModelCard.model_validate(data)
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(str(part) for part in fault['loc']) or 'card'}: {fault['msg']}" for fault in error.errors()
        )
        raise ModelError(f"The model's card atelier.json is not valid: {faults}.", ModelErrorKind.RESOURCE) from error


def is_gguf(path: Path) -> bool:
    """Tell whether a path is that of a GGUF file."""
    return path.suffix.lower() == ".gguf" and path.is_file()


def _guess(folder: Path) -> ModelCard:
    name = folder.name
    if folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--"):
        # The hub's cache keeps a snapshot under models--<owner>--<name>/snapshots/<commit>.
        name = folder.parent.parent.name.removeprefix("models--").replace("--", "/")
    if any(str(kind).endswith("ForCausalLM") for kind in _read(folder / "config.json").get("architectures") or ()):
        return ModelCard(name=name, architecture=CAUSAL)
    kind = str(_read(folder / "model_index.json").get("_class_name"))
    if kind.startswith("LTX"):  # LTX-Video's own model card
        return ModelCard(
            name=name,
            architecture="ltx",
            native_size=512,
            max_size=1280,
            size_multiple=32,
            max_sequence_length=128,
            steps=StepRange(default=40),
            guidance=Guidance(embedded=False, scale_default=3.0),
            video=VideoLimits(max_frames=161),
        )
    if kind.startswith("Wan"):  # Wan 2.1's own model card
        return ModelCard(
            name=name,
            architecture="wan",
            native_size=640,
            max_size=1280,
            steps=StepRange(default=40),
            guidance=Guidance(embedded=False, scale_default=5.0),
            video=VideoLimits(min_frames=5, max_frames=81, frame_multiple=4, frame_rate=16.0),
        )
    transformer = _read(folder / "transformer" / "config.json")
    if _read(folder / "model_index.json").get("_class_name") == "FluxKontextPipeline":
        # FLUX.1-Kontext-dev: about a megapixel, its longest side 1568; guidance of 2.5 (its own model card).
        return ModelCard(name=name, architecture="flux-kontext", max_size=1568, guidance=Guidance(scale_default=2.5))
    if transformer.get("guidance_embeds", True):
        return ModelCard(name=name)
    # FLUX.1-schnell: distilled to four steps, no guidance, 256 tokens (its own model card).
    return ModelCard(
        name=name,
        max_sequence_length=256,
        steps=StepRange(default=4),
        guidance=Guidance(embedded=False, scale_default=0.0),
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}
