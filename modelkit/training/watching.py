"""What a training tells its caller, and what it asks."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


class Stop(enum.StrEnum):
    """Why a training has to stop."""

    CANCEL = "cancel"
    """Nobody wants it any more: nothing is kept."""
    DRAIN = "drain"
    """Another worker goes on with it: the state of the last step is kept."""


@dataclass(frozen=True, slots=True)
class StepReport:
    """A step that is done.

    Attributes:
        step: Its number, from 1.
        total: Steps of the plan.
        loss: Loss on its pictures; it jumps with what was drawn.
        preservation: Loss of what has to stay as it was; None where nothing is preserved.
        learning_rate: What the optimiser took.
        gradient: Norm of the gradient before it was clipped.
        eta_seconds: Seconds until the last step; None until a rate is known, and after the last step.
    """

    step: int
    total: int
    loss: float
    preservation: float | None
    learning_rate: float
    gradient: float
    eta_seconds: float | None


@dataclass(frozen=True, slots=True)
class ValidationPoint:
    """Loss on the fixed set, of one range of timesteps.

    Attributes:
        step: Steps that were done.
        bucket: The range: 0 is the least noise.
        loss: Mean loss.
    """

    step: int
    bucket: int
    loss: float


@dataclass(frozen=True, slots=True)
class Sample:
    """A picture that was drawn while the network trained.

    Attributes:
        step: Steps that were done.
        index: Which of the prompts, from 0; those that were asked for in between follow the plan's.
        prompt: With the trigger word in place.
        seed: Of its noise.
        path: A PNG.
    """

    step: int
    index: int
    prompt: str
    seed: int
    path: Path


class Watcher(Protocol):
    """Watches a training. It is called by the thread that trains, which waits for it."""

    def stopping(self) -> Stop | None:
        """Tell whether to stop; asked between two steps, and between two pictures that are encoded or drawn."""
        ...

    def wanted_samples(self) -> Sequence[str]:
        """Return prompts to draw now; each is returned once."""
        ...

    def cached(self, done: int, total: int) -> None:
        """Take note of pictures and captions that are encoded, and of what the model draws to be kept as it is."""
        ...

    def stepped(self, report: StepReport) -> None:
        """Take note of a step."""
        ...

    def validated(self, points: Sequence[ValidationPoint]) -> None:
        """Take note of losses on the fixed set, all of one step."""
        ...

    def sampled(self, sample: Sample) -> None:
        """Take note of a picture; its file is whole, and stays."""
        ...

    def kept_state(self, step: int, folder: Path) -> None:
        """Take note of a state to resume from; its folder is whole, and is deleted when the second after it is kept."""
        ...

    def kept_save(self, step: int, file: Path) -> None:
        """Take note of an adapter of a step in between; its file is whole, and stays."""
        ...

    def noted(self, line: str) -> None:
        """Take a line for the training's log."""
        ...
