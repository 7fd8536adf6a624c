"""The losses of a training as a picture that a person can read: SVG, or PNG of the same lines.

The loss of single steps is noise: it is drawn faintly, with its smoothed course above it. What tells whether a training
learns, or learns by heart, is the loss on the fixed validation set, by how much noise is in the picture.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import Literal

from PIL import Image, ImageColor, ImageDraw, ImageFont

from services.training.domain import LossRecord, ValidationRecord

WIDTH, HEIGHT = 960, 540
_LEFT, _RIGHT, _TOP, _BOTTOM = 72, 104, 64, 56
_LINE = 14.0
_TICKS = 5
# A share of the highest losses of single steps may leave the picture: one bad step would flatten all others.
_SHOWN_SHARE = 0.98
_SMOOTHING_STEPS = 40
_PNG_SCALE = 2
# Okabe and Ito's colours, which people of every colour vision tell apart.
_VALIDATION_COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")


@dataclass(frozen=True, slots=True)
class CurveColours:
    """Colours of a picture."""

    ground: str
    ink: str
    faint: str
    grid: str
    steps: str
    smoothed: str


THEMES = {
    "light": CurveColours("#ffffff", "#1f2328", "#59636e", "#d8dee4", "#b9c1ca", "#24292f"),
    "dark": CurveColours("#0d1117", "#f0f6fc", "#9198a1", "#2d333b", "#4b535d", "#f0f6fc"),
}


@dataclass(frozen=True, slots=True)
class _CurveStroke:
    """A line through points."""

    points: Sequence[tuple[float, float]]
    colour: str
    width: float
    dashed: bool = False


@dataclass(frozen=True, slots=True)
class _CurveLabel:
    """A text at a place."""

    x: float
    y: float
    text: str
    colour: str
    size: int
    anchor: Literal["start", "middle", "end"] = "start"


@dataclass(frozen=True, slots=True)
class _CurveScale:
    """Where a step and a loss stand in the picture."""

    first: float
    last: float
    low: float
    high: float

    def place(self, step: float, loss: float) -> tuple[float, float]:
        """Return the point of a loss, inside of the frame."""
        across = (step - self.first) / (self.last - self.first)
        up = min(1.0, max(0.0, (loss - self.low) / (self.high - self.low)))
        return _LEFT + across * (WIDTH - _LEFT - _RIGHT), HEIGHT - _BOTTOM - up * (HEIGHT - _TOP - _BOTTOM)


def smoothed(losses: Sequence[LossRecord]) -> list[LossRecord]:
    """Return losses smoothed: a mean that forgets over some 40 steps, unbiased at its beginning."""
    found: list[LossRecord] = []
    mean = weight = 0.0
    last = losses[0].step - 1 if losses else 0
    for one in losses:
        keep = math.exp(-max(1, one.step - last) / _SMOOTHING_STEPS)
        mean, weight = keep * mean + (1 - keep) * one.loss, keep * weight + (1 - keep)
        found.append(LossRecord(one.step, mean / weight))
        last = one.step
    return found


def as_svg(title: str, losses: Sequence[LossRecord], validation: Sequence[ValidationRecord], theme: str) -> bytes:
    """Return the picture as SVG.

    Args:
        title: What stands above it.
        losses: Losses of steps, in their order.
        validation: Losses on the validation set, in the order of steps.
        theme: `light` or `dark`.
    """
    colours = THEMES[theme]
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'role="img" aria-label="{escape(title)}" font-family="system-ui, sans-serif">'
    )
    lines = [head, f'<rect width="{WIDTH}" height="{HEIGHT}" fill="{colours.ground}"/>']
    strokes, labels = _drawing(title, losses, validation, colours)
    for stroke in strokes:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in stroke.points)
        dash = ' stroke-dasharray="2 4"' if stroke.dashed else ""
        lines.append(
            f'<polyline points="{path}" fill="none" stroke="{stroke.colour}" stroke-width="{stroke.width:g}" '
            f'stroke-linejoin="round"{dash}/>'
        )
    lines += [
        f'<text x="{one.x:.1f}" y="{one.y:.1f}" fill="{one.colour}" font-size="{one.size}" '
        f'text-anchor="{one.anchor}">{escape(one.text)}</text>'
        for one in labels
    ]
    return "\n".join([*lines, "</svg>", ""]).encode()


def as_png(title: str, losses: Sequence[LossRecord], validation: Sequence[ValidationRecord], theme: str) -> bytes:
    """Return the picture as PNG, at twice the size for screens of high resolution; see `as_svg`."""
    colours = THEMES[theme]
    image = Image.new("RGB", (WIDTH * _PNG_SCALE, HEIGHT * _PNG_SCALE), ImageColor.getrgb(colours.ground))
    draw = ImageDraw.Draw(image)
    strokes, labels = _drawing(title, losses, validation, colours)
    for stroke in strokes:
        points = [(x * _PNG_SCALE, y * _PNG_SCALE) for x, y in stroke.points]
        width = max(1, round(stroke.width * _PNG_SCALE))
        if stroke.dashed:
            for (x, y), (other, _) in pairwise(points):
                for at in range(int(x), int(other), 12):
                    draw.line([(at, y), (at + 4, y)], fill=stroke.colour, width=width)
        else:
            draw.line(points, fill=stroke.colour, width=width, joint="curve")
    anchors = {"start": "ls", "middle": "ms", "end": "rs"}
    for one in labels:
        font = ImageFont.load_default(one.size * _PNG_SCALE)
        place = (one.x * _PNG_SCALE, one.y * _PNG_SCALE)
        draw.text(place, one.text, fill=one.colour, font=font, anchor=anchors[one.anchor])
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return file.getvalue()


def _drawing(
    title: str, losses: Sequence[LossRecord], validation: Sequence[ValidationRecord], colours: CurveColours
) -> tuple[list[_CurveStroke], list[_CurveLabel]]:
    """Return the lines of a picture, those behind first, and its texts."""
    labels = [_CurveLabel(_LEFT, 30, title, colours.ink, 17)]
    if not losses and not validation:
        text = "No step has been taken yet"
        return [], [*labels, _CurveLabel(WIDTH / 2, HEIGHT / 2, text, colours.faint, 15, "middle")]
    scale = _scale(losses, validation)
    strokes, named = _frame(scale, colours)
    labels += named
    losses = [one for one in losses if math.isfinite(one.loss)]
    if losses:
        x = float(_LEFT)
        for text, points, colour, width in (
            ("loss of a step", losses, colours.steps, 1.0),
            ("smoothed", smoothed(losses), colours.smoothed, 2.2),
        ):
            strokes.append(_CurveStroke(_course(points, scale), colour, width))
            strokes.append(_CurveStroke([(x, 47), (x + 18, 47)], colour, 3))
            labels.append(_CurveLabel(x + 24, 51, text, colours.faint, 12))
            x += 130
    lines, named = _validation(validation, scale, colours)
    return [*strokes, *lines], [*labels, *named]


def _frame(scale: _CurveScale, colours: CurveColours) -> tuple[list[_CurveStroke], list[_CurveLabel]]:
    """Return the lines and numbers behind the losses."""
    strokes, labels = [], []
    for tick in _ticks(scale.low, scale.high):
        start, end = scale.place(scale.first, tick), scale.place(scale.last, tick)
        strokes.append(_CurveStroke([start, end], colours.grid, 1, dashed=True))
        labels.append(_CurveLabel(_LEFT - 10, start[1] + 4, f"{tick:g}", colours.faint, 12, "end"))
    for tick in _ticks(scale.first, scale.last):
        x, y = scale.place(tick, scale.low)
        labels.append(_CurveLabel(x, y + 20, f"{tick:g}", colours.faint, 12, "middle"))
    labels.append(_CurveLabel((_LEFT + WIDTH - _RIGHT) / 2, HEIGHT - 12, "step", colours.faint, 12, "middle"))
    return strokes, labels


def _validation(
    validation: Sequence[ValidationRecord], scale: _CurveScale, colours: CurveColours
) -> tuple[list[_CurveStroke], list[_CurveLabel]]:
    """Return the lines of the validation set, each named at its end."""
    buckets: dict[str, list[ValidationRecord]] = {}
    for one in validation:
        if math.isfinite(one.loss):
            buckets.setdefault(one.bucket, []).append(one)
    strokes, labels = [], []
    ends: list[tuple[float, str, str]] = []
    for index, (bucket, points) in enumerate(sorted(buckets.items())):
        colour = _VALIDATION_COLOURS[index % len(_VALIDATION_COLOURS)]
        course = _course(points, scale)
        strokes.append(_CurveStroke(course, colour, 2))
        ends.append((course[-1][1], f"noise {bucket}", colour))
    if ends:
        text = "on the right: loss on the validation set, by noise"
        labels.append(_CurveLabel(_LEFT + 260, 51, text, colours.faint, 12))
    lowest = 0.0
    for y, text, colour in sorted(ends):
        lowest = max(y + 4, lowest + _LINE)  # below the name before
        labels.append(_CurveLabel(WIDTH - _RIGHT + 8, lowest, text, colour, 12))
    return strokes, labels


def _course(points: Sequence[LossRecord | ValidationRecord], scale: _CurveScale) -> list[tuple[float, float]]:
    """Return the line through points; a single one is a short dash."""
    course = [scale.place(one.step, one.loss) for one in points]
    return course if len(course) > 1 else [*course, (course[0][0] + 8, course[0][1])]


def _scale(losses: Sequence[LossRecord], validation: Sequence[ValidationRecord]) -> _CurveScale:
    single = sorted(one.loss for one in losses if math.isfinite(one.loss))
    shown = single[: max(1, math.ceil(len(single) * _SHOWN_SHARE))] if single else []
    shown += [one.loss for one in smoothed(losses) if math.isfinite(one.loss)]
    shown += [one.loss for one in validation if math.isfinite(one.loss)]
    low, high = (min(shown), max(shown)) if shown else (0.0, 1.0)
    margin = (high - low) * 0.06 or max(abs(high) * 0.1, 1e-3)
    steps = [one.step for one in losses] + [one.step for one in validation]
    first, last = min(steps), max(steps)
    return _CurveScale(first, last if last > first else first + 1, max(0.0, low - margin), high + margin)


def _ticks(low: float, high: float) -> list[float]:
    """Return round numbers between two, about five."""
    rough = (high - low) / _TICKS
    size = 10.0 ** math.floor(math.log10(rough))
    size *= next(factor for factor in (1, 2, 5, 10) if factor * size >= rough)
    first = math.ceil(low / size)
    return [round(number * size, 10) for number in range(first, math.floor(high / size + 1e-9) + 1)]
