"""Decode untrusted images. Only the child of `checks` does it, and tests.

The header decides on size before a single pixel is decoded; then the whole file must decode. Imports no torch.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from pathlib import Path
from typing import BinaryIO, ClassVar, Protocol

from PIL import AvifImagePlugin, Image, ImageFile, PngImagePlugin, TiffImagePlugin, UnidentifiedImageError

from meshkit.errors import MeshError, invalid, too_large
from meshkit.images import heif
from meshkit.images.limits import DEFAULT_LIMITS, EVERYTHING, MAX_PIXELS, MEMBER, ImageGrant, ImageInfo, ImageLimits

# Memory that decoding takes for each pixel of a frame: Pillow's own four bytes, and what the decoder of the format
# holds besides: canvases of animations, coefficients of progressive JPEGs, strips of TIFFs, planes of AVIFs and
# HEIFs.
_BYTES_PER_PIXEL = {"PNG": 12, "JPEG": 12, "WEBP": 20, "GIF": 16, "BMP": 8, "TIFF": 16, "AVIF": 24, "HEIF": 24}
_UNKNOWN_BYTES_PER_PIXEL = 24
# libheif has the whole file in memory, once or twice.
_HEIF_COPIES = 2
# Copies while an image is made for work: turned, with an alpha channel, in sRGB.
_WORK_BYTES_PER_PIXEL = 16
# Chunks of a PNG that change no pixel: a damaged one is left aside, as browsers do.
_SIDE_CHUNKS = frozenset({b"tEXt", b"zTXt", b"iTXt", b"tIME", b"pHYs", b"gAMA", b"cHRM", b"sRGB", b"iCCP", b"eXIf"})
# Profiles of displays and presses that are calibrated by tables unpack to some MiB.
_MAX_PROFILE_BYTES = 16 * 1024 * 1024


class _PngStream(PngImagePlugin.PngStream):
    """Pillow's reader of chunks, which leaves aside what is damaged and changes no pixel."""

    left_aside: ClassVar[bool] = False
    """Whether the file that was opened last has such a chunk: other readers refuse it."""

    def crc(self, cid: bytes, data: bytes) -> None:
        """Verify a checksum; that of a chunk which changes no pixel may be wrong."""
        try:
            super().crc(cid, data)
        except SyntaxError:
            if cid not in _SIDE_CHUNKS:
                raise
            _PngStream.left_aside = True

    def call(self, cid: bytes, pos: int, length: int) -> bytes:
        """Read a chunk."""
        if cid not in _SIDE_CHUNKS:
            return super().call(cid, pos, length)
        assert self.fp is not None, "the stream is open while it is read"
        data = ImageFile._safe_read(self.fp, length)  # noqa: SLF001 -- what every reader of a chunk reads by
        stream, self.fp = self.fp, io.BytesIO(data)
        try:
            super().call(cid, pos, length)
        except AttributeError:
            pass  # Pillow does not know this kind
        except (ValueError, SyntaxError, IndexError, UnicodeDecodeError):
            _PngStream.left_aside = True
        finally:
            self.fp = stream
        return data


# Process-wide settings of Pillow; set here because only this module opens untrusted images.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS
ImageFile.LOAD_TRUNCATED_IMAGES = False
PngImagePlugin.PngStream = _PngStream  # type: ignore[misc] # the class that Pillow reads PNGs by
PngImagePlugin.MAX_TEXT_CHUNK = _MAX_PROFILE_BYTES
AvifImagePlugin.DEFAULT_MAX_THREADS = 1


class FirstFrame(Protocol):
    """What takes the first frame of an image."""

    def wants(self, image: Image.Image) -> bool:
        """Tell from an image that is opened, not yet decoded, whether copies of it will be made."""
        ...

    def take(self, image: Image.Image, samples: str) -> None:
        """Take the decoded frame, and Pillow's name of its samples in the file."""
        ...


class MoreNeededError(Exception):
    """An image needs more than was granted.

    Attributes:
        bytes: The memory that it needs.
    """

    def __init__(self, needed: int) -> None:
        super().__init__(f"{needed} bytes are needed")
        self.bytes = needed


def left_aside() -> bool:
    """Tell whether the image that was opened last has a damaged part that changes no pixel."""
    return _PngStream.left_aside


def inspect(
    data: bytes | Path | BinaryIO,
    limits: ImageLimits = DEFAULT_LIMITS,
    *,
    path: str = MEMBER,
    grant: ImageGrant = EVERYTHING,
    on_first: FirstFrame | None = None,
) -> ImageInfo:
    """Check an image: format, size, frames, and that all of it decodes.

    Args:
        data: The file's bytes, or a local file, or an open one, which stays open at an undefined position.
        limits: What is allowed.
        path: Path of the request's member, for the error.
        grant: What decoding may take.
        on_first: Takes the first frame, before the others are decoded.

    Raises:
        MeshError: `INVALID` with what is wrong, `TOO_LARGE` for too many bytes.
        MoreNeededError: it needs more than is granted.
    """
    with _opened(data, limits, path, grant) as image:
        kind, (width, height) = format_of(image), image.size
        beside = _HEIF_COPIES * _size(data) if kind == heif.FORMAT else 0
        frames = _decode(image, limits, path, grant, on_first, beside)
        return ImageInfo(kind, width, height, frames)


def low_bytes(data: bytes | Path | BinaryIO, limits: ImageLimits, *, path: str = MEMBER) -> Image.Image:
    """Decode the lower bytes of a PNG's 16-bit colours, of which Pillow keeps the upper ones.

    Args:
        data: The file, as for `inspect`; it has been inspected.
        limits: What is allowed.
        path: Path of the request's member, for the error.
    """
    with _opened(data, limits, path) as image:
        # The unpacker of the other byte order takes the other byte.
        image.tile = [tile._replace(args="RGB;16L") for tile in image.tile]  # type: ignore[attr-defined] # as in _samples
        image.load()
        return image


def format_of(image: Image.Image) -> str:
    """Return the name of an image's format. A JPEG with further pictures in it, an MPO, is a JPEG to everyone."""
    return "JPEG" if image.format == "MPO" else str(image.format)


def _opened(
    data: bytes | Path | BinaryIO, limits: ImageLimits, path: str, grant: ImageGrant = EVERYTHING
) -> Image.Image:
    size = _size(data)
    if size > limits.max_bytes:
        raise too_large(f"{path} has {size} bytes, at most {limits.max_bytes} are allowed")
    source = io.BytesIO(data) if isinstance(data, bytes) else data
    _PngStream.left_aside = False
    is_heif = heif.is_heif(_head(source, heif.HEAD_BYTES))
    if is_heif:
        _prepare_heif(source, size, limits, path, grant)
    # Whose first bytes say HEIF is nothing else: the reader of AVIF would take some of them, and fail.
    formats = [one for one in limits.formats if (one == heif.FORMAT) == is_heif]
    try:
        with heif.held_to(_HEIF_COPIES * size) if is_heif else contextlib.nullcontext(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(source, formats=formats)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise _too_many_pixels(limits, path) from None
    except UnidentifiedImageError:
        if is_heif and formats:
            raise _broken(path) from None  # Pillow tells one that libheif cannot read like what is no image
        if _begins_as_tiff(source):
            text = (
                "is a TIFF of samples that are not read, such as 32-bit float RGB; save it with 8 or 16 bits a channel"
            )
            raise invalid(path, text, "image_format") from None
        allowed = ", ".join(limits.formats)
        raise invalid(path, f"is not an image of a known format ({allowed})", "image_format") from None
    except (OSError, ValueError, SyntaxError, EOFError, TypeError, KeyError, IndexError, OverflowError, RuntimeError):
        raise _broken(path) from None
    _check_size(image, limits, path)
    return image


def _prepare_heif(source: BinaryIO | Path, size: int, limits: ImageLimits, path: str, grant: ImageGrant) -> None:
    """Have Pillow open a HEIF picture, where that is allowed, there is what decodes it, and it is whole."""
    if heif.FORMAT not in limits.formats:
        return
    try:
        heif.register()
    except ImportError:
        text = "is a HEIC or HEIF picture, and the package pillow-heif, which decodes these, is not installed here"
        raise invalid(path, text, "image_format") from None
    with source.open("rb") if isinstance(source, Path) else contextlib.nullcontext(source) as file:
        if heif.ends_early(file, size):
            raise _broken(path)
        file.seek(0)
    if (needed := _HEIF_COPIES * size) > grant.bytes:
        raise MoreNeededError(needed)


def _begins_as_tiff(source: BinaryIO | Path) -> bool:
    """Whether Pillow would take a file for a TIFF; it tells one that it cannot read like what is no image."""
    return _head(source, 4) in TiffImagePlugin.PREFIXES


def _head(source: BinaryIO | Path, count: int) -> bytes:
    if isinstance(source, Path):
        with source.open("rb") as file:
            return file.read(count)
    source.seek(0)
    head = source.read(count)
    source.seek(0)
    return head


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


def _decode(  # noqa: PLR0917 -- what `inspect` is given, and what it knows of the file
    image: Image.Image,
    limits: ImageLimits,
    path: str,
    grant: ImageGrant,
    on_first: FirstFrame | None,
    beside: int,
) -> int:
    """Decode all frames and count them; `beside` is the memory that the file takes as it is.

    Asking Pillow for the number of frames would walk through a file of a million of them first, unless its header says
    it.
    """
    # Pillow's decoders raise nearly anything on hostile input; no caller needs its text.
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            if image.format in ("WEBP", "AVIF"):
                announced = int(getattr(image, "n_frames", 1))
                _check_frames(announced, announced * image.width * image.height, limits, path)
            frames, pixels = 1, image.width * image.height
            extra = _WORK_BYTES_PER_PIXEL if on_first is not None and on_first.wants(image) else 0
            while True:
                _check_frames(frames, pixels, limits, path)
                needed = image.width * image.height * (_bytes_per_pixel(image) + extra) + beside
                if needed > grant.bytes or pixels > grant.pixels:
                    raise MoreNeededError(needed)
                samples = _samples(image)
                with heif.held_to(needed) if image.format == heif.FORMAT else contextlib.nullcontext():
                    image.load()
                if on_first is not None and frames == 1:
                    on_first.take(image, samples)
                    extra = 0
                # What follows in an MPO or HEIF are other pictures, such as the same scene for the other eye.
                if image.format in ("MPO", heif.FORMAT) or not _next_frame(image, frames):
                    return frames
                frames += 1
                # A page of a TIFF may be larger than the first one.
                _check_size(image, limits, path)
                pixels += image.width * image.height
    except (MeshError, MoreNeededError, MemoryError, ImportError):
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise _too_many_pixels(limits, path) from None
    except Exception:
        raise _broken(path) from None


def _check_frames(frames: int, pixels: int, limits: ImageLimits, path: str) -> None:
    if frames > limits.max_frames:
        raise invalid(path, f"has more than {limits.max_frames} frames", "image_frames")
    if pixels > limits.max_total_pixels:
        raise invalid(path, f"has more than {limits.max_total_pixels} pixels in all", "image_size")


def _bytes_per_pixel(image: Image.Image) -> int:
    return _BYTES_PER_PIXEL.get(format_of(image), _UNKNOWN_BYTES_PER_PIXEL)


def _samples(image: Image.Image) -> str:
    """Return Pillow's name of the samples as the file has them, such as `L;4` or `RGB;16B`; empty where unknown."""
    given = image.tile[0].args if image.tile else ""  # type: ignore[attr-defined] # of what was opened from a file
    return given if isinstance(given, str) else ""


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
