"""What moves in a clip, measured by dense optical flow (OpenCV's DIS): no learned judge.

The motion of the garment's pixels from the first frame to each later one is fitted by an affine map about the garment's
middle: a shift, a stretch along each axis and a lean. Each motion has a score, 1 where it goes as far as the drawn
clips do; the highest names the clip's motion, and below `LEAST` there is none.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from models.motions.film import REACH, Clip, Floats, Motion

LEAST: Final = 0.4
_GRID: Final = 256
_POINTS: Final = 2000  # pixels that are followed
_CLOTH: Final = 24.0  # greatest difference of a channel from the ground below which a pixel counts as ground
# A garment hangs from about 0.7 half sides above the middle, so this is its lean at the full reach of a sway.
_LEAN: Final = REACH["sway"] / 1.7


@dataclass(frozen=True, slots=True)
class Movement:
    """An affine motion from the first frame to another, in half sides of the picture.

    Attributes:
        right: Shift of the garment's middle to the right.
        wider: Growth of its width, 0 for none.
        taller: Growth of its height.
        lean: Shift to the right per half side further down.
    """

    right: float
    wider: float
    taller: float
    lean: float


def cloth(frame: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return the pixels that are not of the ground, which the picture's corners show."""
    corners = np.stack([frame[0, 0], frame[0, -1], frame[-1, 0], frame[-1, -1]]).astype(np.float32)
    far: NDArray[np.bool_] = np.abs(frame.astype(np.float32) - np.median(corners, axis=0)).max(axis=2) > _CLOTH
    return far


def movements(frames: Clip) -> list[Movement]:
    """Measure the garment's movement from the first frame (f, h, w, 3) to each of the others."""
    large = [cv2.resize(frame, (_GRID, _GRID), interpolation=cv2.INTER_CUBIC) for frame in frames]
    greys = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in large]
    flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    rows, columns = np.nonzero(cloth(np.asarray(large[0], np.uint8)))
    x, y = (side[:: max(1, len(rows) // _POINTS)].astype(np.float32) for side in (columns, rows))
    if len(x) < 50:
        return [Movement(0, 0, 0, 0)] * (len(frames) - 1)
    at_x, at_y = x.copy(), y.copy()
    inside = np.ones(len(x), bool)
    found: list[Movement] = []
    for before, after in itertools.pairwise(greys):
        step = np.asarray(flow.calc(before, after, np.zeros((*before.shape, 2), np.float32)), np.float32)
        moved = cv2.remap(step, at_x[None], at_y[None], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)[0]
        at_x, at_y = at_x + moved[:, 0], at_y + moved[:, 1]
        # What left the picture cannot be followed any further.
        inside &= (at_x > 4) & (at_x < _GRID - 5) & (at_y > 4) & (at_y < _GRID - 5)
        found.append(_fitted(x, y, at_x - x, at_y - y, inside))
    return found


def _fitted(x: Floats, y: Floats, dx: Floats, dy: Floats, inside: NDArray[np.bool_]) -> Movement:
    if inside.sum() < 50:
        return Movement(0, 0, 0, 0)
    half = _GRID / 2
    u, v = (x[inside] - x.mean()) / half, (y[inside] - y.mean()) / half
    known = np.stack([np.ones_like(u), u, v], axis=1)
    right, down = dx[inside] / half, dy[inside] / half
    weight = np.ones_like(u)
    across = along = np.zeros(3)
    for _ in range(4):  # a few rounds of reweighting keep strays from counting
        across, along = (
            np.linalg.lstsq(known * weight[:, None], side * weight, rcond=None)[0] for side in (right, down)
        )
        wrong = np.hypot(right - known @ across, down - known @ along)
        weight = 1 / (1 + (wrong / 0.05) ** 2)
    return Movement(float(across[0]), float(across[1]), float(along[2]), float(across[2]))


def scores(found: list[Movement]) -> dict[Motion, float]:
    """Score each motion: 1 where it is as large as in the drawn clips."""
    last, out, back = found[-1], found[0], found[-2]
    pan = REACH["pan left"]
    return {
        "sway": (out.lean - back.lean) / 2 / _LEAN,
        "turn": (last.taller - last.wider) / (1 - math.cos(REACH["turn"])),
        "pan left": last.right / pan,
        "pan right": -last.right / pan,
        "zoom in": min(last.wider, last.taller) / (math.exp(REACH["zoom in"]) - 1),
        "zoom out": min(-last.wider, -last.taller) / (1 - math.exp(-REACH["zoom out"])),
    }


def motion_of(frames: Clip) -> Motion | None:
    """Name the motion of a clip; None where nothing moves as far as `LEAST`."""
    found = scores(movements(frames))
    best = max(found, key=lambda name: found[name])
    return best if found[best] >= LEAST else None


def psnr(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio of two pictures in dB."""
    wrong = float(np.mean((one.astype(np.float64) - other.astype(np.float64)) ** 2))
    return 10 * math.log10(255**2 / max(wrong, 1e-9))


def flicker(frames: Clip) -> float:
    """Mean change, in grey levels, of the ground between neighbouring frames: it stands still, whatever moves on it."""
    covered = [cv2.dilate(cloth(frame).astype(np.uint8), np.ones((5, 5), np.uint8)) > 0 for frame in frames]
    changes = [
        float(np.abs(a.astype(np.float32) - b)[~(c | d)].mean())
        for a, b, c, d in zip(frames[:-1], frames[1:], covered[:-1], covered[1:], strict=True)
        if not (c | d).all()
    ]
    return float(np.mean(changes)) if changes else 0.0
