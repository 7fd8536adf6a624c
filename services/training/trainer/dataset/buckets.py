"""Aspect buckets: the sizes that pictures are trained at, of about the model's own area, so that none is distorted.

Pictures of one size share a batch. The sizes are those of multiples of the model's patch whose area comes as near to
that of the model's square as the multiple allows, from 1:2 to 2:1.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Final, TypeAlias

Size: TypeAlias = tuple[int, int]
Box: TypeAlias = tuple[float, float, float, float]

_MOST_ASPECT: Final = 2.0
# Of two sizes for an aspect, the one with the smaller area must lose less shape than this for each share of area.
_AREA_WEIGHT: Final = 0.3


@lru_cache(maxsize=16)
def bucket_sizes(resolution: int, multiple: int, max_side: int) -> tuple[Size, ...]:
    """Return the sizes that pictures may be brought to, from the tallest to the widest.

    Args:
        resolution: Side of the square that the model is trained at, in pixels.
        multiple: Sides are multiples of it.
        max_side: Largest side that the model takes.

    Raises:
        ValueError: The square itself is none of them.
    """
    if resolution % multiple or not multiple <= resolution <= max_side:
        raise ValueError(f"{resolution} is no multiple of {multiple} from {multiple} to {max_side}")
    area = resolution * resolution
    found = {(resolution, resolution)}
    for width in range(multiple, min(max_side, 2 * resolution) + 1, multiple):
        # The nearest height below the model's area; a larger one would need more memory than the square does.
        height = min(max_side, area // width // multiple * multiple)
        if height and max(width / height, height / width) <= _MOST_ASPECT + 1e-9:
            found |= {(width, height), (height, width)}
    return tuple(sorted(found, key=lambda size: (size[0] / size[1], size)))


def bucket_for(size: Size, sizes: tuple[Size, ...]) -> Size:
    """Return the bucket that a picture of a size loses least in: by its shape first, then by its area."""
    aspect = math.log(size[0] / size[1])
    most = max(width * height for width, height in sizes)

    def loss(one: Size) -> tuple[float, Size]:
        shape = abs(math.log(one[0] / one[1]) - aspect)
        return shape + _AREA_WEIGHT * (1 - one[0] * one[1] / most), one

    return min(sizes, key=loss)


def crop_to(size: Size, bucket: Size) -> Box:
    """Return the largest centred box of a picture that has a bucket's shape: left, top, right, bottom."""
    scale = max(bucket[0] / size[0], bucket[1] / size[1])
    width, height = min(bucket[0] / scale, size[0]), min(bucket[1] / scale, size[1])
    left, top = (size[0] - width) / 2, (size[1] - height) / 2
    return left, top, left + width, top + height


def enlargement(box: Box, bucket: Size) -> float:
    """Return by how much what lies in a box is enlarged for a bucket; below 1 it is reduced."""
    return max(bucket[0] / (box[2] - box[0]), bucket[1] / (box[3] - box[1]))
