"""Where the garment of a picture is: by the pose and the outline of who wears it, or the outline of a packshot."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from modelkit.vision import BodyPose, Subject

Mask = NDArray[np.bool_]
Part = Literal["upper", "lower", "whole"]

_PARTS: dict[Part, str] = {
    "upper": "blazer blouse bra cardigan hoodie jacket jersey jumper polo pullover shirt shirts sweater sweatshirt "
    "tank tee top tshirt vest waistcoat",
    "lower": "bottoms chinos jeans leggings pants shorts skirt slacks sweatpants tights trousers",
}
_SHOULDERS, _HIPS, _ANKLES = [11, 12], [23, 24], [27, 28]
_LEAST_SEEN = 0.5
# A collar reaches above the shoulders, and a hem below the hips, by this share of the torso.
_BEYOND = 0.2


class Looker(Protocol):
    """Finds people and things (`modelkit.vision.Vision`)."""

    def subject(self, image: Image.Image) -> Subject | None:
        """Find what the picture is about."""
        ...

    def pose(self, image: Image.Image) -> BodyPose | None:
        """Find a person's pose."""
        ...


class Cutter(Protocol):
    """Finds outlines of anything (`modelkit.cutout.Cutout`)."""

    def matte(self, image: Image.Image) -> NDArray[np.float32] | None:
        """Return the opacity of the subject, (height, width), 0 to 1; None where there is none."""
        ...


@dataclass(frozen=True, slots=True)
class Garment:
    """Where a garment is.

    Attributes:
        box: Left, top, right, bottom in pixels; right and bottom are exclusive.
        mask: (height, width), True on the garment or who wears it.
    """

    box: tuple[float, float, float, float]
    mask: Mask


def part_of(label: str) -> Part:
    """Return which part of a body a label speaks of; the whole garment where it names none that is known."""
    words = set(re.findall(r"[a-z]+", label.lower().replace("t-shirt", "tshirt")))
    found: list[Part] = [part for part, names in _PARTS.items() if words & set(names.split())]
    return found[0] if len(found) == 1 else "whole"


def find_garment(image: Image.Image, label: str, looker: Looker, cutter: Cutter) -> Garment:
    """Find the garment of a picture; where nothing stands out, it is all of the picture.

    Args:
        image: RGB or RGBA.
        label: What it is (`shirt`); empty for all that is worn or shown.
        looker: Finds people, and things on a plain background.
        cutter: Finds everything else.
    """
    subject = looker.subject(image)
    mask = subject.mask if subject is not None else None
    if mask is None:
        matte = cutter.matte(image)
        mask = np.ones((image.height, image.width), bool) if matte is None else matte > 0.5
    if subject is not None and subject.kind != "object" and (pose := looker.pose(image)) is not None:
        rows = _rows(pose, part_of(label), image.height)
        worn = mask.copy()
        worn[: rows[0]] = worn[rows[1] :] = False
        if worn.any():
            mask = worn
    down, across = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return Garment((float(across[0]), float(down[0]), float(across[-1] + 1), float(down[-1] + 1)), mask)


def _rows(pose: BodyPose, part: Part, height: int) -> tuple[int, int]:
    """Return the rows of a body's part, from its top to below its bottom; all where the body is not seen well."""
    if pose.seen[_SHOULDERS + _HIPS].min() < _LEAST_SEEN:
        return 0, height
    shoulders, hips = float(pose.points[_SHOULDERS, 1].min()), float(pose.points[_HIPS, 1].max())
    beyond = abs(hips - shoulders) * _BEYOND
    ankles = float(pose.points[_ANKLES, 1].max()) if pose.seen[_ANKLES].min() >= _LEAST_SEEN else float(height)
    top = hips - beyond if part == "lower" else shoulders - beyond
    bottom = hips + beyond if part == "upper" else ankles
    return max(0, round(top)), max(0, round(bottom))
