"""Clips drawn by code: one garment, one motion, deterministic by seed, no downloads.

A garment is drawn at twice the clip's size; every frame is that drawing seen through a map from the frame's positions
to the drawing's, averaged down. The ground is one flat colour, so whatever the map reaches beyond the drawing is known.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from models.garments.draw import Drawing, choose, draw

Clip: TypeAlias = NDArray[np.uint8]
Floats: TypeAlias = NDArray[np.float32]
Motion: TypeAlias = Literal["sway", "turn", "pan left", "pan right", "zoom in", "zoom out"]

MOTIONS: Final[tuple[Motion, ...]] = ("sway", "turn", "pan left", "pan right", "zoom in", "zoom out")
FRAMES: Final = 5
SIZE: Final = 64
_OVER: Final = 2  # supersampling factor of a frame


@dataclass(frozen=True, slots=True)
class Framing:
    """Where the garment stands in the first frame: a scale, and an offset in half sides of the picture."""

    scale: float
    dx: float
    dy: float


def framing(rng: np.random.Generator) -> Framing:
    """Draw a framing: as drawn or a little further away and off the middle."""
    return Framing(*(float(rng.uniform(low, high)) for low, high in ((0.72, 1.0), (-0.08, 0.08), (-0.08, 0.08))))


# How far motions go: a share of half the side, an angle in radians, or the logarithm of a scale. It does not vary:
# what a prompt asks of a picture has one answer, which a small model learns far sooner than a choice among many.
REACH: Final[dict[Motion, float]] = {
    "sway": 0.36,
    "turn": 1.0,
    "pan left": 0.6,
    "pan right": 0.6,
    "zoom in": 0.42,
    "zoom out": 0.44,
}


def _source(motion: Motion, far: float, s: float, at: Framing, top: float) -> tuple[Floats, Floats]:
    """Positions (-1..1) in the drawing for every position of the frame at time s (0..1).

    Positions are of the supersampled frame; `top` is where the garment hangs from, in the drawing's positions.
    """
    n = SIZE * _OVER
    line = ((np.arange(n, dtype=np.float32) + 0.5) / n * 2 - 1).astype(np.float32)
    x, y = np.meshgrid(line, line)
    if motion in {"pan left", "pan right"}:
        # The camera goes one way, so what it sees goes the other way.
        x = x + np.float32(far * s * (1 if motion == "pan right" else -1))
    elif motion in {"zoom in", "zoom out"}:
        scale = math.exp(far * s * (1 if motion == "zoom in" else -1))
        x, y = x / np.float32(scale), y / np.float32(scale)
    x, y = (x - np.float32(at.dx)) / np.float32(at.scale), (y - np.float32(at.dy)) / np.float32(at.scale)
    if motion == "turn":
        x = x / np.float32(math.cos(far * s))
    elif motion == "sway":
        # Held at its top, a garment swings out the more the lower a part of it hangs.
        hang = np.clip((y - top) / np.float32(1 - top), 0, 1.2).astype(np.float32)
        x = x - np.float32(far * math.sin(2 * math.pi * s)) * hang
    return x.astype(np.float32), y.astype(np.float32)


def film(drawing: Drawing, motion: Motion, at: Framing) -> Clip:
    """Film a drawing of twice the clip's size: (FRAMES, SIZE, SIZE, 3) uint8, its first frame unmoved."""
    side = drawing.picture.shape[0]
    picture = drawing.picture.astype(np.float32)
    ground = picture[0, 0]
    rows = np.flatnonzero(drawing.silhouette.max(axis=1) > 0.5)
    top = float(rows[0]) / side * 2 - 1
    far = REACH[motion]
    frames = np.zeros((FRAMES, SIZE, SIZE, 3), np.uint8)
    for k in range(FRAMES):
        s = k / (FRAMES - 1)
        x, y = _source(motion, far, s, at, top)
        u, v = (x + 1) * np.float32(side / 2) - np.float32(0.5), (y + 1) * np.float32(side / 2) - np.float32(0.5)
        seen = cv2.remap(picture, u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=ground.tolist())
        if motion == "turn":
            # A side that turns away from the light is darker; the ground stays as it is.
            cloth = cv2.remap(drawing.silhouette, u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=0)
            seen = seen * (1 - np.float32(0.25 * (1 - math.cos(far * s))) * cloth[..., None])
        small = cv2.resize(seen, (SIZE, SIZE), interpolation=cv2.INTER_AREA)
        frames[k] = np.clip(small + 0.5, 0, 255).astype(np.uint8)
    return frames


def film_many(seed: int, garments: int) -> tuple[Clip, NDArray[np.int64]]:
    """Film `garments` training drawings, each in every motion.

    Returns:
        Clips (garments * 6, FRAMES, SIZE, SIZE, 3) uint8 and their motions as positions in MOTIONS.
    """
    cv2.setNumThreads(1)
    rng = np.random.default_rng(seed)
    clips = np.zeros((garments * len(MOTIONS), FRAMES, SIZE, SIZE, 3), np.uint8)
    for i in range(garments):
        drawing = draw(choose(rng), rng, SIZE * _OVER)
        at = framing(rng)
        for m, motion in enumerate(MOTIONS):
            clips[i * len(MOTIONS) + m] = film(drawing, motion, at)
    return clips, np.tile(np.arange(len(MOTIONS)), garments)
