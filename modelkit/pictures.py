"""Open pictures that a worker has taken in: judged, sRGB, eight bits a channel (`meshkit.images`)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypeAlias

from PIL import Image, ImageOps

from modelkit import sizes
from modelkit.errors import ModelError
from modelkit.sizes import MAX_PIXELS

# Sum of the quantisation table for brightness in annex K.1 of the JPEG standard, which is that of quality 50.
_SUM_AT_50 = 3688


def open_picture(path: Path) -> Image.Image:
    """Open the first frame of a picture, upright, as RGBA where it is transparent anywhere, else as RGB.

    Raises:
        ModelError: It is not a picture that can be read, or has more than 8192 x 8192 pixels.
    """
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ModelError(f"The image has more than {MAX_PIXELS:,} pixels.")
            upright = ImageOps.exif_transpose(image)
            if upright.mode in ("I", "F") or upright.mode.startswith("I;16"):
                # Pillow would clip 16-bit grey levels at 255 instead of scaling them.
                upright = upright.convert("F").point(lambda level: level / 257).convert("L")
            if upright.has_transparency_data:
                rgba = upright.convert("RGBA")
                lowest, _ = rgba.getchannel("A").getextrema()
                return rgba if isinstance(lowest, int) and lowest < 255 else rgba.convert("RGB")
            return upright.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ModelError("The image could not be read.") from error


def over_white(image: Image.Image) -> Image.Image:
    """Return a picture as RGB, over white where it is transparent: what lies hidden below must not show."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")


def jpeg_quality(path: Path) -> int | None:
    """Return the quality at which a JPEG was compressed, 1 to 100; None where the file is none.

    It is that of libjpeg's scale, from the table that the file was quantised with; other encoders come close.
    """
    try:
        with Image.open(path) as image:
            tables = getattr(image, "quantization", None) if image.format in ("JPEG", "MPO") else None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    if not tables:
        return None
    percent = 100 * sum(tables[min(tables)]) / _SUM_AT_50
    return int(min(100, max(1, round(100 - percent / 2 if percent <= 100 else 5000 / percent))))


def fit(image: Image.Image, width: int, height: int) -> Image.Image:
    """Resize to exactly `width` x `height`; cut evenly on both sides to fit the aspect."""
    image = image.convert("RGB")
    if image.size == (width, height):
        return image
    box = sizes.cover(image.size, (width, height))
    return image.resize((width, height), Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)


Fit: TypeAlias = Literal["contain", "cover", "stretch"]


def framed(image: Image.Image, width: int, height: int, how: Fit, ground: tuple[int, ...] | None = None) -> Image.Image:
    """Bring a picture to exactly `width` x `height`.

    Args:
        image: RGB, or L for a mask.
        width: Width in pixels.
        height: Height in pixels.
        how: `contain` keeps all of it and fills the rest, `cover` cuts evenly on both sides, `stretch` distorts.
        ground: Levels that `contain` fills with; the median of the picture's border where None.
    """
    size = (width, height)
    if image.size == size:
        return image
    if how == "stretch":
        return image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    if how == "cover":
        box = sizes.cover(image.size, size)
        return image.resize(size, Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)
    scale = min(width / image.width, height / image.height)
    inner = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    small = image.resize(inner, Image.Resampling.LANCZOS, reducing_gap=3.0)
    if inner == size:
        return small
    canvas = Image.new(image.mode, size, ground if ground is not None else border_colour(small))
    canvas.paste(small, ((width - inner[0]) // 2, (height - inner[1]) // 2))
    return canvas


def border_colour(image: Image.Image) -> tuple[int, ...]:
    """Return the median of a picture's outermost pixels, level by level."""
    w, h = image.size
    edges = [(0, 0, w, 1), (0, h - 1, w, h), (0, 0, 1, h), (w - 1, 0, w, h)]
    strips = [image.crop(box) for box in edges]
    levels: list[int] = []
    for band in range(len(image.getbands())):
        counts = [sum(column) for column in zip(*(strip.getchannel(band).histogram() for strip in strips), strict=True)]
        half, seen, level = sum(counts) / 2, 0, 0
        for level, count in enumerate(counts):  # noqa: B007 -- the level at which the loop ends
            seen += count
            if seen >= half:
                break
        levels.append(level)
    return tuple(levels)
