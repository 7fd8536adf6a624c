"""The background of a picture: its colour, and how it is moved to another colour while the subject stays as it is.

Colours are moved in CIELAB, where equal steps look equal. Dark parts (shadows on the ground) keep theirs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from modelkit import mattes

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]
Lab = tuple[float, float, float]

_SAMPLE_SIDE = 768
_BAND_PIXELS = 1 << 20
# Less background than this share of a picture has no colour that could be told.
_LEAST_SHARE = 0.001
# A blur of more pixels than this is done on a reduced mask: it looks the same, and its cost stays bounded.
_BLUR_SIGMA = 4.0


@dataclass(frozen=True, slots=True)
class BackgroundChange:
    """How a background is changed.

    Attributes:
        strategy: `color_shift` moves its colours; `replace` makes it plain.
        shadow: Brightness, 0 to 255, below which a colour stays.
        light: Brightness from which a colour moves in full.
        expansion: By what share of the longer side the subject's mask grows first.
        blur: Sigma, in pixels, of the edge between what is changed and what is not, which falls off inwards; 0 for a
            hard edge.
    """

    strategy: Literal["color_shift", "replace"] = "color_shift"
    shadow: int = 150
    light: int = 220
    expansion: float = 0.005
    blur: float = 20.0


def background_colour(pixels: Pixels, subject: Floats | None, above: int = 0) -> Lab | None:
    """Return the colour of a background: the median in CIELAB of what is not the subject.

    Args:
        pixels: (height, width, 3) sRGB.
        subject: (height, width), opacity of the subject; None where there is none.
        above: Brightness below which pixels do not count, where enough others are left.

    Returns:
        Lightness 0 to 100, a and b; None where next to nothing is background.
    """
    height, width = pixels.shape[:2]
    scale = min(1.0, _SAMPLE_SIDE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8)
    free = np.ones(small.shape[:2], bool)
    if subject is not None:
        free = cv2.resize(subject, size, interpolation=cv2.INTER_AREA) < 0.01
    if free.mean() < _LEAST_SHARE:
        return None
    bright = free & (_brightness(small) >= above)
    chosen = bright if bright.mean() >= _LEAST_SHARE else free
    middle = np.median(_lab(small)[chosen], axis=0)
    return float(middle[0]), float(middle[1]), float(middle[2])


def rgb_of(colour: Lab) -> tuple[int, int, int]:
    """Return a colour in sRGB, 0 to 255."""
    shown = cv2.cvtColor(np.array([[colour]], np.float32), cv2.COLOR_LAB2RGB)[0, 0]
    red, green, blue = (round(float(level) * 255) for level in np.clip(shown, 0, 1))
    return red, green, blue


def change_background(pixels: Pixels, subject: Floats, colour: Lab, change: BackgroundChange) -> Pixels:
    """Move a picture's background to a colour.

    Args:
        pixels: (height, width, 3) sRGB.
        subject: (height, width), opacity of the subject; its pixels from a half on are unchanged.
        colour: The colour to move to.
        change: How.

    Returns:
        A picture of the same size.
    """
    own = background_colour(pixels, _expanded(subject, change.expansion), change.shadow)
    out = pixels.copy()
    if own is None:  # the subject and its margin fill the picture
        return out
    shift = np.array(colour, np.float32) - np.array(own, np.float32)
    target = np.array(colour, np.float32)
    weight = _weight(subject, change)
    for rows in _bands(*subject.shape):
        share = weight[rows]
        touched = share > 0
        if not touched.any():
            continue
        lab = _lab(pixels[rows])
        moved = lab + _ramp(_brightness(pixels[rows]), change.shadow, change.light)[..., None] * shift
        if change.strategy == "replace":
            # The colour's own shading shows through the blurred edge, the old colour does not.
            moved = moved + (target - moved) * share[..., None]
            share = np.clip(1 - 2 * subject[rows], 0, 1)
        made = lab + (moved - lab) * share[..., None]
        colours = cv2.cvtColor(made.astype(np.float32), cv2.COLOR_LAB2RGB)
        out[rows][touched] = (np.clip(colours[touched], 0, 1) * 255 + 0.5).astype(np.uint8)
    return out


def _weight(subject: Floats, change: BackgroundChange) -> Floats:
    """Return how far each pixel is changed: 0 on the subject, 1 on the background, between them a blurred edge.

    The blur falls off within the margin by which the mask has grown: outside of it, the old background would glow.
    """
    outside = 1 - _expanded(subject, change.expansion)
    if change.blur > 0:
        outside = np.minimum(2 * _blurred(outside, change.blur), 1)
    # The blur reaches into the subject, whose own pixels stay.
    return np.asarray(outside * np.clip(1 - 2 * subject, 0, 1), np.float32)


def _expanded(subject: Floats, share: float) -> Floats:
    solid = (subject > 0.5).astype(np.float32)
    return mattes.grow(solid, round(share * max(subject.shape)))


def _blurred(mask: Floats, sigma: float) -> Floats:
    height, width = mask.shape
    scale = min(1.0, _BLUR_SIGMA / sigma)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = cv2.resize(mask, size, interpolation=cv2.INTER_AREA) if scale < 1 else mask
    # A side that rounds has its own scale.
    across, down = sigma * size[0] / width, sigma * size[1] / height
    soft = cv2.GaussianBlur(small, (0, 0), max(across, 0.01), sigmaY=max(down, 0.01), borderType=cv2.BORDER_REPLICATE)
    return np.asarray(cv2.resize(soft, (width, height), interpolation=cv2.INTER_LINEAR), np.float32)


def _ramp(brightness: Floats, shadow: int, light: int) -> Floats:
    """Return 0 below `shadow`, 1 from `light` on, and a straight line between; a step where both are equal."""
    if shadow >= light:
        return (brightness >= light).astype(np.float32)
    return np.clip((brightness - shadow) / (light - shadow), 0, 1)


def _brightness(pixels: Pixels) -> Floats:
    return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), np.float32)


def _lab(pixels: Pixels) -> Floats:
    return np.asarray(cv2.cvtColor(np.asarray(pixels, np.float32) / np.float32(255), cv2.COLOR_RGB2LAB), np.float32)


def _bands(height: int, width: int) -> Iterator[slice]:
    step = max(1, _BAND_PIXELS // max(1, width))
    for top in range(0, height, step):
        yield slice(top, min(height, top + step))
