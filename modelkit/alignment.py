"""Lay one picture of a thing over another one of it: by features, by its box, and then by small local shifts."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from modelkit.patches import PixelBox

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]

_WORK_SIDE = 640
_RATIO = 0.75
_LEAST_MATCHES = 12
_TOLERANCE = 4.0
_MOST_SCALE = 8.0
# Local shifts are followed up to this share of the longer side, and smoothed over as much.
_SHIFT_SHARE = 0.04
_AGREEMENT_SHARE = 1 / 24
# What is blurred by this many pixels is as smooth as any: a broader blur is computed on a smaller copy.
_SHARPEST_BLUR = 8.0
_STABLE = (0.03 * 255) ** 2


@dataclass(frozen=True, slots=True)
class Aligned:
    """A picture laid over another one.

    Attributes:
        pixels: (height, width, 3), RGB, of the other one's size.
        inside: (height, width), whether the first picture shows anything there.
        agreement: (height, width), how alike the two are at a coarse look, 0 to 1.
        rows: (height, width), row in the first picture that each pixel comes from.
        columns: (height, width), column that it comes from.
    """

    pixels: Pixels
    inside: NDArray[np.bool_]
    agreement: Floats
    rows: Floats
    columns: Floats


def align(picture: Pixels, box: PixelBox, target: Pixels) -> Aligned:
    """Lay what a picture shows over a target.

    Args:
        picture: RGB.
        box: Where in it the thing is.
        target: RGB, all of which the thing fills.
    """
    height, width = target.shape[:2]
    scale = np.array([[box.width / width, 0, box.left], [0, box.height / height, box.top]], np.float64)
    found = [
        _laid(picture, target, matrix) for matrix in (_by_features(picture, box, target), scale) if matrix is not None
    ]
    best = max(found, key=lambda each: float(each.agreement.mean()))
    shifted = _shifted(picture, target, best)
    return shifted if shifted.agreement.mean() > best.agreement.mean() else best


def _by_features(picture: Pixels, box: PixelBox, target: Pixels) -> NDArray[np.float64] | None:
    """Return the affine map from the target to the picture that most features agree on (SIFT, Lowe 2004)."""
    part = picture[box.slices]
    shrinks = [min(1.0, _WORK_SIDE / max(each.shape[:2])) for each in (target, part)]
    found = []
    for pixels, shrink in zip((target, part), shrinks, strict=True):
        size = (max(1, round(pixels.shape[1] * shrink)), max(1, round(pixels.shape[0] * shrink)))
        grey = cv2.cvtColor(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)
        found.append(cv2.SIFT.create(2000).detectAndCompute(grey, None))
    (points, features), (others, other_features) = found
    if features is None or other_features is None or len(other_features) < 2:
        return None
    pairs = [pair for pair in cv2.BFMatcher().knnMatch(features, other_features, k=2) if len(pair) == 2]
    matches = [first for first, second in pairs if first.distance < _RATIO * second.distance]
    if len(matches) < _LEAST_MATCHES:
        return None
    here = np.array([points[match.queryIdx].pt for match in matches]) / shrinks[0]
    there = np.array([others[match.trainIdx].pt for match in matches]) / shrinks[1] + [box.left, box.top]
    cv2.setRNGSeed(0)
    matrix, chosen = cv2.estimateAffine2D(here, there, method=cv2.RANSAC, ransacReprojThreshold=_TOLERANCE / shrinks[1])
    if matrix is None or int(chosen.sum()) < _LEAST_MATCHES:
        return None
    stretch = float(np.linalg.det(matrix[:, :2]))
    return np.asarray(matrix, np.float64) if _MOST_SCALE**-2 < stretch < _MOST_SCALE**2 else None


def _laid(picture: Pixels, target: Pixels, matrix: NDArray[np.float64]) -> Aligned:
    height, width = target.shape[:2]
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    # Pixels have their centres half a pixel from their corners.
    columns, rows = (
        np.asarray(line[0] * (x + 0.5) + line[1] * (y + 0.5) + line[2] - 0.5, np.float32) for line in matrix
    )
    return _sampled(picture, target, rows, columns)


def _sampled(picture: Pixels, target: Pixels, rows: Floats, columns: Floats) -> Aligned:
    sampled = cv2.remap(picture, columns, rows, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    inside = (rows > -1) & (columns > -1) & (rows < picture.shape[0]) & (columns < picture.shape[1])
    pixels = np.asarray(sampled, np.uint8)
    return Aligned(pixels, inside, agreement(pixels, target) * inside, rows, columns)


def agreement(first: Pixels, second: Pixels) -> Floats:
    """Return how alike two pictures are at a coarse look: the local correlation of their blurred luma, 0 to 1.

    Plain areas agree with each other, whatever their brightness.
    """
    sigma = max(1.0, _AGREEMENT_SHARE * max(first.shape[:2]))
    a, b = (blurred(cv2.cvtColor(each, cv2.COLOR_RGB2GRAY).astype(np.float32), sigma / 6) for each in (first, second))
    mean_a, mean_b = blurred(a, sigma), blurred(b, sigma)
    covariance = blurred(a * b, sigma) - mean_a * mean_b
    variance_a, variance_b = blurred(a * a, sigma) - mean_a**2, blurred(b * b, sigma) - mean_b**2
    found = (2 * covariance + _STABLE) / (variance_a + variance_b + _STABLE)
    return np.asarray(found.clip(0, 1), np.float32)


def blurred(field: Floats, sigma: float) -> Floats:
    """Blur a field; a broad blur on a smaller copy, since its kernel grows with the picture and took minutes.

    Args:
        field: (height, width), or with channels behind them.
        sigma: Breadth in pixels.
    """
    height, width = field.shape[:2]
    factor = int(sigma // _SHARPEST_BLUR)
    if factor < 2:
        made = cv2.GaussianBlur(field, (0, 0), max(sigma, 0.3), borderType=cv2.BORDER_REFLECT)
        return np.asarray(made, np.float32)
    size = (max(1, width // factor), max(1, height // factor))
    small = cv2.resize(field, size, interpolation=cv2.INTER_AREA)
    small = cv2.GaussianBlur(small, (0, 0), sigma * size[0] / width, borderType=cv2.BORDER_REFLECT)
    return np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR), np.float32)


def _shifted(picture: Pixels, target: Pixels, laid: Aligned) -> Aligned:
    """Follow the small shifts that remain, by dense optical flow (Kroeger et al. 2016)."""
    height, width = target.shape[:2]
    shrink = min(1.0, _WORK_SIDE / max(height, width))
    size = (max(16, round(width * shrink)), max(16, round(height * shrink)))
    greys = [
        cv2.cvtColor(cv2.resize(each, size, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)
        for each in (target, laid.pixels)
    ]
    found = np.zeros((*greys[0].shape, 2), np.float32)
    flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM).calc(greys[0], greys[1], found)
    most = _SHIFT_SHARE * max(size)
    flow = cv2.GaussianBlur(np.asarray(flow).clip(-most, most), (0, 0), most)
    flow = cv2.resize(flow, (width, height), interpolation=cv2.INTER_LINEAR)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    across, down = x + flow[..., 0] * (width / size[0]), y + flow[..., 1] * (height / size[1])
    rows, columns = (
        np.asarray(cv2.remap(plane, across, down, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE), np.float32)
        for plane in (laid.rows, laid.columns)
    )
    return _sampled(picture, target, rows, columns)
