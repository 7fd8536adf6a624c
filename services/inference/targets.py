"""The size that a REFINE task's result has, whoever makes it."""

from __future__ import annotations

import math

from atelier.tasks.v1.enums_pb2 import ERROR_CATEGORY_VALIDATION
from atelier.tasks.v1.refine_pb2 import CreateRefineTask

from meshkit.worker.handlers import TaskFailed

MAX_SIDE = 8192


def target_size(size: tuple[int, int], requested: CreateRefineTask) -> tuple[int, int]:
    """Return the size of the result: by the factor, else both sides, else one side and the picture's aspect.

    Raises:
        TaskFailed: Nothing is asked for, or the result would be larger than 8192 pixels a side.
    """
    width, height = size
    across = requested.target_width if requested.HasField("target_width") else None
    down = requested.target_height if requested.HasField("target_height") else None
    if requested.HasField("upscale_factor"):
        if across is not None or down is not None:
            raise _invalid("upscale_factor excludes target_width and target_height.")
        factor = requested.upscale_factor
        field, found = "upscale_factor", (_scaled(width, factor), _scaled(height, factor))
    elif across is not None:
        field, found = "target_width", (across, _scaled(height, across / width) if down is None else down)
    elif down is not None:
        field, found = "target_height", (_scaled(width, down / height), down)
    else:
        raise _invalid("upscale_factor, target_width or target_height is required where upscale_enabled is true.")
    if max(found) > MAX_SIDE:
        raise _invalid(
            f"{field}: the result would be {found[0]} x {found[1]} pixels, and may have {MAX_SIDE} a side; the "
            f"picture has {width} x {height}."
        )
    return found


def _scaled(side: int, factor: float) -> int:
    # Halves are rounded up, and never to even numbers: 3 pixels by 1.5 are 5, 5 by 1.5 are 8.
    return max(1, math.floor(side * factor + 0.5))


def _invalid(message: str) -> TaskFailed:
    return TaskFailed(message, ERROR_CATEGORY_VALIDATION, retryable=False)
