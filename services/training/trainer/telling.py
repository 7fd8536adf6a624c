"""Tells the training service of steps as they are taken, about once a second and all together."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping
from typing import Any

from atelier.tasks.v1.worker_service_pb2 import AttemptRef
from atelier.training.v1.trainer_service_pb2 import ReportStepsRequest
from atelier.training.v1.training_pb2 import LossPoint, ValidationPoint

from services.training.trainer.service_calls import TrainerCalls

_INTERVAL_SECONDS = 1.0
_MOST_LOSSES = 10_000  # bounds of ReportStepsRequest
_MOST_POINTS = 1_000
_MOST_LINES = 200
_MOST_CHARS = 2_000


class StepReports:
    """Collects what a training reports, and tells it.

    Args:
        calls: The training service.
        ref: The attempt.
        wanted: Takes prompts that somebody wants a picture of now.
        interval: Seconds between two reports.
    """

    def __init__(
        self,
        calls: TrainerCalls,
        ref: AttemptRef,
        wanted: Callable[[list[str]], None],
        *,
        interval: float = _INTERVAL_SECONDS,
    ) -> None:
        self._calls = calls
        self._ref = ref
        self._wanted = wanted
        self._interval = interval
        self._step = 0
        self._eta: float | None = None
        self._losses: list[LossPoint] = []
        self._points: list[ValidationPoint] = []
        self._lines: list[str] = []
        self._fresh = asyncio.Event()
        self._sending = asyncio.Lock()

    def stepped(self, report: Mapping[str, Any]) -> None:
        """Note a step."""
        self._step, self._eta = report["step"], report["eta_seconds"]
        self._losses.append(LossPoint(step=self._step, loss=report["loss"]))
        self._fresh.set()

    def validated(self, step: int, losses: Mapping[str, float]) -> None:
        """Note losses on the validation set, by range of noise levels."""
        self._step = max(self._step, step)
        self._points += [ValidationPoint(step=step, bucket=bucket, loss=loss) for bucket, loss in losses.items()]
        self._fresh.set()

    def noted(self, line: str) -> None:
        """Note a line for the training's log."""
        self._lines.append(line[:_MOST_CHARS])
        self._fresh.set()

    async def run(self) -> None:
        """Report what is new, until cancelled."""
        while True:
            await self._fresh.wait()
            await self.flush()
            await asyncio.sleep(self._interval)

    async def flush(self) -> None:
        """Report all that is new now; returns once it is told."""
        async with self._sending:
            while self._fresh.is_set():
                self._fresh.clear()
                losses, self._losses = self._losses[:_MOST_LOSSES], self._losses[_MOST_LOSSES:]
                points, self._points = self._points[:_MOST_POINTS], self._points[_MOST_POINTS:]
                lines, self._lines = self._lines[:_MOST_LINES], self._lines[_MOST_LINES:]
                if self._losses or self._points or self._lines:
                    self._fresh.set()
                request = ReportStepsRequest(
                    ref=self._ref,
                    step=losses[-1].step if losses and self._losses else self._step,
                    eta_seconds=None if self._eta is None else math.ceil(self._eta),
                    losses=losses,
                    validation=points,
                    log_lines=lines,
                )
                response = await self._calls.steps(request)
                if response.sample_prompts:
                    self._wanted(list(response.sample_prompts))
