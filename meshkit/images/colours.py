"""Make images fit for work: upright, sRGB, eight bits a channel, transparent only where they are.

Models and framing reckon with plain pixels. A file may hold others: another colour space with a profile, sixteen bits,
numbers with a fraction, a colour that stands for transparency. All of it is settled here, once. Imports no torch.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import BinaryIO

from PIL import ExifTags, Image, ImageChops, ImageCms

from meshkit.images.decoding import format_of, inspect, left_aside, low_bytes
from meshkit.images.limits import DEFAULT_LIMITS, EVERYTHING, MEMBER, ImageGrant, ImageInfo, ImageLimits

# Formats that everything reads, and modes in them that mean what they say.
_PLAIN_FORMATS = frozenset({"PNG", "JPEG", "WEBP"})
_PLAIN_MODES = frozenset({"RGB", "RGBA", "L", "LA", "P"})
_GREY_FACTORS = {"L;2": 85, "L;4": 17}  # how Pillow spreads samples of two and four bits over eight
_DEEP = ("I", "F")
# Numbers with a fraction reach from 0 to 1, and lights somewhat beyond it; other numbers are levels.
_MOST_OF_UNIT_RANGE = 8.0
_OPAQUE = 255
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_PROFILE_SPACES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK", "Lab": "LAB"}


@dataclass(frozen=True, slots=True)
class MadeImage:
    """An image that passed, and what was made of it.

    Attributes:
        info: Facts about the file.
        made: Whether an image was written; otherwise the file is fit as it stands.
        note: What was left aside; empty for nothing.
    """

    info: ImageInfo
    made: bool
    note: str


def make_for_work(
    data: bytes | BinaryIO,
    into: BinaryIO,
    limits: ImageLimits = DEFAULT_LIMITS,
    *,
    path: str = MEMBER,
    grant: ImageGrant = EVERYTHING,
) -> MadeImage:
    """Check an image, and write its first frame as a plain PNG unless it is fit for work as it stands.

    Args:
        data: The file's bytes, or an open file.
        into: Where the PNG is written.
        limits: What is allowed.
        path: Path of the request's member, for the error.
        grant: What decoding may take.

    Raises:
        MeshError: As for `inspect`.
        MoreNeededError: Likewise.
    """
    maker = _Maker(data, into, limits, path)
    info = inspect(data, limits, path=path, grant=grant, on_first=maker)
    return MadeImage(info, maker.made, maker.note)


@dataclass(slots=True)
class _Maker:
    """Takes the first frame, and writes what is made of it."""

    data: bytes | BinaryIO
    into: BinaryIO
    limits: ImageLimits
    path: str
    made: bool = False
    note: str = ""

    def wants(self, image: Image.Image) -> bool:
        return not _is_plain(image)

    def take(self, image: Image.Image, samples: str) -> None:
        if _is_plain(image):
            return
        low = None
        if samples == "RGB;16B" and "transparency" in image.info:
            low = low_bytes(self.data, self.limits, path=self.path)
        picture, self.note = plain(image, samples, low)
        picture.save(self.into, "PNG", compress_level=1)
        self.made = True


def plain(image: Image.Image, samples: str = "", low: Image.Image | None = None) -> tuple[Image.Image, str]:
    """Return an image upright, as RGB, or as RGBA where it is transparent anywhere; and a note of what was left aside.

    Args:
        image: The image, decoded.
        samples: Pillow's name of the samples as the file has them, such as `L;4`; empty where unknown.
        low: The lower bytes of 16-bit colours, where they are needed.
    """
    alpha = _alpha(image, samples, low)
    picture, note = _in_srgb(_without_alpha(_eight_bits(image)), image.info.get("icc_profile"))
    if alpha is not None and alpha.getextrema()[0] != _OPAQUE:
        picture.putalpha(alpha)
    turn = _TURNS.get(_orientation(image))
    upright = picture if turn is None else picture.transpose(turn)
    upright.info.clear()  # a profile or an orientation would count a second time
    return upright, note


def _orientation(image: Image.Image) -> int:
    """Return how the picture is turned, as EXIF numbers it; upright where its EXIF cannot be read."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:
        return 1


def _has_readable_exif(image: Image.Image) -> bool:
    """Tell whether others who read its EXIF will not fail. Pillow's own reading is kept, so it tells the first only."""
    try:
        Image.Exif().load(image.info.get("exif") or b"")
    except Exception:
        return False
    return True


def _is_plain(image: Image.Image) -> bool:
    return (
        format_of(image) in _PLAIN_FORMATS
        and image.mode in _PLAIN_MODES
        and not image.info.get("icc_profile")
        and (image.mode == "P" or "transparency" not in image.info)
        and not left_aside()
        and _has_readable_exif(image)
    )


def _alpha(image: Image.Image, samples: str, low: Image.Image | None) -> Image.Image | None:
    key = image.info.get("transparency")
    if isinstance(key, int) and image.mode == "I;16":
        # A level in two bytes, the lower first, reads as a grey with alpha.
        pairs = Image.frombytes("LA", image.size, image.tobytes())
        return _unlike((pairs.getchannel("L"), key & 0xFF), (pairs.getchannel("A"), key >> 8))
    if isinstance(key, int) and image.mode == "L":
        return _unlike((image, key * _GREY_FACTORS.get(samples, 1)))
    if isinstance(key, tuple) and image.mode == "RGB" and low is not None:
        upper = zip(image.split(), (level >> 8 for level in key), strict=True)
        lower = zip(low.split(), (level & 0xFF for level in key), strict=True)
        return _unlike(*upper, *lower)
    return image.convert("RGBA").getchannel("A") if image.has_transparency_data else None


def _unlike(*channels: tuple[Image.Image, int]) -> Image.Image:
    """Return an alpha channel that is opaque wherever a channel differs from its level."""
    alpha: Image.Image | None = None
    for channel, level in channels:
        differs = channel.point([0 if value == level else _OPAQUE for value in range(256)])
        alpha = differs if alpha is None else ImageChops.lighter(alpha, differs)
    assert alpha is not None, "a key names at least one channel"
    return alpha


def _eight_bits(image: Image.Image) -> Image.Image:
    """Return an image whose levels reach from 0 to 255: Pillow would cut deeper ones off there."""
    if image.mode.startswith("I;16"):
        return _scaled(image.convert("I"), 255 / 65_535)
    if image.mode not in _DEEP:
        return image
    highest = max(float(level) for level in image.getextrema() if isinstance(level, (int, float)))
    if image.mode == "F" and highest <= _MOST_OF_UNIT_RANGE:
        return _scaled(image, 255.0)
    if highest <= _OPAQUE:
        return _scaled(image, 1.0)
    return _scaled(image, 255 / 65_535 if highest <= 65_535 else 255 / highest if math.isfinite(highest) else 1.0)


def _scaled(image: Image.Image, factor: float) -> Image.Image:
    # A half is added because the conversion to whole levels cuts.
    return image.convert("F").point(lambda level: level * factor + 0.5).convert("L")


def _without_alpha(image: Image.Image) -> Image.Image:
    if image.mode in ("L", "LA", "1"):
        return image.convert("L")
    if image.mode in ("RGB", "CMYK", "LAB"):
        return image
    # Premultiplied colours are divided by their alpha first.
    return (image.convert("RGBA") if image.mode in ("P", "PA", "RGBa") else image).convert("RGB")


def _in_srgb(image: Image.Image, profile: bytes | None) -> tuple[Image.Image, str]:
    """Return an image as sRGB; a profile that is broken, or of another kind of colours, is left aside with a note."""
    srgb = ImageCms.createProfile("sRGB")
    note = ""
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            space = _PROFILE_SPACES.get(source.profile.xcolor_space.strip())
            fitting = image.convert("RGB") if (image.mode, space) == ("L", "RGB") else image
            if fitting.mode == space:
                made = ImageCms.profileToProfile(fitting, source, srgb, outputMode="RGB")
                if made is not None:
                    return made, ""
            note = "colour_profile_of_another_space"
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
            note = "colour_profile_broken"
    if image.mode == "LAB":
        made = ImageCms.profileToProfile(image, ImageCms.createProfile("LAB"), srgb, outputMode="RGB")
        assert made is not None, "only a change in place returns nothing"
        return made, note
    bare = image.convert("RGB")
    return (bare.copy() if bare is image else bare), note
