"""Requests to a model that makes pictures, and its results. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from PIL import Image

Garment = Literal["all", "upper", "lower", "full"]
"""Garments that a network for garments finds."""


@dataclass(frozen=True, slots=True)
class AdapterFile:
    """A LoRA that a picture asks for.

    Attributes:
        path: Local file.
        weight: Strength; 1 is as trained.
        label: Name for reports, such as its path in storage.
    """

    path: Path
    weight: float
    label: str = ""


class ProgressObserver(Protocol):
    """Observer of one picture in progress."""

    def progress(self, step: int, total: int, preview: bytes | None = None) -> None:
        """Take note that `step` of `total` is done; `preview` is a JPEG."""
        ...

    def upscaling(self) -> None:
        """Take note that the picture is drawn, and is being enlarged."""
        ...

    def cancelled(self) -> bool:
        """Tell whether the picture was cancelled; called between steps."""
        ...


@dataclass(frozen=True, slots=True)
class BatchSettings:
    """Settings that all pictures of a batch share.

    Attributes:
        width: Width of the pictures in pixels.
        height: Height of the pictures in pixels.
        steps: Denoising steps; the card's where None.
        guidance_scale: How closely prompts are followed: the embedded scale where the model has one, else that of
            classifier-free guidance; the card's where None.
        strength: How much of the references is kept, 0 (nothing) to 1 (all); ignored without references.
        adapters: LoRAs to activate.
        whole: Whether references fill the drawn size without a cut, and the drawing the pictures' size: an edit keeps
            everything where it is, where a new picture is cut a little rather than distorted.
    """

    width: int
    height: int
    steps: int | None = None
    guidance_scale: float | None = None
    strength: float = 0.0
    adapters: tuple[AdapterFile, ...] = ()
    whole: bool = False


@dataclass(frozen=True, slots=True)
class ImageRequest:
    """One picture of a batch.

    Attributes:
        prompt: Description of the picture.
        seed: Seed of its noise.
        observer: Observer of its progress.
        negative_prompt: Description of what to avoid; the card's where None.
        reference: Picture to start from; all requests of a batch have one, or none has.
        others: Further pictures that an edit draws on; all requests of a batch have as many.
        mask: Where the picture may change (255) and where it stays (0), of the picture's size; all have one, or none.
    """

    prompt: str
    seed: int
    observer: ProgressObserver
    negative_prompt: str | None = None
    reference: Image.Image | None = None
    others: tuple[Image.Image, ...] = ()
    mask: Image.Image | None = None


@dataclass(frozen=True, slots=True)
class Picture:
    """A finished picture.

    Attributes:
        image: RGB, of exactly the requested size.
        cut_tokens: Number of the prompt's tokens beyond the model's limit; the model did not read them.
    """

    image: Image.Image
    cut_tokens: int
