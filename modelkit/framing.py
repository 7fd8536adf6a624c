"""The geometry of cropping, padding and scaling: which rectangle a new frame shows of an image.

A frame is a rectangle in the image's own pixels. It is padded where it reaches beyond the image, and the image is cut
where it reaches beyond the frame. All functions are pure; `modelkit.canvas` draws.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from modelkit.errors import ModelError
from modelkit.sizes import MAX_PIXELS

Mode = Literal["auto", "crop", "pad", "scale"]
Proportions = Literal["height", "width"]

# `auto` crops up to this relative difference of aspect, and pads beyond it (documented).
AUTO_CROP_DIFFERENCE = 0.05
MAX_SIDE = 16_384
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
    """Least distances from the subject to the frame, as shares of the frame's sides; None where not requested."""

    left: float | None = None
    top: float | None = None
    right: float | None = None
    bottom: float | None = None

    def __bool__(self) -> bool:
        return any(side is not None for side in (self.left, self.top, self.right, self.bottom))

    def over(self, other: Margins) -> Margins:
        """Return these margins, completed by the other's where None."""
        return Margins(
            other.left if self.left is None else self.left,
            other.top if self.top is None else self.top,
            other.right if self.right is None else self.right,
            other.bottom if self.bottom is None else self.bottom,
        )


@dataclass(frozen=True, slots=True)
class FrameRequest:
    """A requested frame.

    Attributes:
        mode: Whether pixels may be cut, added, or both.
        aspect: Width by height; the image's own where None.
        size: Width and height of the result in pixels; the frame's own where None.
        margins: Least margins of the subject.
        position: What `crop` keeps, unless margins decide it.
        proportions: Which side `scale` matches exactly; where None, the side that binds.
        tolerance: Share by which the image may differ from the request and stay unchanged.
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
        """Return the start of a frame of this length, as near to `wanted` as margins and the image's ends allow.

        Args:
            frame: Length of the frame.
            wanted: Preferred start.
            around: True if the frame must hold the whole image, False if it must stay inside, None for neither.
        """
        low, high = self.end - (1 - self.after) * frame, self.start - self.before * frame
        if around is True:
            low, high = max(low, self.length - frame), min(high, 0.0)
        elif around is False:
            low, high = max(low, 0.0), min(high, self.length - frame)
        if low > high:  # by rounding, or because the other axis binds: split the difference
            return (low + high) / 2
        return min(max(wanted, low), high)


def margins_of(size: tuple[int, int], box: tuple[float, float, float, float]) -> Margins:
    """Margins that a subject has in its image."""
    left, top, right, bottom = box
    return Margins(left / size[0], top / size[1], (size[0] - right) / size[0], (size[1] - bottom) / size[1])


def frame(
    size: tuple[int, int], request: FrameRequest, subject: tuple[float, float, float, float] | None = None
) -> Frame | None:
    """Find the frame for a request.

    Args:
        size: The image's width and height.
        request: The requested frame.
        subject: The subject's box; needed for margins.

    Returns:
        The frame; None where the image is already within the tolerance of it.

    Raises:
        ModelError: No frame keeps the margins in this mode, or the result would be too large.
    """
    if request.margins and subject is None:
        raise ModelError("No subject was found in the image, and margins are measured from one.")
    aspect = request.size[0] / request.size[1] if request.size else request.aspect or size[0] / size[1]
    has_size = _has_size(size, request, aspect)
    if has_size and _has_margins(size, request, subject):
        return None
    if request.margins and subject is not None:
        found = _around_subject(size, request, aspect, subject)
        if has_size and _is_whole(found, size, request.tolerance):
            return None
    elif request.mode == "scale":
        found = _scaled(size, request, aspect)
    elif _crops(size, request, aspect):
        found = _cut(size, aspect, request.position)
    else:
        found = _padded(size, aspect)
    left, top, width, height = found
    if request.size:
        return Frame(left, top, width, height, request.size)
    result = (max(1, round(width)), max(1, round(height)))
    if max(result) > MAX_SIDE or result[0] * result[1] > MAX_PIXELS:
        raise ModelError(f"The result would be {result[0]} x {result[1]} pixels; give a target size.")
    # Without a target size, pixels are not resampled: round the frame to whole pixels.
    left, top = float(round(left)), float(round(top))
    if request.mode != "scale" and not _adds(found, size):
        left, top = min(max(left, 0.0), size[0] - result[0]), min(max(top, 0.0), size[1] - result[1])
    return Frame(left, top, float(result[0]), float(result[1]), result)


def _adds(found: tuple[float, float, float, float], size: tuple[int, int]) -> bool:
    left, top, width, height = found
    slack = 0.5 + _EPSILON
    return left < -slack or top < -slack or left + width > size[0] + slack or top + height > size[1] + slack


def _has_size(size: tuple[int, int], request: FrameRequest, aspect: float) -> bool:
    tolerance = request.tolerance + _EPSILON
    if request.size:
        return all(abs(have - want) <= tolerance * want for have, want in zip(size, request.size, strict=True))
    # Sides are whole pixels, so an image can miss an aspect by half a pixel.
    return abs(size[0] - size[1] * aspect) <= max(tolerance * size[1] * aspect, 0.5)


def _has_margins(
    size: tuple[int, int], request: FrameRequest, subject: tuple[float, float, float, float] | None
) -> bool:
    if not request.margins or subject is None:
        return True
    if request.mode == "scale":
        return False  # it matches margins exactly, so larger margins do not count as matched
    have = margins_of(size, subject)
    pairs = (
        (have.left, request.margins.left),
        (have.top, request.margins.top),
        (have.right, request.margins.right),
        (have.bottom, request.margins.bottom),
    )
    return all(want is None or (is_ or 0.0) >= want - request.tolerance - _EPSILON for is_, want in pairs)


def _is_whole(found: tuple[float, float, float, float], size: tuple[int, int], tolerance: float) -> bool:
    left, top, width, height = found
    across, down = max(0.5, tolerance * size[0]), max(0.5, tolerance * size[1])
    return max(abs(left), abs(left + width - size[0])) <= across and max(abs(top), abs(top + height - size[1])) <= down


def _crops(size: tuple[int, int], request: FrameRequest, aspect: float) -> bool:
    if request.mode == "auto":
        return abs(size[0] / size[1] / aspect - 1) <= AUTO_CROP_DIFFERENCE + _EPSILON
    return request.mode == "crop"


def _cut(size: tuple[int, int], aspect: float, position: str) -> tuple[float, float, float, float]:
    width, height = min(size[0], size[1] * aspect), min(size[1], size[0] / aspect)
    across, down = _POSITIONS[position]
    return (size[0] - width) * across, (size[1] - height) * down, width, height


def _padded(size: tuple[int, int], aspect: float) -> tuple[float, float, float, float]:
    width, height = max(size[0], size[1] * aspect), max(size[1], size[0] / aspect)
    return (size[0] - width) / 2, (size[1] - height) / 2, width, height


def _scaled(size: tuple[int, int], request: FrameRequest, aspect: float) -> tuple[float, float, float, float]:
    if request.proportions is None:
        return _padded(size, aspect)
    if request.proportions == "height":
        width, height = size[1] * aspect, float(size[1])
    else:
        width, height = float(size[0]), size[0] / aspect
    return (size[0] - width) / 2, (size[1] - height) / 2, width, height


def _around_subject(
    size: tuple[int, int], request: FrameRequest, aspect: float, subject: tuple[float, float, float, float]
) -> tuple[float, float, float, float]:
    margins = request.margins
    across = _span(size[0], subject[0], subject[2], margins.left, margins.right)
    down = _span(size[1], subject[1], subject[3], margins.top, margins.bottom)
    if request.mode == "scale":
        return _scaled_around(request, aspect, across, down)
    least = max(down.least, across.least / aspect)
    most = min(down.longest_inside, across.longest_inside / aspect)
    if _crops(size, request, aspect) and least <= most + _EPSILON:
        height, around = most, False
    elif request.mode == "crop":
        raise ModelError("Cropping alone cannot leave the margins that are asked for; use the mode pad or auto.")
    else:
        height, around = max(down.least_around, across.least_around / aspect), True
    width = height * aspect
    left = across.place(width, (size[0] - width) / 2, around=around)
    return left, down.place(height, (size[1] - height) / 2, around=around), width, height


def _scaled_around(
    request: FrameRequest, aspect: float, across: _AxisSpan, down: _AxisSpan
) -> tuple[float, float, float, float]:
    """Zoom to the subject: the binding axis gets exactly its margins, the other is centred."""
    height = max(down.least, across.least / aspect)
    if request.proportions == "height":
        height = down.least
    elif request.proportions == "width":
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
