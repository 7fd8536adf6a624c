"""Pictures as requests to providers carry them: small enough for their limits, and as good as these allow."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

_MAX_PNG_BYTES = 3_000_000
_QUALITY = 95


@dataclass(frozen=True, slots=True)
class SentPicture:
    """A picture that a request holds.

    Attributes:
        data: The file.
        content_type: Its media type.
    """

    data: bytes
    content_type: str


def encoded(image: Image.Image, side: int) -> SentPicture:
    """Return a picture as a file: a PNG, or a JPEG where that would be large.

    Args:
        image: RGB.
        side: Pixels that its longer side may have.
    """
    if max(image.size) > side:
        scale = side / max(image.size)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = image.resize(size, reducing_gap=3.0)
    held = io.BytesIO()
    # A photo of more pixels never fits.
    if image.width * image.height <= 4 * _MAX_PNG_BYTES:
        image.save(held, "PNG", compress_level=1)
        if held.tell() <= _MAX_PNG_BYTES:
            return SentPicture(held.getvalue(), "image/png")
    held = io.BytesIO()
    image.save(held, "JPEG", quality=_QUALITY, subsampling=0)
    return SentPicture(held.getvalue(), "image/jpeg")
