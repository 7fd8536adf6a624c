"""Mattes: soft masks that follow a picture's edges, and the colours of a subject without its background.

A network's mask is far smaller than the picture. `refine` brings it to the picture's size by the guided filter (He,
Sun, Tang, "Guided Image Filtering", ECCV 2010), whose coefficients are computed on a reduced picture and applied to the
whole one ("Fast Guided Filter", He and Sun, arXiv:1505.00996). `foreground_colours` removes the fringe of the old
background from the edge by blur fusion (Forte, "Approximate Fast Foreground Colour Estimation", ICIP 2021). Both go
through the picture in bands of rows, so that their memory does not grow with its height.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]

_WORK_SIDE = 1024
_BAND_PIXELS = 1 << 20
# Of the work picture's longer side: a network's mask of 320 pixels is unsure of its edge by about two of its pixels.
_REACH = 1 / 128
# Variance of the guide (colours in 0 to 1) below which the filter smooths instead of following the picture.
_SMOOTHING = 1e-3
# Opacities this close to 0 and 1 are 0 and 1: what the filter leaks into plain areas would show as a veil.
_CLEAR, _SOLID = 0.08, 0.92
# Between these a network says neither; it does so in plain parts of a subject (a visor, a sleeve), which are solid.
_DOUBT = (0.2, 0.65)
# Radii of the two passes of blur fusion, from the paper: the first finds colours far from the edge.
_RADII = (90, 6)


def refine(mask: Floats, pixels: Pixels) -> Floats:
    """Fit a coarse mask to the edges of a picture.

    Args:
        mask: (rows, columns) of any size and the picture's extent, opacity 0 to 1.
        pixels: (height, width, 3) sRGB.

    Returns:
        (height, width), opacity 0 to 1, exactly 0 and 1 where the mask is sure.
    """
    height, width = pixels.shape[:2]
    scale = min(1.0, _WORK_SIDE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    guide = _grey_levels(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA) if scale < 1 else pixels)
    sharp = np.clip((mask - _DOUBT[0]) / (_DOUBT[1] - _DOUBT[0]), 0, 1)
    coarse = cv2.resize(sharp, size, interpolation=cv2.INTER_LINEAR)
    radius = max(1, round(max(size) * _REACH))
    slopes, offset = _coefficients(guide, coarse, radius)
    unsure = _unsure(coarse, 2 * radius)
    out = np.empty((height, width), np.float32)
    for rows in _bands(height, width):
        place = _sampling(rows, height, width, size)
        fitted = _sampled(offset, place)
        colours = _grey_levels(pixels[rows])
        for channel in range(3):
            fitted += _sampled(slopes[..., channel], place) * colours[..., channel]
        steep = np.clip((fitted - _CLEAR) / (_SOLID - _CLEAR), 0, 1)
        share = _sampled(unsure, place)
        out[rows] = steep * share + (_sampled(coarse, place) > 0.5) * (1 - share)
    return out


def foreground_colours(pixels: Pixels, alpha: Floats) -> Pixels:
    """Return the picture with the subject's own colours where it is half transparent, and as it is elsewhere.

    Args:
        pixels: (height, width, 3) sRGB.
        alpha: (height, width), opacity of the subject, 0 to 1.
    """
    out = pixels.copy()
    height, width = alpha.shape
    halo = sum(_RADII)
    for rows in _bands(height, width, least=halo):
        mixed = (alpha[rows] > 0) & (alpha[rows] < 1)
        if not mixed.any():
            continue
        around = slice(max(0, rows.start - halo), min(height, rows.stop + halo))
        columns = np.flatnonzero(mixed.any(0))
        across = slice(max(0, int(columns[0]) - halo), min(width, int(columns[-1]) + 1 + halo))
        image = pixels[around, across].astype(np.float32)
        opacity = alpha[around, across][..., None]
        colours = fallen = image
        for radius in _RADII:
            colours, fallen = _fused(image, colours, fallen, opacity, radius)
        inner = (slice(rows.start - around.start, rows.stop - around.start), slice(0, colours.shape[1]))
        here = np.zeros((rows.stop - rows.start, across.stop - across.start), bool)
        here[:] = mixed[:, across]
        out[rows, across][here] = (colours[inner][here] + 0.5).astype(np.uint8)
    return out


def grow(mask: Floats, pixels: int) -> Floats:
    """Widen a mask by so many pixels on each side, with a round brush."""
    if pixels <= 0:
        return mask
    # Distances instead of a brush of this size: the cost does not depend on it.
    outside = (mask < 0.5).astype(np.uint8)
    if not outside.any():
        return np.ones_like(mask)
    if outside.all():
        return mask
    distance = cv2.distanceTransform(outside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return np.maximum(mask, (distance <= pixels).astype(np.float32))


def _fused(image: Floats, colours: Floats, fallen: Floats, opacity: Floats, radius: int) -> tuple[Floats, Floats]:
    """Run one pass of blur fusion; returns the colours of the subject and of what lies behind it."""
    size = (2 * radius + 1, 2 * radius + 1)

    def blurred(values: Floats) -> Floats:
        made = cv2.blur(values, size)
        return np.asarray(made if made.ndim == 3 else made[..., None], np.float32)

    share = blurred(opacity)
    front = blurred(colours * opacity) / (share + 1e-5)
    back = blurred(fallen * (1 - opacity)) / (1 - share + 1e-5)
    front += opacity * (image - opacity * front - (1 - opacity) * back)
    return np.clip(front, 0, 255), back


def _coefficients(guide: Floats, target: Floats, radius: int) -> tuple[Floats, Floats]:
    """Return slopes (rows, columns, 3) and offset (rows, columns) of the guided filter with a guide in colour.

    Equations 19 to 21 of the paper: in each window the target is a linear function of the guide's three channels.
    """
    size = (2 * radius + 1, 2 * radius + 1)

    def mean(values: Floats) -> Floats:
        return np.asarray(cv2.blur(values, size, borderType=cv2.BORDER_REFLECT_101), np.float32)

    centre, level = mean(guide), mean(target)
    joint = mean(guide * target[..., None]) - centre * level[..., None]
    spread = np.empty((*target.shape, 3, 3), np.float32)
    for row in range(3):
        for column in range(row, 3):
            spread[..., row, column] = (
                mean(guide[..., row] * guide[..., column]) - centre[..., row] * centre[..., column]
            )
            spread[..., column, row] = spread[..., row, column]
    spread += _SMOOTHING * np.eye(3, dtype=np.float32)
    slopes = np.linalg.solve(spread, joint[..., None])[..., 0].astype(np.float32)
    offset = level - (slopes * centre).sum(-1)
    return mean(slopes), mean(offset)


def _unsure(coarse: Floats, radius: int) -> Floats:
    """Return 1 where the coarse mask is not sure within a radius, falling to 0 outside of it."""
    brush = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    band = (cv2.dilate(coarse, brush) > 0.05) & (cv2.erode(coarse, brush) < 0.95)
    return np.asarray(cv2.blur(band.astype(np.float32), (radius + 1 | 1, radius + 1 | 1)), np.float32)


def _grey_levels(pixels: Any) -> Floats:
    return np.asarray(pixels, np.float32) / np.float32(255)


def _bands(height: int, width: int, least: int = 1) -> Iterator[slice]:
    """Yield rows of a picture, about a megapixel at a time."""
    step = max(least, _BAND_PIXELS // max(1, width), 1)
    for top in range(0, height, step):
        yield slice(top, min(height, top + step))


def _sampling(rows: slice, height: int, width: int, size: tuple[int, int]) -> tuple[Floats, Floats]:
    """Return where the pixels of some rows lie in a picture of another size."""
    x = (np.arange(width, dtype=np.float32) + 0.5) * (size[0] / width) - 0.5
    y = (np.arange(rows.start, rows.stop, dtype=np.float32) + 0.5) * (size[1] / height) - 0.5
    across, down = np.meshgrid(x, y)
    return across.astype(np.float32), down.astype(np.float32)


def _sampled(values: Floats, place: tuple[Floats, Floats]) -> Floats:
    return np.asarray(
        cv2.remap(np.ascontiguousarray(values), *place, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE), np.float32
    )
