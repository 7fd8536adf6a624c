"""Thumbnails: the first frame of an image, upright and in sRGB, as a small WebP. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import BinaryIO

from PIL import Image

from meshkit.images.colours import plain
from meshkit.images.decoding import inspect
from meshkit.images.limits import DEFAULT_LIMITS, EVERYTHING, MEMBER, ImageGrant, ImageInfo, ImageLimits

_QUALITY = 80
_MODES = frozenset({"RGB", "RGBA"})


def make_thumbnail(
    data: bytes | BinaryIO,
    into: BinaryIO,
    width: int,
    limits: ImageLimits = DEFAULT_LIMITS,
    *,
    path: str = MEMBER,
    grant: ImageGrant = EVERYTHING,
) -> ImageInfo:
    """Check an image, and write its first frame as a WebP; one that is smaller is not enlarged.

    Args:
        data: The file's bytes, or an open file.
        into: Where the WebP is written.
        width: Pixels that it is wide; and four times as high at most.
        limits: What is allowed.
        path: Path of the request's member, for the error.
        grant: What decoding may take.

    Raises:
        MeshError: As for `inspect`.
        MoreNeededError: Likewise.
    """
    return inspect(data, limits, path=path, grant=grant, on_first=_Reducer(into, width))


@dataclass(frozen=True, slots=True)
class _Reducer:
    """Takes the first frame, and writes it reduced."""

    into: BinaryIO
    width: int

    def wants(self, image: Image.Image) -> bool:  # noqa: ARG002 -- as FirstFrame has it
        return True

    def take(self, image: Image.Image, samples: str) -> None:
        picture, _ = plain(image, samples)
        if picture.mode not in _MODES:
            picture = picture.convert("RGB")
        picture.thumbnail((self.width, 4 * self.width), Image.Resampling.LANCZOS, reducing_gap=2.0)
        picture.save(self.into, "WEBP", quality=_QUALITY, method=4)
