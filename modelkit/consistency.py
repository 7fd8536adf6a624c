"""Whether a redrawn part of a picture still shows the same: SSIM, and distances of networks where there are any.

SSIM is a likeness, and passes from its threshold on. LPIPS and DISTS are distances, and pass up to theirs. A threshold
of 0 switches a check off.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from modelkit.errors import ModelError, ModelErrorKind

Pixels = NDArray[np.uint8]
Planes = NDArray[np.float64]

# Constants of SSIM for 8 bits, and its Gaussian window (Wang et al. 2004).
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
_WINDOW, _SIGMA = 11, 1.5


class Distance(Protocol):
    """A network that measures how far two pictures look apart."""

    def distance(self, first: Pixels, second: Pixels) -> float:
        """Return the distance of two RGB pictures of one size; 0 for equal ones."""
        ...


@dataclass(frozen=True, slots=True)
class Thresholds:
    """What redrawn parts must keep to; 0 switches a check off.

    Attributes:
        ssim: Least structural similarity.
        lpips: Greatest LPIPS distance.
        dists: Greatest DISTS distance.
    """

    ssim: float = 0.7
    lpips: float = 0.0
    dists: float = 0.0


@dataclass(frozen=True, slots=True)
class Scores:
    """What was measured; None where the check is off.

    Attributes:
        ssim: Structural similarity.
        lpips: LPIPS distance.
        dists: DISTS distance.
        margin: By how much the worst check passes, as a share of its threshold; below 0 it fails. 1 without checks.
    """

    ssim: float | None
    lpips: float | None
    dists: float | None
    margin: float

    @property
    def passed(self) -> bool:
        """Whether every check passes."""
        return self.margin >= 0


class ConsistencyCheck:
    """Measures redrawn parts against what was there before.

    Args:
        thresholds: What they must keep to.
        networks: The networks of `lpips` and `dists`, by these names.

    Raises:
        ModelError: A check is on whose network is missing.
    """

    def __init__(self, thresholds: Thresholds, networks: Mapping[str, Distance] | None = None) -> None:
        self._thresholds = thresholds
        self._networks = {name: network for name in ("lpips", "dists") if (network := (networks or {}).get(name))}
        for name in ("lpips", "dists"):
            if getattr(thresholds, name) > 0 and name not in self._networks:
                raise ModelError(f"This worker has no network for the check {name}_threshold.", ModelErrorKind.RESOURCE)

    def measure(self, before: Pixels, after: Pixels) -> Scores:
        """Compare two RGB pictures of one size."""
        likeness = ssim(before, after) if self._thresholds.ssim > 0 else None
        distances = {
            name: network.distance(before, after)
            for name, network in self._networks.items()
            if getattr(self._thresholds, name) > 0
        }
        margins = [1 - distance / getattr(self._thresholds, name) for name, distance in distances.items()]
        if likeness is not None:
            margins.append(likeness / self._thresholds.ssim - 1)
        return Scores(likeness, distances.get("lpips"), distances.get("dists"), min(margins, default=1.0))


def ssim(first: Pixels, second: Pixels) -> float:
    """Return the mean structural similarity of the luma of two RGB pictures of one size, -1 to 1 (Wang et al. 2004).

    Pictures smaller than the window of 11 pixels are compared at their edges by mirrored pixels.
    """
    a, b = (cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).astype(np.float64) for pixels in (first, second))
    mean_a, mean_b = _blurred(a), _blurred(b)
    variance_a, variance_b = _blurred(a * a) - mean_a**2, _blurred(b * b) - mean_b**2
    covariance = _blurred(a * b) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + _C1) / (mean_a**2 + mean_b**2 + _C1)
    structure = (2 * covariance + _C2) / (variance_a + variance_b + _C2)
    return float((luminance * structure).mean())


def _blurred(plane: Planes) -> Planes:
    blurred = cv2.GaussianBlur(plane, (_WINDOW, _WINDOW), _SIGMA, borderType=cv2.BORDER_REFLECT)
    return np.asarray(blurred, np.float64)
