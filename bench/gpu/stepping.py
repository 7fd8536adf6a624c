"""Seconds a step, taken from outside: the time of many steps, less the time of few."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

from bench.gpu.setting import Scale


@dataclass(frozen=True, slots=True)
class Steps:
    """What the steps of a picture take.

    Attributes:
        step: Seconds of one step.
        few: Seconds of a whole picture of few steps.
        many: Seconds of a whole picture of many steps.
    """

    step: float
    few: float
    many: float


def take(make: Callable[[int], float], scale: Scale) -> Steps:
    """Make pictures of few and of many steps in turn, and compare their medians.

    Args:
        make: Makes a picture of so many steps, and returns the seconds it took.
        scale: How many steps and how often.
    """
    few, many = scale.steps
    pairs = [(make(few), make(many)) for _ in range(scale.rounds)]
    short, long = (statistics.median(times) for times in zip(*pairs, strict=True))
    return Steps((long - short) / (many - few), short, long)
