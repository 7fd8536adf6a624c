"""What parts hand to models: a drawn garment, and nobody who watches."""

from __future__ import annotations

import numpy as np
from PIL import Image

from models.garments.catalogue import GarmentFacts
from models.garments.draw import draw


class Unwatched:
    """Takes no note of a picture's progress."""

    def progress(self, step: int, total: int, preview: bytes | None = None) -> None:
        """Take no note of a step."""

    def upscaling(self) -> None:
        """Take no note that a picture is being enlarged."""

    def cancelled(self) -> bool:
        """Never cancel."""
        return False


def still(side: int) -> Image.Image:
    """Draw a green bag of `side` pixels."""
    return Image.fromarray(draw(GarmentFacts("bag", "green"), np.random.default_rng(3), side).picture)
