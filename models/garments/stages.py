"""Stages of a recipe: they end by the clock, save their state, and go on where a stopped run left them."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

log = logging.getLogger(__name__)


class StageClock:
    """Time and steps a stage has had, over all of its runs."""

    def __init__(self, budget: float, spent: float, steps: int) -> None:
        self.budget, self.steps = budget, steps
        self._spent, self._since = spent, time.monotonic()

    @property
    def spent(self) -> float:
        """Seconds, of all runs together."""
        return self._spent + time.monotonic() - self._since

    @property
    def progress(self) -> float:
        """How much of the stage is over, 0..1."""
        return min(1.0, self.spent / self.budget)


def write_state(path: Path, state: dict[str, Any]) -> None:
    """Put a state in place whole."""
    fresh = path.with_suffix(".new")
    torch.save(state, fresh)
    fresh.replace(path)  # a stop while writing leaves the older state whole


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of the recipe, for run_stage to repeat.

    Attributes:
        name: Name of the state's file.
        step: One step; returns its loss, which may still be on its way from a device.
        state: Everything a resumed stage needs.
        restore: The inverse of state.
        refresh: Called at intervals and at the end, to export what there is.
    """

    name: str
    step: Callable[[StageClock], float | torch.Tensor]
    state: Callable[[], dict[str, Any]]
    restore: Callable[[dict[str, Any]], None]
    refresh: Callable[[], None] = lambda: None


def run_stage(
    out: Path,
    stage: Stage,
    budget: float,
    *,
    step_limit: int = 0,
    save_seconds: float = 120.0,
    export_seconds: float = 480.0,
) -> None:
    """Repeat a stage's step until its time (or the step limit) is used up, saving as it goes.

    A stage that has ended before is only restored.

    Args:
        out: Folder of the run.
        stage: What to repeat.
        budget: Seconds of the stage, over all of its runs.
        step_limit: Most steps; 0 is no limit.
        save_seconds: Time between two saved states.
        export_seconds: Time between two calls of the stage's refresh.
    """
    name = stage.name
    path = out / "state" / f"{name}.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    spent, steps, done = 0.0, 0, False
    if path.exists():
        saved = torch.load(path, map_location="cpu", weights_only=False)  # our own file: it holds a generator's state
        stage.restore(saved["state"])
        spent, steps, done = saved["spent"], saved["steps"], saved["done"]
        log.info("%s: goes on at step %d after %.0f s", name, steps, spent)
    clock = StageClock(budget, spent, steps)
    saved_at = shown_at = refreshed_at = clock.spent
    losses: deque[float | torch.Tensor] = deque(maxlen=200)
    while not done:
        losses.append(stage.step(clock))
        clock.steps += 1
        now = clock.spent
        done = now >= clock.budget or 0 < step_limit <= clock.steps
        if now - shown_at > 30 or done:
            mean = sum(float(loss) for loss in losses) / len(losses)
            log.info("%s: step %d, loss %.4f, %.0f of %.0f s", name, clock.steps, mean, now, clock.budget)
            shown_at = now
        if now - saved_at > save_seconds or done:
            write_state(path, {"state": stage.state(), "spent": now, "steps": clock.steps, "done": done})
            saved_at = now
        if now - refreshed_at > export_seconds or done:
            stage.refresh()
            refreshed_at = now
