"""Parts of a picture that are redrawn and put back: their boxes, their colour, their soft edges."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]

# Colours are matched over this share of a part's longer side: shading follows, what was redrawn stays.
_COLOUR_SHARE = 0.125


@dataclass(frozen=True, slots=True)
class PixelBox:
    """A part of a picture in whole pixels; right and bottom are exclusive."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def width(self) -> int:
        """Pixels across."""
        return self.right - self.left

    @property
    def height(self) -> int:
        """Pixels down."""
        return self.bottom - self.top

    @property
    def slices(self) -> tuple[slice, slice]:
        """The part of an array of rows and columns."""
        return slice(self.top, self.bottom), slice(self.left, self.right)

    def within(self, width: int, height: int) -> PixelBox:
        """Return what lies inside a picture of this size; it may be empty."""
        left, right = (min(max(edge, 0), width) for edge in (self.left, self.right))
        top, bottom = (min(max(edge, 0), height) for edge in (self.top, self.bottom))
        return PixelBox(left, top, right, bottom)


def grown(box: tuple[float, float, float, float], share: float) -> PixelBox:
    """Return a box that is larger by a share of its sides around its centre (0.5: half as large again)."""
    left, top, right, bottom = box
    across, down = (right - left) * share / 2, (bottom - top) * share / 2
    return PixelBox(round(left - across), round(top - down), round(right + across), round(bottom + down))


def match_colour(redrawn: Floats, original: Floats) -> Floats:
    """Give a redrawn part the colour and shading that it had, in CIELAB; its details stay.

    Args:
        redrawn: (height, width, 3), RGB, 0 to 1.
        original: The part as it was, of the same shape.

    Returns:
        RGB of the same shape, 0 to 1.
    """
    sigma = max(1.0, _COLOUR_SHARE * max(redrawn.shape[:2]))
    new, old = (cv2.cvtColor(part.clip(0, 1), cv2.COLOR_RGB2LAB) for part in (redrawn, original))
    new = new + cv2.GaussianBlur(old - new, (0, 0), sigma, borderType=cv2.BORDER_REFLECT)
    return np.asarray(cv2.cvtColor(new.astype(np.float32), cv2.COLOR_LAB2RGB).clip(0, 1), np.float32)


def match_histogram(redrawn: Floats, original: Floats) -> Floats:
    """Give a redrawn part the levels of each channel that it had: as many pixels at each level, in their own order.

    Args:
        redrawn: (height, width, 3), RGB, 0 to 1.
        original: The part as it was, of any size.

    Returns:
        RGB of the shape of `redrawn`, 0 to 1.
    """
    levels = np.arange(256, dtype=np.float32) / 255
    made = np.empty_like(redrawn)
    for channel in range(3):
        counts = [
            np.bincount((part[..., channel] * 255).round().clip(0, 255).astype(np.uint8).ravel(), minlength=256)
            for part in (redrawn, original)
        ]
        new, old = (np.cumsum(each) / each.sum() for each in counts)
        # The middle of a level's pixels decides, so that equal histograms change nothing.
        middle = new - counts[0] / counts[0].sum() / 2
        mapped = levels[np.searchsorted(old, middle, side="left").clip(0, 255)]
        made[..., channel] = np.interp(redrawn[..., channel], levels, mapped)
    return made


def feather(box: PixelBox, width: int, height: int, pixels: int, shape: Literal["ellipse", "box"]) -> Floats:
    """Return the weights with which a redrawn part covers a picture: 1 within, falling to 0 at the part's edge.

    Args:
        box: The part; it may reach past the picture. Along the picture's own edge a box has no soft edge.
        width: Width of the picture in pixels.
        height: Height of the picture in pixels.
        pixels: Width of the soft edge, at most a quarter of the part's shorter side; 0 is a hard edge.
        shape: Whether the whole box is covered, or the ellipse in it.

    Returns:
        (height, width) of what of the box lies within the picture, 0 to 1.
    """
    inside = box.within(width, height)
    rows = np.arange(inside.top, inside.bottom, dtype=np.float32)[:, None] + 0.5
    columns = np.arange(inside.left, inside.right, dtype=np.float32)[None, :] + 0.5
    if shape == "ellipse":
        x = (columns - (box.left + box.right) / 2) / (box.width / 2)
        y = (rows - (box.top + box.bottom) / 2) / (box.height / 2)
        depth = (1 - np.hypot(x, y)) * min(box.width, box.height) / 2
    else:
        far = np.float32(max(box.width, box.height))
        across = np.minimum(
            columns - box.left if box.left > 0 else far, box.right - columns if box.right < width else far
        )
        down = np.minimum(rows - box.top if box.top > 0 else far, box.bottom - rows if box.bottom < height else far)
        depth = np.minimum(across, down) + np.zeros((inside.height, inside.width), np.float32)
    reach = min(pixels, min(box.width, box.height) / 4)
    if reach < 1:
        return np.asarray(depth > 0, np.float32)
    share = (depth / reach).clip(0, 1)
    return np.asarray(share * share * (3 - 2 * share), np.float32)


class Blend:
    """A picture that redrawn parts are laid over; where several overlap they share the place by their weights.

    The order of the parts does not matter, so no part's edge cuts into its neighbour.

    Args:
        pixels: (height, width, 3), RGB.
    """

    def __init__(self, pixels: Pixels) -> None:
        self._pixels = pixels
        self._change = np.zeros(pixels.shape, np.float32)
        self._weight = np.zeros(pixels.shape[:2], np.float32)

    def lay(self, box: PixelBox, redrawn: Floats, weights: Floats) -> None:
        """Lay a part over the picture.

        Args:
            box: Where it lies, within the picture.
            redrawn: (height, width, 3), RGB, 0 to 1.
            weights: (height, width), 0 to 1.
        """
        original = self._pixels[box.slices].astype(np.float32)
        self._change[box.slices] += (redrawn * 255 - original) * weights[..., None]
        self._weight[box.slices] += weights

    def result(self) -> Pixels:
        """Return the picture; pixels that no part covers are those of before."""
        change = self._change / np.maximum(self._weight, 1)[..., None]
        return np.asarray((self._pixels + change).round().clip(0, 255), np.uint8)


def filled(pixels: Pixels) -> Pixels:
    """Return the colours of an RGBA picture, the nearest visible ones where it is transparent.

    The colours are spread by averaging over ever larger cells (push-pull, Gortler et al. 1996).
    """
    alpha: Floats = np.asarray(pixels[..., 3:] / 255, np.float32)
    colours = _spread(np.asarray(pixels[..., :3] * alpha, np.float32), alpha)
    seen = alpha > 0
    return np.where(seen, pixels[..., :3], (colours + 0.5).clip(0, 255).astype(np.uint8))


def _spread(weighted: Floats, weights: Floats) -> Floats:
    height, width = weights.shape[:2]
    own = np.asarray(weighted / np.maximum(weights, 1e-6), np.float32)
    if height * width == 1 or weights.min() > 0:
        return own
    pad = ((0, height % 2), (0, width % 2), (0, 0))

    def halved(values: Floats) -> Floats:
        even = np.pad(values, pad)
        cells = even.reshape(even.shape[0] // 2, 2, even.shape[1] // 2, 2, -1)
        return np.asarray(cells.sum((1, 3)), np.float32)

    below = _spread(halved(weighted), halved(weights))
    around = below.repeat(2, 0).repeat(2, 1)[:height, :width]
    return np.asarray(np.where(weights > 0, own, around), np.float32)
