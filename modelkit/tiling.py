"""Repaint a picture of any size by a model that draws small ones: tile by tile, without seams.

Tiles overlap by a quarter of their sides at least, are given the coarse colours that they had, and are blended with
weights that fall to 0 at their edges. So no tile's edge is left in the picture.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from PIL import Image

from modelkit.card import ModelCard
from modelkit.errors import ModelError
from modelkit.patches import Blend, Floats, PixelBox, Pixels, feather, match_colour
from modelkit.requests import BatchSettings, ImageRequest, Picture

if TYPE_CHECKING:
    from modelkit.upscale import Upscaler

Done = Callable[[float], None]

MAX_TILES = 1024
_OVERLAP = 4  # of a tile's side
_BATCH_PIXELS = 256 * 256
_MOST_IN_BATCH = 16


class Painter(Protocol):
    """A model that draws from a prompt and a picture (`modelkit.flux.FluxModel`)."""

    @property
    def card(self) -> ModelCard:
        """Its limits."""
        ...

    def generate(
        self, settings: BatchSettings, requests: Sequence[ImageRequest], upscaler: Upscaler
    ) -> list[Picture | None]:
        """Draw a batch; None for a cancelled picture."""
        ...


@dataclass(frozen=True, slots=True)
class RepaintSettings:
    """How to repaint.

    Attributes:
        prompt: What the picture shows.
        steps: Denoising steps of a tile drawn from nothing; a tile takes the share `denoise` of them.
        denoise: Share that may be repainted, above 0 to 1.
        seed: Seed of the noise.
    """

    prompt: str
    steps: int
    denoise: float
    seed: int


class RepaintCancelled(Exception):  # noqa: N818 -- it ends the work, and is no error
    """The work was called off between two steps."""


def repaint(
    image: Image.Image,
    settings: RepaintSettings,
    model: Painter,
    upscaler: Upscaler,
    *,
    done: Done,
    cancelled: Callable[[], bool],
) -> Image.Image:
    """Repaint an RGB picture; the same for the same picture, settings and model.

    Args:
        image: The picture.
        settings: How to do it.
        model: Draws the tiles, at its native size.
        upscaler: For models that need one.
        done: Called with the share that is done, 0 to 1, after every step of the model.
        cancelled: Tells whether to stop; asked between steps.

    Raises:
        ModelError: The picture takes more than 1,024 tiles, or the model does not take the settings.
        RepaintCancelled: It was told to stop.
    """
    pixels = np.asarray(image.convert("RGB"))
    height, width = pixels.shape[:2]
    side = model.card.native_size
    boxes = [
        PixelBox(left, top, min(left + side, width), min(top + side, height))
        for top in starts(height, side)
        for left in starts(width, side)
    ]
    if len(boxes) > MAX_TILES:
        raise ModelError(
            f"upscale_denoise: the model {model.card.name} would repaint {len(boxes)} tiles of {side} pixels, and may "
            f"repaint {MAX_TILES}; ask for a smaller result, for a larger model in config.model, or for 0."
        )
    blend = Blend(pixels)
    size = max(1, min(_MOST_IN_BATCH, _BATCH_PIXELS // side**2))
    for first in range(0, len(boxes), size):
        batch = boxes[first : first + size]
        observer = _TileObserver(done, cancelled, first / len(boxes), len(batch) / len(boxes))
        requests = [
            ImageRequest(
                settings.prompt, _seed(settings.seed, first + place), observer, reference=_tile(pixels, box, side)
            )
            for place, box in enumerate(batch)
        ]
        asked = BatchSettings(side, side, settings.steps, strength=1 - settings.denoise)
        for box, picture in zip(batch, model.generate(asked, requests, upscaler), strict=True):
            if picture is None:
                raise RepaintCancelled
            redrawn = np.asarray(np.asarray(picture.image)[: box.height, : box.width] / 255, np.float32)
            original: Floats = np.asarray(pixels[box.slices] / 255, np.float32)
            blend.lay(box, match_colour(redrawn, original), feather(box, width, height, side // _OVERLAP, "box"))
    return Image.fromarray(blend.result())


def starts(length: int, side: int) -> list[int]:
    """Return where tiles of this side begin along a picture's side: evenly, a quarter of a tile over the next."""
    if length <= side:
        return [0]
    count = math.ceil((length - side) / (side - side // _OVERLAP)) + 1
    return [round(index * (length - side) / (count - 1)) for index in range(count)]


class _TileObserver:
    """Tells how far a batch of tiles is."""

    def __init__(self, done: Done, cancelled: Callable[[], bool], before: float, share: float) -> None:
        self._done = done
        self._before = before
        self._share = share
        self.cancelled = cancelled

    def progress(self, step: int, total: int, preview: bytes | None = None) -> None:  # noqa: ARG002 -- the protocol's
        """Take note of a step; a preview of a tile shows nobody anything."""
        self._done(self._before + self._share * step / total)

    def upscaling(self) -> None:
        """Take no note: tiles are drawn at their size."""


def _seed(seed: int, index: int) -> int:
    """Return the seed of a tile: neighbours with the same noise would show a pattern."""
    return int(np.random.SeedSequence((seed, index)).generate_state(1, np.uint64)[0]) >> 1


def _tile(pixels: Pixels, box: PixelBox, side: int) -> Image.Image:
    """Cut out a tile; where the picture is smaller than a tile, it is mirrored at its right and lower edge."""
    part = pixels[box.slices]
    pad = ((0, side - part.shape[0]), (0, side - part.shape[1]), (0, 0))
    return Image.fromarray(np.pad(part, pad, mode="symmetric"))
