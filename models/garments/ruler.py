"""A ruler without any learned judge: which colour dominates the cloth, and whose outline it has.

 colour      each cloth pixel votes for the nearest of eleven colours in CIELAB; the most votes win
 silhouette  the cloth's outline, boxed and scaled, against drawn templates of every garment; the best overlap wins

The same ruler also measures fresh drawings, which gives the ceiling that its own mistakes set.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.garments.catalogue import CLOTHS, COLOURS, GARMENTS, UNDER_WHITE, GarmentFacts
from models.garments.draw import Picture, draw

_GROUND_DISTANCE: Final = 12.0  # CIELAB distance from the border's median at which a pixel counts as cloth
_BOX: Final = 40
_TEMPLATES: Final = 60

Mask = NDArray[np.bool_]
Lab = NDArray[np.float64]


def to_lab(rgb: NDArray[np.uint8] | NDArray[np.float64]) -> Lab:
    """Turn sRGB of 0..255 into CIELAB under D65 (IEC 61966-2-1 and CIE 15)."""
    c = np.asarray(rgb, np.float64) / 255
    c = np.where(c > 0.04045, ((c + 0.055) / 1.055) ** 2.4, c / 12.92)
    matrix = np.array(
        [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    )
    xyz = c @ matrix.T / np.array([0.95047, 1.0, 1.08883])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], -1)


def cloth_mask(picture: Picture) -> Mask:
    """Pixels unlike the border, without specks smaller than 3 % of the largest piece; enclosed holes stay holes."""
    lab = to_lab(picture)
    edge = np.concatenate(
        [lab[:2].reshape(-1, 3), lab[-2:].reshape(-1, 3), lab[:, :2].reshape(-1, 3), lab[:, -2:].reshape(-1, 3)]
    )
    mask: Mask = np.linalg.norm(lab - np.median(edge, 0), axis=-1) > _GROUND_DISTANCE
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=4)
    if count == 1:  # label 0 is the ground
        return mask
    sizes = stats[1:, cv2.CC_STAT_AREA]
    return np.isin(labels, 1 + np.flatnonzero(sizes >= 0.03 * sizes.max()))


def boxed(mask: Mask) -> Mask:
    """Cut a mask to its bounding box, centre it in a square and scale that to 40 x 40 pixels."""
    ys, xs = np.nonzero(mask)
    if len(ys) < 12:
        return np.zeros((_BOX, _BOX), np.bool_)
    cut = mask[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
    side = max(cut.shape)
    square = np.zeros((side, side), np.uint8)
    y, x = (side - cut.shape[0]) // 2, (side - cut.shape[1]) // 2
    square[y : y + cut.shape[0], x : x + cut.shape[1]] = cut * 255
    return np.asarray(Image.fromarray(square).resize((_BOX, _BOX), Image.Resampling.BILINEAR)) > 127


@dataclass(frozen=True, slots=True)
class Measurement:
    """What the ruler reads off one picture.

    Attributes:
        colour: Dominant colour of the cloth, "" where there is no cloth.
        shares: Share of the cloth's pixels per colour.
        garment: The garment whose template overlaps best.
        overlap: That template's intersection over union.
    """

    colour: str
    shares: dict[str, float]
    garment: str
    overlap: float


class Ruler:
    """Drawn templates and colour references for pictures of one size."""

    def __init__(self, size: int, seed: int = 777) -> None:
        rng = np.random.default_rng(seed)
        colours = list(COLOURS)
        masks: list[Mask] = []
        self._owners: list[str] = []
        seen: dict[str, list[Lab]] = {c: [] for c in CLOTHS}
        for garment in GARMENTS:
            for i in range(_TEMPLATES):
                facts = GarmentFacts(garment, colours[i % len(colours)])
                made = draw(facts, rng, size)
                mask = cloth_mask(made.picture)
                masks.append(boxed(mask))
                self._owners.append(garment)
                seen[facts.colour].append(np.median(to_lab(made.picture)[mask], 0))
            white = draw(GarmentFacts(garment, "white", background=UNDER_WHITE[1]), rng, size)
            seen["white"].append(np.median(to_lab(white.picture)[white.silhouette > 0.9], 0))
        self._bank = np.stack(masks)
        self._names = list(seen)
        # References are measured on drawings, because light and rim darken every cloth a little.
        self._references = np.stack([np.median(v, 0) for v in seen.values()])

    def read(self, picture: Picture) -> Measurement:
        """Measure one picture."""
        mask = cloth_mask(picture)
        box = boxed(mask)
        overlaps = (self._bank & box).sum((1, 2)) / np.maximum(1, (self._bank | box).sum((1, 2)))
        best = int(overlaps.argmax())
        if not mask.any():
            return Measurement("", {}, self._owners[best], 0.0)
        inner = cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(np.bool_)
        pixels = to_lab(picture)[inner if inner.sum() >= 12 else mask]
        votes = np.linalg.norm(pixels[:, None] - self._references[None], axis=-1).argmin(1)
        counts = np.bincount(votes, minlength=len(self._names)) / len(votes)
        shares = {n: round(float(c), 3) for n, c in zip(self._names, counts, strict=True)}
        return Measurement(self._names[int(counts.argmax())], shares, self._owners[best], float(overlaps[best]))
