"""Masks of a masked loss: where people are, or the garment is; everything else of a picture counts hardly."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from modelkit import mattes
from services.training.trainer.dataset.seeing import Kind

# A loss that ends at the edge does not learn it: the mask reaches beyond by this share of the longer side.
_BEYOND = 1 / 32


class PartFinder(Protocol):
    """Finds parts of pictures (`seeing.PictureEyes`)."""

    def part(self, image: Image.Image, kind: Kind) -> NDArray[np.float32] | None:
        """Return where people are, or the garment is, (height, width), 0 to 1; None where there are none."""
        ...


def mask_of(image: Image.Image, kind: Kind, finder: PartFinder) -> Image.Image | None:
    """Return the mask of a picture, L, white where the loss counts; None where nothing of the kind is found.

    Args:
        image: RGB.
        kind: What counts.
        finder: Finds it.
    """
    share = finder.part(image, kind)
    if share is None or not (share > 0.5).any():
        return None
    grown = mattes.grow(share, round(_BEYOND * max(image.size)))
    return Image.fromarray((np.clip(grown, 0, 1) * 255 + 0.5).astype(np.uint8))
