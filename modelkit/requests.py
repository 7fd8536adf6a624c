"""What is asked of a model that makes pictures, and what comes of it. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True, slots=True)
class AdapterFile:
    """A LoRA that a picture asks for.

    Attributes:
        path: The file, here.
        weight: How strongly it acts; 1 is as trained.
        label: Name under which its owner knows it, such as its path in storage.
    """

    path: Path
    weight: float
    label: str = ""


class ProgressObserver(Protocol):
    """Who follows the making of one picture."""

    def progress(self, step: int, total: int, preview: bytes | None = None) -> None:
        """Hear that `step` of `total` is done; `preview` is a JPEG."""
        ...

    def cancelled(self) -> bool:
        """Tell whether the picture is still wanted; read between steps."""
        ...


@dataclass(frozen=True, slots=True)
class BatchSettings:
    """What all pictures of a batch share.

    Attributes:
        width: Width of the pictures in pixels.
        height: Height of the pictures in pixels.
        steps: Denoising steps; the card's where None.
        guidance_scale: How closely prompts are followed: the embedded scale where the model has one, else that of
            classifier-free guidance; the card's where None.
        strength: How much of the references is kept, 0 (nothing) to 1 (all); ignored without references.
        adapters: LoRAs that act.
    """

    width: int
    height: int
    steps: int | None = None
    guidance_scale: float | None = None
    strength: float = 0.0
    adapters: tuple[AdapterFile, ...] = ()


@dataclass(frozen=True, slots=True)
class ImageRequest:
    """One picture of a batch.

    Attributes:
        prompt: What it shows.
        seed: Seed of its noise.
        watcher: Who follows it.
        negative_prompt: What it must not show; the card's where None.
        reference: Picture to start from; all orders of a batch have one, or none has.
    """

    prompt: str
    seed: int
    watcher: ProgressObserver
    negative_prompt: str | None = None
    reference: Image.Image | None = None


@dataclass(frozen=True, slots=True)
class Picture:
    """What was made.

    Attributes:
        image: RGB, of exactly the size asked for.
        cut_tokens: Tokens of the prompt beyond what the model reads; they had no say.
    """

    image: Image.Image
    cut_tokens: int
