"""Open pictures that a worker has taken in: judged, sRGB, eight bits a channel (`meshkit.images`)."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageOps

from modelkit.errors import ModelError

MAX_PIXELS = 64_000_000
MAX_SIDE = 16_384
# Sum of the quantisation table for brightness in annex K.1 of the JPEG standard, which is that of quality 50.
_SUM_AT_50 = 3688


def open_picture(path: Path) -> Image.Image:
    """Open the first frame of a picture, upright, as RGBA where it is transparent anywhere, else as RGB.

    Raises:
        ModelError: It is not a picture that can be read, or is larger than 64 megapixels.
    """
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ModelError("The image is larger than 64 megapixels.")
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
