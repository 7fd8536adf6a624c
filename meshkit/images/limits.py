"""What an image may be, and what was found about it. Imports no Pillow."""

from __future__ import annotations

from dataclasses import dataclass

# Those of the largest result that a task may have: what one step makes, the next one takes.
MAX_PIXELS = 8192 * 8192
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF")
MEMBER = "image"
"""What errors call the image where no member of a request is named."""


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """Limits of an image.

    Attributes:
        max_bytes: Bytes of the file.
        max_pixels: Pixels of one frame.
        max_side: Pixels of one side.
        max_frames: Frames of an animation, pages of a TIFF.
        max_total_pixels: Pixels of all frames together.
        formats: Names of formats as Pillow calls them.
    """

    max_bytes: int = 32 * 1024 * 1024
    max_pixels: int = MAX_PIXELS
    max_side: int = 32_768
    max_frames: int = 200
    max_total_pixels: int = 2 * MAX_PIXELS
    formats: tuple[str, ...] = FORMATS


@dataclass(frozen=True, slots=True)
class ImageGrant:
    """What the decoding of one image may take.

    Attributes:
        bytes: Memory.
        pixels: Pixels of all frames together.
    """

    bytes: int
    pixels: int


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """Facts about an image.

    Attributes:
        format: Name of its format as Pillow calls it.
        width: Pixels.
        height: Pixels.
        frames: Frames or pages; 1 for a still picture.
    """

    format: str
    width: int
    height: int
    frames: int

    @property
    def content_type(self) -> str:
        """Its media type."""
        return f"image/{self.format.lower()}"


DEFAULT_LIMITS = ImageLimits()
"""Limits of images that callers send."""

EVERYTHING = ImageGrant(1 << 62, 1 << 62)
"""A grant that nothing passes."""
