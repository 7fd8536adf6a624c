"""Stages of a recipe go on where they stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from models.garments.stages import Stage, StageClock, run_stage


class _StoppedError(Exception):
    pass


def _run(out: Path, stage: Stage) -> None:
    run_stage(out, stage, 600, step_limit=6, save_seconds=0)


def test_stage_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    taken: list[int] = []
    value = {"sum": 0}

    def stage(*, stop_at: int) -> Stage:
        def step(clock: StageClock) -> float:
            if clock.steps == stop_at:
                raise _StoppedError
            taken.append(clock.steps)
            value["sum"] += 1
            return 0.0

        def restore(state: dict[str, Any]) -> None:
            value["sum"] = state["sum"]

        return Stage("text", step, lambda: dict(value), restore)

    with pytest.raises(_StoppedError):
        _run(tmp_path, stage(stop_at=4))
    value["sum"] = 0
    _run(tmp_path, stage(stop_at=-1))
    assert taken == [0, 1, 2, 3, 4, 5]
    assert value["sum"] == 6
    _run(tmp_path, stage(stop_at=0))  # over: no step is taken, or it would raise
    assert value["sum"] == 6


def test_stage_ends_by_the_clock(tmp_path: Path) -> None:
    steps: list[int] = []

    def step(clock: StageClock) -> float:
        steps.append(clock.steps)
        return 0.0

    run_stage(tmp_path, Stage("text", step, dict, lambda _: None), 1e-6)
    assert steps == [0]
