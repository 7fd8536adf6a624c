"""Parts of pictures redrawn by a service that edits pictures: what it is sent, and what is taken of its answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np
from PIL import Image

from modelkit.details import GarmentTile
from modelkit.patches import Floats, Pixels, match_colour
from modelkit.redraw import Done, Draw
from modelkit.refiner import DRAWN_SIDES, PictureTile

Edit = Callable[[str, Sequence[Image.Image], int], Image.Image]
"""Redraws the first of some pictures: takes a name for the request and the longer side that is wanted; returns RGB."""

# The garment's edge fades over this share of a tile's longer side.
_EDGE_SHARE = 1 / 48


class EditedTiles:
    """Has a service redraw the tiles of a picture; each attempt is a request of its own.

    Args:
        edit: Asks the service.
    """

    def __init__(self, edit: Edit) -> None:
        self._edit = edit

    def tile(self, tile: PictureTile) -> Draw:
        """Return what redraws a tile."""

        def draw(attempt: int, done: Done) -> Floats:
            shown = Image.fromarray(tile.copy(min(tile.side, tile.original_side)))
            made = self._edit(f"tile-{tile.number + 1}-{attempt + 1}", [shown], tile.side)
            done(1.0)
            return _sized(made, tile.plain)

        return draw


class EditedFaces:
    """Has a service redraw faces, which keep their colours.

    Args:
        edit: Asks the service.
        strength: Share of what it draws in the result, 0 to 1.
    """

    def __init__(self, edit: Edit, strength: float = 1.0) -> None:
        self._edit = edit
        self._strength = strength

    def face(self, number: int, before: Pixels) -> Draw:
        """Return what redraws a face."""
        original = np.asarray(before / 255, np.float32)

        def draw(attempt: int, done: Done) -> Floats:
            made = self._edit(f"face-{number + 1}-{attempt + 1}", [Image.fromarray(before)], DRAWN_SIDES[0])
            done(1.0)
            matched = match_colour(_sized(made, before), original)
            return np.asarray(original + self._strength * (matched - original), np.float32)

        return draw


class EditedDetails:
    """Has a service redraw tiles of a garment after a reference; what is no garment stays, and so do colours.

    Args:
        edit: Asks the service.
    """

    def __init__(self, edit: Edit) -> None:
        self._edit = edit

    def detail(self, tile: GarmentTile) -> Draw:
        """Return what redraws a tile."""
        original = np.asarray(tile.before / 255, np.float32)
        worn = np.asarray(tile.worn, np.float32)
        sigma = max(1.0, _EDGE_SHARE * max(worn.shape))
        within = (2 * cv2.GaussianBlur(worn, (0, 0), sigma, borderType=cv2.BORDER_REFLECT) - 1).clip(0, 1) * worn
        side = next((each for each in DRAWN_SIDES if each >= max(worn.shape)), DRAWN_SIDES[-1])

        def draw(attempt: int, done: Done) -> Floats:
            shown = [Image.fromarray(tile.before), Image.fromarray(tile.reference)]
            made = self._edit(f"detail-{tile.number + 1}-{attempt + 1}", shown, side)
            done(1.0)
            matched = match_colour(_sized(made, tile.before), original)
            return np.asarray(original + within[..., None] * (matched - original), np.float32)

        return draw


def _sized(made: Image.Image, like: Pixels) -> Floats:
    size = (like.shape[1], like.shape[0])
    image = made if made.size == size else made.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    return np.asarray(np.asarray(image.convert("RGB")) / 255, np.float32)
