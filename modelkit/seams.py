"""Find the seams of a picture that was put together of several: a collage, or two halves stitched side by side.

A seam is a straight line from edge to edge along which the picture changes from one pixel to the next, as nothing
within a photo does. Strips of one colour between the parts count as seams too. Pictures put together before the same
plain background have none that could be found.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

Floats = NDArray[np.float32]

_WORK_SIDE = 512
# A part is at least so much of the side; thinner ones are borders.
_LEAST_PART = 0.12
# Distance in CIELAB of two neighbours that is seen as an edge.
_LEAST_STEP = 6.0
# How much more than around it the picture must change at a seam.
_LEAST_RISE = 3.0
_AROUND = 8
# Share of a line's pixels at which there must be an edge.
_LEAST_SHARE = 0.66
# Parts with less variety are borders or plain grounds.
_LEAST_VARIETY = 4.0
# Widest strip between parts, as a share of the side.
_WIDEST_STRIP = 0.06
_PLAIN = 2.5


def is_collage(image: Image.Image) -> bool:
    """Tell whether an RGB picture was put together of several."""
    scale = min(1.0, _WORK_SIDE / max(image.size))
    # Nearest neighbours keep a seam as sharp as it was.
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    pixels = np.asarray(image.convert("RGB").resize(size, Image.Resampling.NEAREST), np.float32) / 255
    lab = np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGB2LAB), np.float32)
    return _is_divided(lab) or _is_divided(np.ascontiguousarray(lab.transpose(1, 0, 2)))


def _is_divided(lab: Floats) -> bool:
    """Tell whether a vertical seam divides a picture, (rows, columns, 3) in CIELAB."""
    width = lab.shape[1]
    first, last = round(width * _LEAST_PART), width - round(width * _LEAST_PART)
    if last - first < 4 or lab.shape[0] < 16:
        return False
    shares = _edge_shares(lab)
    for column in np.flatnonzero(shares[first:last] >= _LEAST_SHARE) + first:
        if _has_variety(lab[:, : column + 1]) and _has_variety(lab[:, column + 1 :]):
            return True
    return _has_strip(lab, shares, first, last)


def _edge_shares(lab: Floats) -> Floats:
    """Return for each column which share of its pixels differs from the next column's as only a seam does."""
    steps = np.linalg.norm(np.diff(lab, axis=1), axis=2)
    columns = steps.shape[1]
    padded = np.pad(steps, ((0, 0), (_AROUND, _AROUND)), mode="edge")
    shifts = (shift for shift in range(2 * _AROUND + 1) if abs(shift - _AROUND) > 1)  # a seam may be two pixels wide
    around = np.median(np.stack([padded[:, shift : shift + columns] for shift in shifts]), axis=0)
    edges = (steps > _LEAST_STEP) & (steps > _LEAST_RISE * around)
    return np.asarray(edges.mean(axis=0), np.float32)


def _has_strip(lab: Floats, shares: Floats, first: int, last: int) -> bool:
    """Tell whether a strip of one colour, with an edge on both of its sides, divides a picture."""
    plain = lab.std(axis=0).max(axis=1) < _PLAIN
    widest = max(2, round(lab.shape[1] * _WIDEST_STRIP))
    start = None
    for column in range(first, last + 1):
        if column < last and plain[column]:
            start = column if start is None else start
            continue
        if start is not None and 2 <= column - start <= widest:
            left, right = shares[max(0, start - 2) : start + 1].max(), shares[column - 2 : column + 1].max()
            if min(left, right) >= _LEAST_SHARE / 2 and _has_variety(lab[:, :start]) and _has_variety(lab[:, column:]):
                return True
        start = None
    return False


def _has_variety(part: Floats) -> bool:
    return bool(part.reshape(-1, 3).std(axis=0).max() > _LEAST_VARIETY)
