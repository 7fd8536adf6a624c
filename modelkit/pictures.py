"""Open pictures that a worker has taken in: judged, sRGB, eight bits a channel (`meshkit.images`)."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageOps

from modelkit.errors import ModelError

MAX_PIXELS = 64_000_000
MAX_SIDE = 16_384


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
