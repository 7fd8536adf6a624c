"""Check untrusted images. The only place that does.

The header decides on size before a single pixel is decoded; then the whole file must decode. Imports no torch.
"""

from __future__ import annotations

import binascii
import io
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from PIL import Image, ImageFile, UnidentifiedImageError

from meshkit.errors import MeshError, invalid, too_large

MAX_PIXELS = 64_000_000
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
_DATA_URL = re.compile(r"data:(?P<type>[a-z0-9.+/-]*)(?P<options>(?:;[a-z0-9=._-]+)*?);base64,", re.IGNORECASE)
_MAX_FIELD = "image"

# Process-wide settings of Pillow; set here because only this module reads untrusted images.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS
ImageFile.LOAD_TRUNCATED_IMAGES = False


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
    max_total_pixels: int = 4 * MAX_PIXELS
    formats: tuple[str, ...] = FORMATS


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


def decode_data(text: str, *, path: str = _MAX_FIELD, max_bytes: int = DEFAULT_LIMITS.max_bytes) -> bytes:
    """Decode base64, plain or as a data URL, strictly.

    Args:
        text: The text.
        path: Path of the request's member, for the error.
        max_bytes: Bytes at most.

    Raises:
        MeshError: `INVALID` for broken base64 or an empty text, `TOO_LARGE` for too many bytes.
    """
    match = _DATA_URL.match(text)
    if match is None and text[:5].lower() == "data:":
        raise invalid(path, "must be a data URL with base64", "data_url")
    body = text[match.end() :] if match else text
    # Encoders insert line breaks; any other stray character is an error.
    body = body.replace("\r", "").replace("\n", "")
    if len(body) // 4 * 3 > max_bytes + 3:
        raise too_large(f"{path} has more than {max_bytes} bytes")
    if len(body) % 4:  # the decoder accepts padding that is too long
        raise invalid(path, "is not valid base64", "base64")
    try:
        data = binascii.a2b_base64(body, strict_mode=True)
    except ValueError:  # covers binascii.Error, and what non-ASCII text raises
        raise invalid(path, "is not valid base64", "base64") from None
    if not data:
        raise invalid(path, "must not be empty", "base64")
    if len(data) > max_bytes:
        raise too_large(f"{path} has more than {max_bytes} bytes")
    return data


def inspect(
    data: bytes | Path | BinaryIO, limits: ImageLimits = DEFAULT_LIMITS, *, path: str = _MAX_FIELD
) -> ImageInfo:
    """Check an image: format, size, frames, and that all of it decodes.

    Args:
        data: The file's bytes, or a local file, or an open one, which stays open at an undefined position.
        limits: What is allowed.
        path: Path of the request's member, for the error.

    Raises:
        MeshError: `INVALID` with what is wrong, `TOO_LARGE` for too many bytes.
    """
    with _opened(data, limits, path) as image:
        kind, width, height = str(image.format), image.width, image.height
        return ImageInfo(kind, width, height, _decode(image, limits, path))


def _opened(data: bytes | Path | BinaryIO, limits: ImageLimits, path: str) -> Image.Image:
    size = _size(data)
    if size > limits.max_bytes:
        raise too_large(f"{path} has {size} bytes, at most {limits.max_bytes} are allowed")
    source = io.BytesIO(data) if isinstance(data, bytes) else data
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(source, formats=limits.formats)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise _too_many_pixels(limits, path) from None
    except UnidentifiedImageError:
        allowed = ", ".join(limits.formats)
        raise invalid(path, f"is not an image of a known format ({allowed})", "image_format") from None
    except (OSError, ValueError, SyntaxError, EOFError, TypeError, KeyError, IndexError, OverflowError, MemoryError):
        raise _broken(path) from None
    _check_size(image, limits, path)
    return image


def _size(data: bytes | Path | BinaryIO) -> int:
    if isinstance(data, bytes):
        return len(data)
    if isinstance(data, Path):
        return data.stat().st_size
    size = data.seek(0, io.SEEK_END)
    data.seek(0)
    return size


def _check_size(image: Image.Image, limits: ImageLimits, path: str) -> None:
    if image.width < 1 or image.height < 1:
        raise invalid(path, "has no pixels", "image_size")
    if max(image.size) > limits.max_side:
        raise invalid(path, f"has a side of {max(image.size)}, at most {limits.max_side} are allowed", "image_size")
    if image.width * image.height > limits.max_pixels:
        raise _too_many_pixels(limits, path)


def _decode(image: Image.Image, limits: ImageLimits, path: str) -> int:
    """Decode all frames and count them.

    Asking Pillow for the number of frames would walk through a file of a million of them first.
    """
    # Pillow's decoders raise nearly anything on hostile input; no caller needs its text.
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image.load()
            frames, pixels = 1, image.width * image.height
            while _next_frame(image, frames):
                frames += 1
                if frames > limits.max_frames:
                    raise invalid(path, f"has more than {limits.max_frames} frames", "image_frames")
                # A page of a TIFF may be larger than the first one.
                _check_size(image, limits, path)
                pixels += image.width * image.height
                if pixels > limits.max_total_pixels:
                    raise invalid(path, f"has more than {limits.max_total_pixels} pixels in all", "image_size")
                image.load()
            return frames
    except MeshError:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise _too_many_pixels(limits, path) from None
    except Exception:
        raise _broken(path) from None


def _next_frame(image: Image.Image, number: int) -> bool:
    try:
        image.seek(number)
    except EOFError:
        return False
    return True


def _too_many_pixels(limits: ImageLimits, path: str) -> MeshError:
    return invalid(path, f"has more than {limits.max_pixels} pixels", "image_size")


def _broken(path: str) -> MeshError:
    return invalid(path, "is damaged: it cannot be decoded", "image_broken")
