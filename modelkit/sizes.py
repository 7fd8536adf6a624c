"""Choose the size that a model draws for a picture of a requested size."""

from __future__ import annotations

import math
from dataclasses import dataclass

from modelkit.card import ModelCard

# Those of the largest picture that may be asked for, so that it may be worked on as well.
MAX_PIXELS = 8192 * 8192
# Weight of a lost share of area, against the same share lost by a crop: drawn small, a picture loses detail; a crop
# loses content at the border.
_AREA_WEIGHT = 0.3


@dataclass(frozen=True, slots=True)
class SizePlan:
    """The size to draw, and how the picture gets its own.

    Attributes:
        width: Width that the model draws.
        height: Height that the model draws.
        enlarge: The drawing is smaller than the picture, so an upscaler enlarges it.
    """

    width: int
    height: int
    enlarge: bool


def plan(card: ModelCard, width: int, height: int) -> SizePlan:
    """Choose the size to draw for a picture of `width` x `height` pixels.

    A size within the model's range is drawn as it is, rounded up to the model's multiple. Any other is drawn near the
    native area, at the aspect among the model's multiples that loses least.
    """
    if min(width, height) >= card.min_size and max(width, height) <= card.max_size:
        return SizePlan(_up(width, card.size_multiple), _up(height, card.size_multiple), enlarge=False)
    drawn_width, drawn_height = _fitting(card, width / height)
    return SizePlan(drawn_width, drawn_height, enlarge=drawn_width < width or drawn_height < height)


def cover(source: tuple[int, int], target: tuple[int, int]) -> tuple[float, float, float, float]:
    """Return the largest centred box of the source that has the target's aspect.

    Args:
        source: Width and height of the source.
        target: Width and height of the target.

    Returns:
        Left, top, right, bottom in source pixels.
    """
    scale = max(target[0] / source[0], target[1] / source[1])
    kept_width, kept_height = target[0] / scale, target[1] / scale
    left, top = max(0.0, (source[0] - kept_width) / 2), max(0.0, (source[1] - kept_height) / 2)
    return left, top, min(float(source[0]), left + kept_width), min(float(source[1]), top + kept_height)


def _up(side: int, multiple: int) -> int:
    return math.ceil(side / multiple) * multiple


def _fitting(card: ModelCard, aspect: float) -> tuple[int, int]:
    native = card.native_size**2
    best, least = (card.native_size, card.native_size), math.inf
    for width in range(card.size_multiple, card.max_size + 1, card.size_multiple):
        # For a width, only the two heights next to the requested aspect can be best.
        below = int(width / aspect) // card.size_multiple * card.size_multiple
        for height in (below, below + card.size_multiple):
            if not card.size_multiple <= height <= card.max_size or width * height > native:
                continue
            ratio = width / height / aspect
            lost = 1 - min(ratio, 1 / ratio) + _AREA_WEIGHT * (1 - width * height / native)
            if lost < least - 1e-9:
                best, least = (width, height), lost
    return best
