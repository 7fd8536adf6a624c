"""Have a part of a picture redrawn until it passes a check: the attempts, and what a photo network draws.

Who draws is given: the network of this machine, or a service that edits pictures. An attempt that fails the check is
followed by another one, up to a number; of those that all fail the best is known.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np
from PIL import Image

from modelkit.consistency import ConsistencyCheck, Scores
from modelkit.patches import Floats, Pixels

Done = Callable[[float], None]

Draw = Callable[[int, Done], Floats]
"""Redraws the part: attempt number from 0, takes the share that is done; returns RGB of the part's size, 0 to 1."""

STRENGTHS = (1.0, 0.75, 0.5, 0.35, 0.25)
"""Share of a drawing in the result, by attempt, where the drawing itself would not change."""


class Restorer(Protocol):
    """Redraws a picture four times as large (`modelkit.upscale.Upscaler`)."""

    def restore(self, image: Image.Image, step: Callable[[int, int], None] | None = None) -> Image.Image:
        """Redraw; `step` is called with (tiles done, tiles in all), and may raise to stop."""
        ...


@dataclass(frozen=True, slots=True)
class Redrawn:
    """What came of the attempts.

    Attributes:
        scores: What the check measured of the best attempt.
        pixels: The best attempt: RGB, 0 to 1.
        attempts: Times that the part was redrawn.
        tried: Every attempt, in order: RGB, 8 bits; empty unless asked for.
    """

    scores: Scores
    pixels: Floats
    attempts: int
    tried: tuple[Pixels, ...]


def best_attempt(
    before: Pixels,
    draw: Draw,
    check: ConsistencyCheck,
    max_retries: int,
    done: Done,
    *,
    compared: tuple[int, int] | None = None,
    keep_tried: bool = False,
) -> Redrawn:
    """Have a part redrawn until it passes, or the attempts are used up.

    Args:
        before: The part as it is, RGB.
        draw: Redraws it.
        check: Judges each attempt against `before`.
        max_retries: Attempts beyond the first.
        done: Called with the share that is done, 0 to 1; may raise to stop.
        compared: Width and height to which both are reduced before they are compared; None leaves them as they are.
        keep_tried: Whether to keep every attempt.
    """
    calls = max_retries + 1
    was = before if compared is None else resized(before, compared)
    best: tuple[Scores, Floats] | None = None
    tried: list[Pixels] = []
    made = 0
    for attempt in range(calls):

        def share(within: float, attempt: int = attempt) -> None:
            done((attempt + within) / calls)

        candidate = draw(attempt, share)
        after = np.asarray((candidate * 255).round().clip(0, 255), np.uint8)
        scores = check.measure(was, after if compared is None else resized(after, compared))
        made += 1
        if keep_tried:
            tried.append(after)
        share(1.0)
        if best is None or scores.margin > best[0].margin:
            best = scores, candidate
        if scores.passed:
            break
    assert best is not None  # there is at least one attempt
    return Redrawn(best[0], best[1], made, tuple(tried))


def strength_of(attempt: int) -> float:
    """Return the share of the drawing in the result of an attempt, from 0."""
    return STRENGTHS[min(attempt, len(STRENGTHS) - 1)]


def drawn_by(restorer: Restorer, copy: Pixels, plain: Pixels, done: Done) -> Floats:
    """Draw a part from a copy of it; what is finer than the drawing stays.

    Args:
        restorer: Draws four times as large.
        copy: What it draws from, RGB.
        plain: The part as it is at the size that is wanted, RGB.
        done: Called with the share that is done, 0 to 1; may raise to stop.

    Returns:
        RGB of the size of `plain`, around 0 to 1.
    """
    made = np.asarray(restorer.restore(Image.fromarray(copy), lambda finished, total: done(finished / total)))
    size = (plain.shape[1], plain.shape[0])
    drawn = np.asarray(resized(made, size) / 255, np.float32)
    if made.shape[1] < size[0]:
        coarse = resized(resized(plain, (made.shape[1], made.shape[0])), size)
        drawn += np.asarray(plain - coarse.astype(np.float32), np.float32) / 255
    return drawn


def fitting(width: float, height: float, longest: int) -> tuple[int, int]:
    """Return the size of this aspect whose longer side is `longest` pixels."""
    scale = longest / max(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def resized(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    """Resize RGB to (width, height): by areas where it becomes smaller, else by a bicubic filter."""
    if (pixels.shape[1], pixels.shape[0]) == size:
        return pixels
    smaller = size[0] < pixels.shape[1]
    made = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if smaller else cv2.INTER_CUBIC)
    return np.asarray(made, np.uint8)
