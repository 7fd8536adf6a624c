"""Find pictures that are sent twice: saved anew, at another size or quality, yet the same picture.

A picture's fingerprint is the sign of 256 differences of neighbours in brightness (dHash, Krawetz 2013, at 16 x 16) and
its colours in 8 x 8 fields. Both must be close: the signs alone take a garment in another colour for the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from PIL import Image

_SIDE: Final = 16
_FIELDS: Final = 8
# Copies as JPEG of quality 40, at three tenths of the size, differ in at most 14 bits and 1.8 levels; drawings of one
# garment in as few as 9 bits, but in 3.7 levels and more (three photos and 13 drawings were measured).
_MOST_BITS: Final = 14
_MOST_LEVELS: Final = 2.5
# A difference below this is noise of a plain area, whose sign says nothing.
_FLAT_LEVELS: Final = 2


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What a picture looks like, in 32 bytes and 192 levels.

    Attributes:
        signs: The differences' signs, 256 bits.
        colours: Levels of 8 x 8 fields, row by row, RGB.
        pixels: Pixels of the picture.
    """

    signs: int
    colours: bytes
    pixels: int


def fingerprint(image: Image.Image) -> Fingerprint:
    """Return the fingerprint of an RGB picture."""
    grey = image.convert("L").resize((_SIDE + 1, _SIDE), Image.Resampling.BILINEAR)
    levels = np.asarray(grey, np.int16)
    rises = (levels[:, 1:] - levels[:, :-1] > _FLAT_LEVELS).ravel()
    fields = image.resize((_FIELDS, _FIELDS), Image.Resampling.BILINEAR)
    signs = int.from_bytes(np.packbits(rises).tobytes(), "big")
    return Fingerprint(signs, fields.tobytes(), image.width * image.height)


def same_picture(one: Fingerprint, other: Fingerprint) -> bool:
    """Tell whether two pictures are one and the same."""
    if (one.signs ^ other.signs).bit_count() > _MOST_BITS:
        return False
    levels = [np.frombuffer(each.colours, np.uint8).astype(np.int16) for each in (one, other)]
    return float(np.abs(levels[0] - levels[1]).mean()) <= _MOST_LEVELS


def copies(prints: Sequence[Fingerprint]) -> dict[int, int]:
    """Return which pictures are copies of others: the place of each, and of the one that is kept for it.

    Of several copies, the one of the most pixels is kept, and of equally large ones the first.
    """
    kept: list[int] = []
    found: dict[int, int] = {}
    for place in sorted(range(len(prints)), key=lambda index: (-prints[index].pixels, index)):
        original = next((one for one in kept if same_picture(prints[one], prints[place])), None)
        if original is None:
            kept.append(place)
        else:
            found[place] = original
    return found
