"""How close pictures are to others of one thing, and whether a change of that is more than chance. Nothing is learned.

closeness     the cloth, boxed and scaled, against each reference in CIELAB, place by place; the ground does not count
colour        how far the cloth is from grey in CIELAB
probability   how often as large a gain would come of chance alone: all flips of signs of the paired differences
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import cv2
import numpy as np

from models.garments.draw import Picture
from models.garments.ruler import Lab, cloth_mask, to_lab

_BOX: Final = 40
_NOTHING: Final = (100.0, 0.0, 0.0)  # white: the ground of every boxed picture
_LEAST_PIXELS: Final = 12
_MOST_PAIRS: Final = 18


class Closeness:
    """Distance to pictures of one thing.

    Args:
        references: The pictures, all of one size.
    """

    def __init__(self, references: Sequence[Picture]) -> None:
        self._references = np.stack([_boxed_cloth(each) for each in references])

    def distance(self, picture: Picture) -> float:
        """Return the mean distance in CIELAB to all references: about 10 for another picture of the same thing."""
        return float(np.linalg.norm(self._references - _boxed_cloth(picture)[None], axis=-1).mean())


def colourfulness(picture: Picture) -> float:
    """Return the mean chroma in CIELAB of a picture's cloth: 0 is grey, a red dress has about 60."""
    mask = cloth_mask(picture)
    chroma = np.linalg.norm(to_lab(picture)[..., 1:], axis=-1)
    return float(chroma[mask].mean()) if mask.any() else 0.0


def chance(before: Sequence[float], after: Sequence[float]) -> float:
    """Return the probability that distances fall as far as these by chance (exact paired sign-flip test, one-sided).

    Args:
        before: Distances of pictures, at most 18.
        after: Distances of the pictures of the same seeds.
    """
    gains = np.array(before, np.float64) - np.array(after, np.float64)
    if not 1 <= len(gains) <= _MOST_PAIRS:
        raise ValueError(f"1 to {_MOST_PAIRS} pairs")
    signs = 1 - 2 * ((np.arange(2 ** len(gains))[:, None] >> np.arange(len(gains))) & 1)
    return float((signs @ gains >= gains.sum() - 1e-9).mean())


def _boxed_cloth(picture: Picture) -> Lab:
    mask = cloth_mask(picture)
    ys, xs = np.nonzero(mask)
    if len(ys) < _LEAST_PIXELS:
        return np.full((_BOX, _BOX, 3), _NOTHING)
    lab = to_lab(picture)
    lab[~mask] = _NOTHING
    cut = lab[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
    side = max(cut.shape[:2])
    square = np.full((side, side, 3), _NOTHING)
    y, x = (side - cut.shape[0]) // 2, (side - cut.shape[1]) // 2
    square[y : y + cut.shape[0], x : x + cut.shape[1]] = cut
    return np.asarray(cv2.resize(square, (_BOX, _BOX), interpolation=cv2.INTER_AREA), np.float64)
