"""Pictures for a model that draws at a few aspects alone: what is sent is padded, what comes is cut back.

So nothing that was sent is lost, and the result has exactly the size that was asked for. A model's own sizes are off
their aspects by up to three percent; such a difference is stretched away.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from modelkit.pictures import Fit, border_colour, framed, open_picture, over_white
from services.inference.providers.encoded import SentPicture, encoded
from services.inference.tasktypes.pictures import save_png

ASPECTS = ("1:1", "3:2", "2:3", "3:4", "4:3", "4:5", "5:4", "9:16", "16:9", "21:9")
SIDES = {"1K": 1024, "2K": 2048, "4K": 4096}
_STRETCH = 0.03
_MAX_REFERENCE_SIDE = 1536


def ratio_of(aspect: str) -> float:
    """Return an aspect's width over its height."""
    across, down = aspect.split(":")
    return int(across) / int(down)


def nearest_aspect(width: int, height: int) -> str:
    """Return the aspect that a picture of this size is nearest to."""
    return min(ASPECTS, key=lambda aspect: abs(math.log(ratio_of(aspect) * height / width)))


def image_size_for(width: int, height: int) -> str:
    """Return the smallest size whose longer side is as long as a picture's; the largest where none is."""
    longer = max(width, height)
    return next((name for name, side in SIDES.items() if side >= longer), "4K")


@dataclass(frozen=True, slots=True)
class Sheet:
    """A picture's place within one of an aspect that the model draws.

    Attributes:
        aspect: The aspect.
        left: Where the picture begins, as a share of the whole's width.
        top: The same, of its height.
        width: Share of the whole's width that it takes.
        height: Share of its height.
    """

    aspect: str
    left: float
    top: float
    width: float
    height: float

    @classmethod
    def around(cls, width: int, height: int, aspect: str | None = None) -> Sheet:
        """Return the place of a picture in the smallest whole of an aspect; of the nearest where None."""
        named = aspect or nearest_aspect(width, height)
        wider = ratio_of(named) * height / width  # how much wider than the picture the whole is
        if min(wider, 1 / wider) >= 1 - _STRETCH:
            return cls(named, 0.0, 0.0, 1.0, 1.0)
        # Whole pixels on both sides: a share that is rounded later shifts small pictures.
        beside, above = round(max(0.0, wider - 1) * width / 2), round(max(0.0, 1 / wider - 1) * height / 2)
        across, down = width + 2 * beside, height + 2 * above
        return cls(named, beside / across, above / down, width / across, height / down)

    @property
    def whole(self) -> bool:
        """Whether the picture fills it."""
        return self.width == self.height == 1.0

    def padded(self, image: Image.Image) -> Image.Image:
        """Return a picture with what is around it, in the colour of its border."""
        if self.whole:
            return image
        size = (round(image.width / self.width), round(image.height / self.height))
        sheet = Image.new("RGB", size, border_colour(image))
        sheet.paste(image, (round(self.left * size[0]), round(self.top * size[1])))
        return sheet

    def cut(self, image: Image.Image) -> Image.Image:
        """Return the picture's part of a whole that was drawn."""
        if self.whole:
            return image
        left, top = self.left * image.width, self.top * image.height
        box = (left, top, left + self.width * image.width, top + self.height * image.height)
        return image.crop(tuple(round(edge) for edge in box))  # type: ignore[arg-type] # four edges stay four


def base_of(path: Path, size: tuple[int, int], how: Fit) -> Image.Image:
    """Return the picture that is to be changed, at the size of its result."""
    return framed(over_white(open_picture(path)), *size, how)


def sent(image: Image.Image, sheet: Sheet, side: int) -> SentPicture:
    """Return a picture on its sheet as a file; not larger than what the model draws."""
    whole = sheet.padded(image)
    return encoded(whole, side)


def reference(path: Path) -> SentPicture:
    """Return a picture that is drawn upon."""
    return encoded(over_white(open_picture(path)), _MAX_REFERENCE_SIDE)


def brought(drawn: Path, target: Path, sheet: Sheet, size: tuple[int, int], alpha_of: Path | None = None) -> float:
    """Cut what was drawn to its picture, bring it to exactly its size, and write it as a PNG.

    Args:
        drawn: What the model drew.
        target: Where it is written.
        sheet: Where the picture lies in it.
        size: Its size.
        alpha_of: A picture whose transparency it is to have.

    Returns:
        How much larger its sides became than they were drawn; below 1 for smaller ones.
    """
    base = None if alpha_of is None else open_picture(alpha_of)
    see_through = base is not None and base.mode == "RGBA"
    if sheet.whole and not see_through and _is_it(drawn, size):
        drawn.rename(target)
        return 1.0
    image = sheet.cut(over_white(open_picture(drawn)))
    grown = max(size[0] / image.width, size[1] / image.height)
    image = framed(image, *size, "stretch")
    if base is not None and see_through:
        image.putalpha(base.getchannel("A").resize(size))
    save_png(image, target)
    return grown


def fitted(drawn: Path, target: Path, size: tuple[int, int], how: Fit) -> tuple[float, bool]:
    """Bring what was drawn without a picture to start from to exactly its size, and write it as a PNG.

    Returns:
        How much larger its sides became, and whether its aspect was another one.
    """
    if _is_it(drawn, size):
        drawn.rename(target)
        return 1.0, False
    image = over_white(open_picture(drawn))
    off = abs(math.log(image.width / image.height * size[1] / size[0]))
    same = off <= _STRETCH
    save_png(framed(image, *size, "stretch" if same else how), target)
    return min(size[0] / image.width, size[1] / image.height), not same


def _is_it(path: Path, size: tuple[int, int]) -> bool:
    """Whether a judged picture is what is asked for as it stands, so that it need not be written again."""
    with Image.open(path) as image:
        return image.format == "PNG" and image.mode == "RGB" and image.size == size and not image.has_transparency_data
