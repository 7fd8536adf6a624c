"""Which part of an image, and how much around it, a new frame shows: the geometry of cropping, padding and scaling.

A frame is a rectangle in the image's own pixels. Where it reaches beyond the image there will be padding, what lies
outside it is cut. All rules are pure; `modelkit.canvas` draws.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from modelkit.errors import ModelError

Mode = Literal["auto", "crop", "pad", "scale"]
Proportions = Literal["height", "width"]

# Up to this relative difference of aspect `auto` crops, beyond it pads (documented).
AUTO_CROP_DIFFERENCE = 0.05
MAX_SIDE = 16_384
MAX_PIXELS = 64_000_000
_POSITIONS = {
    "center": (0.5, 0.5),
    "top": (0.5, 0.0),
    "bottom": (0.5, 1.0),
    "left": (0.0, 0.5),
    "right": (1.0, 0.5),
    "top_left": (0.0, 0.0),
    "top_right": (1.0, 0.0),
    "bottom_left": (0.0, 1.0),
    "bottom_right": (1.0, 1.0),
}
_EPSILON = 1e-9


@dataclass(frozen=True, slots=True)
class Margins:
    """Least distances from the subject to the frame, as shares of the frame's sides; None is not asked for."""

    left: float | None = None
    top: float | None = None
    right: float | None = None
    bottom: float | None = None

    def __bool__(self) -> bool:
        return any(side is not None for side in (self.left, self.top, self.right, self.bottom))

    def over(self, other: Margins) -> Margins:
        """Return these margins, with the other's where these ask for none."""
        return Margins(
            other.left if self.left is None else self.left,
            other.top if self.top is None else self.top,
            other.right if self.right is None else self.right,
            other.bottom if self.bottom is None else self.bottom,
        )


@dataclass(frozen=True, slots=True)
class FrameRequest:
    """What the new frame is to be.

    Attributes:
        mode: Whether pixels may be cut, added, or both.
        aspect: Width by height; the image's own where None.
        size: Width and height in pixels of the result; as many as the frame covers where None.
        margins: Least margins of the subject.
        position: What `crop` keeps, where margins do not say.
        proportions: Which side `scale` matches exactly; both as far as they agree where None.
        tolerance: Share by which the image may miss all of this and stay as it is.
    """

    mode: Mode = "auto"
    aspect: float | None = None
    size: tuple[int, int] | None = None
    margins: Margins = Margins()
    position: str = "center"
    proportions: Proportions | None = None
    tolerance: float = 0.0


@dataclass(frozen=True, slots=True)
class Frame:
    """A rectangle in the image's pixels, and the size of the result that shows it."""

    left: float
    top: float
    width: float
    height: float
    size: tuple[int, int]


@dataclass(frozen=True, slots=True)
class _AxisSpan:
    """One axis: the image reaches from 0 to `length`, the subject from `start` to `end`; margins before and after."""

    length: float
    start: float
    end: float
    before: float
    after: float

    @property
    def least(self) -> float:
        """Shortest frame that holds the subject and its margins."""
        return (self.end - self.start) / (1 - self.before - self.after)

    @property
    def longest_inside(self) -> float:
        """Longest frame within the image that keeps the margins."""
        ends = [self.length]
        if self.before > 0:
            ends.append(self.start / self.before)
        if self.after > 0:
            ends.append((self.length - self.end) / self.after)
        return min(ends)

    @property
    def least_around(self) -> float:
        """Shortest frame that holds the whole image and keeps the margins."""
        return max(self.length, (self.length - self.start) / (1 - self.before), self.end / (1 - self.after), self.least)

    def place(self, frame: float, wanted: float, *, around: bool | None) -> float:
        """Start of a frame of this length, as near to `wanted` as margins, and the image's ends, allow.

        Args:
            frame: Length of the frame.
            wanted: Where it would start if it were free to.
            around: True if the frame must hold the whole image, False if it must stay inside, None for neither.
        """
        low, high = self.end - (1 - self.after) * frame, self.start - self.before * frame
        if around is True:
            low, high = max(low, self.length - frame), min(high, 0.0)
        elif around is False:
            low, high = max(low, 0.0), min(high, self.length - frame)
        if low > high:  # by rounding alone, or where one axis had to give way: both sides share what is missing
            return (low + high) / 2
        return min(max(wanted, low), high)


def margins_of(size: tuple[int, int], box: tuple[float, float, float, float]) -> Margins:
    """Margins that a subject has in its image."""
    left, top, right, bottom = box
    return Margins(left / size[0], top / size[1], (size[0] - right) / size[0], (size[1] - bottom) / size[1])


def frame(
    size: tuple[int, int], wish: FrameRequest, subject: tuple[float, float, float, float] | None = None
) -> Frame | None:
    """Find the frame that a wish asks for.

    Args:
        size: The image's width and height.
        wish: What is asked for.
        subject: The subject's box; needed where margins are asked for.

    Returns:
        The frame; None where the image is already within the tolerance of it.

    Raises:
        ModelError: No frame keeps the margins in this mode, or the result would be too large.
    """
    if wish.margins and subject is None:
        raise ModelError("No subject was found in the image, and margins are measured from one.")
    aspect = wish.size[0] / wish.size[1] if wish.size else wish.aspect or size[0] / size[1]
    has_size = _has_size(size, wish, aspect)
    if has_size and _has_margins(size, wish, subject):
        return None
    if wish.margins and subject is not None:
        found = _around_subject(size, wish, aspect, subject)
        if has_size and _is_whole(found, size, wish.tolerance):
            return None
    elif wish.mode == "scale":
        found = _scaled(size, wish, aspect)
    elif _crops(size, wish, aspect):
        found = _cut(size, aspect, wish.position)
    else:
        found = _padded(size, aspect)
    left, top, width, height = found
    if wish.size:
        return Frame(left, top, width, height, wish.size)
    result = (max(1, round(width)), max(1, round(height)))
    if max(result) > MAX_SIDE or result[0] * result[1] > MAX_PIXELS:
        raise ModelError(f"The result would be {result[0]} x {result[1]} pixels; give a target size.")
    # Without a size to reach, pixels stay what they are: the frame goes onto whole ones.
    left, top = float(round(left)), float(round(top))
    if wish.mode != "scale" and not _adds(found, size):
        left, top = min(max(left, 0.0), size[0] - result[0]), min(max(top, 0.0), size[1] - result[1])
    return Frame(left, top, float(result[0]), float(result[1]), result)


def _adds(found: tuple[float, float, float, float], size: tuple[int, int]) -> bool:
    left, top, width, height = found
    slack = 0.5 + _EPSILON
    return left < -slack or top < -slack or left + width > size[0] + slack or top + height > size[1] + slack


def _has_size(size: tuple[int, int], wish: FrameRequest, aspect: float) -> bool:
    tolerance = wish.tolerance + _EPSILON
    if wish.size:
        return all(abs(have - want) <= tolerance * want for have, want in zip(size, wish.size, strict=True))
    # Half a pixel is as near to an aspect as an image can be.
    return abs(size[0] - size[1] * aspect) <= max(tolerance * size[1] * aspect, 0.5)


def _has_margins(size: tuple[int, int], wish: FrameRequest, subject: tuple[float, float, float, float] | None) -> bool:
    if not wish.margins or subject is None:
        return True
    if wish.mode == "scale":
        return False  # it matches margins exactly; more than they ask for is not enough
    have = margins_of(size, subject)
    pairs = (
        (have.left, wish.margins.left),
        (have.top, wish.margins.top),
        (have.right, wish.margins.right),
        (have.bottom, wish.margins.bottom),
    )
    return all(want is None or (is_ or 0.0) >= want - wish.tolerance - _EPSILON for is_, want in pairs)


def _is_whole(found: tuple[float, float, float, float], size: tuple[int, int], tolerance: float) -> bool:
    left, top, width, height = found
    across, down = max(0.5, tolerance * size[0]), max(0.5, tolerance * size[1])
    return max(abs(left), abs(left + width - size[0])) <= across and max(abs(top), abs(top + height - size[1])) <= down


def _crops(size: tuple[int, int], wish: FrameRequest, aspect: float) -> bool:
    if wish.mode == "auto":
        return abs(size[0] / size[1] / aspect - 1) <= AUTO_CROP_DIFFERENCE + _EPSILON
    return wish.mode == "crop"


def _cut(size: tuple[int, int], aspect: float, position: str) -> tuple[float, float, float, float]:
    width, height = min(size[0], size[1] * aspect), min(size[1], size[0] / aspect)
    across, down = _POSITIONS[position]
    return (size[0] - width) * across, (size[1] - height) * down, width, height


def _padded(size: tuple[int, int], aspect: float) -> tuple[float, float, float, float]:
    width, height = max(size[0], size[1] * aspect), max(size[1], size[0] / aspect)
    return (size[0] - width) / 2, (size[1] - height) / 2, width, height


def _scaled(size: tuple[int, int], wish: FrameRequest, aspect: float) -> tuple[float, float, float, float]:
    if wish.proportions is None:
        return _padded(size, aspect)
    if wish.proportions == "height":
        width, height = size[1] * aspect, float(size[1])
    else:
        width, height = float(size[0]), size[0] / aspect
    return (size[0] - width) / 2, (size[1] - height) / 2, width, height


def _around_subject(
    size: tuple[int, int], wish: FrameRequest, aspect: float, subject: tuple[float, float, float, float]
) -> tuple[float, float, float, float]:
    margins = wish.margins
    across = _span(size[0], subject[0], subject[2], margins.left, margins.right)
    down = _span(size[1], subject[1], subject[3], margins.top, margins.bottom)
    if wish.mode == "scale":
        return _scaled_around(wish, aspect, across, down)
    least = max(down.least, across.least / aspect)
    most = min(down.longest_inside, across.longest_inside / aspect)
    if _crops(size, wish, aspect) and least <= most + _EPSILON:
        height, around = most, False
    elif wish.mode == "crop":
        raise ModelError("Cropping alone cannot leave the margins that are asked for; use the mode pad or auto.")
    else:
        height, around = max(down.least_around, across.least_around / aspect), True
    width = height * aspect
    left = across.place(width, (size[0] - width) / 2, around=around)
    return left, down.place(height, (size[1] - height) / 2, around=around), width, height


def _scaled_around(
    wish: FrameRequest, aspect: float, across: _AxisSpan, down: _AxisSpan
) -> tuple[float, float, float, float]:
    """Zoom to the subject: the binding axis has exactly its margins, the other one what is left, evenly."""
    height = max(down.least, across.least / aspect)
    if wish.proportions == "height":
        height = down.least
    elif wish.proportions == "width":
        height = across.least / aspect
    width = height * aspect
    return (
        across.place(width, (across.start + across.end - width) / 2, around=None),
        down.place(height, (down.start + down.end - height) / 2, around=None),
        width,
        height,
    )


def _span(length: float, start: float, end: float, before: float | None, after: float | None) -> _AxisSpan:
    span = _AxisSpan(length, start, end, before or 0.0, after or 0.0)
    if span.before + span.after >= 1 - _EPSILON:
        raise ModelError("Opposite margins leave no room for the subject.")
    if not math.isfinite(span.least):
        raise ModelError("The margins cannot be kept.")
    return span
