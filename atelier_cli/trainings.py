"""What is seen of a training while it runs: stage, steps, losses, and the files that come of it."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from atelier_cli.client import Gateway, segment
from atelier_cli.errors import CliError
from atelier_cli.files import save
from atelier_cli.sparkline import sparkline

PATH: Final = "/api/v1/training/"
_SMOOTHING: Final = 0.05
# The curve is kept as so many points, so that days of steps take no memory.
_MOST_POINTS: Final = 4000
_MINUTE: Final = 60
_HOUR: Final = 3600


def training_path(training_id: str, rest: str = "") -> str:
    """Return the path of a training, or of something of it."""
    return f"{PATH}{segment(training_id)}{rest}"


@dataclass(slots=True)
class TrainingView:
    """A training as its events have shown it so far.

    Attributes:
        training: Its last state.
        losses: Losses, smoothed, in the order of the steps.
        measured: Mean loss on the validation set by step.
    """

    training: dict[str, Any] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)
    measured: dict[int, float] = field(default_factory=dict)

    def take(self, event: Mapping[str, Any]) -> None:
        """Take an event of the training's stream."""
        self.training = dict(event["training"])
        for point in event.get("losses") or ():
            before = self.losses[-1] if self.losses else point["loss"]
            self.losses.append(before + _SMOOTHING * (point["loss"] - before))
        if len(self.losses) > _MOST_POINTS:
            self.losses = self.losses[1::2]
        by_step: defaultdict[int, list[float]] = defaultdict(list)
        for point in event.get("validation") or ():
            by_step[point["step"]].append(point["loss"])
        self.measured |= {step: sum(found) / len(found) for step, found in by_step.items()}

    @property
    def stage(self) -> str:
        """What it is at, with counts: `validating 3 of 10`, `step 250 of 1000, 3 min left`."""
        task = self.training
        status = str(task["status"])
        if status == "PREPROCESSING":
            counted = task.get("total_files_count") is not None
            count = f" {task.get('processed_files_count') or 0} of {task['total_files_count']}" if counted else ""
            return f"{task.get('preprocessing_stage') or 'preparing'}{count}"
        if status == "TRAINING":
            eta = task.get("eta_seconds")
            left = f", {span(eta)} left" if eta is not None else ""
            return f"step {task['current_step']} of {task['total_steps']}{left}"
        return "waiting for a trainer" if status == "PENDING" else status.lower()

    @property
    def curve(self) -> str:
        """The loss so far on one line; empty before the first step."""
        if not self.losses:
            return ""
        told = f"loss {self.losses[-1]:.4f}  {sparkline(self.losses)}"
        if self.measured:
            step = max(self.measured)
            told += f"  validation {self.measured[step]:.4f} at step {step}"
        return told


class TrainingFiles:
    """Saves what a training shows beside the pictures that it learns from: samples as they come, and the loss curve.

    Args:
        gateway: Where they are.
        training_id: The training.
        folder: Where they go.
    """

    def __init__(self, gateway: Gateway, training_id: str, folder: Path) -> None:
        self._gateway = gateway
        self._id = training_id
        self._folder = folder
        self._seen: set[str] = set()

    def take(self, event: Mapping[str, Any]) -> list[Path]:
        """Save the samples of an event, and the curve where there are any; return the new files of samples."""
        samples = [one for one in event.get("samples") or () if one["path"] not in self._seen]
        saved = []
        for sample in samples:
            place = self._folder / f"step-{sample['step']:06d}-{sample['index']}.png"
            self._gateway.download(sample["path"], place)
            self._seen.add(sample["path"])
            saved.append(place)
        if samples:
            self.curve()
        return saved

    def curve(self) -> Path | None:
        """Save the curve as it is now; None before the first step."""
        place = self._folder / "loss.svg"
        try:
            drawing = self._gateway.fetch(training_path(self._id, "/loss.svg"))
        except CliError:
            return None  # there are no steps to draw yet; what cannot be reached is told by the stream
        save(place, drawing)
        return place


def span(seconds: float) -> str:
    """Return a length of time as people say it: `40 s`, `3 min`, `2 h 5 min`."""
    whole = int(seconds)
    if whole < _MINUTE:
        return f"{whole} s"
    if whole < _HOUR:
        return f"{whole // _MINUTE} min"
    return f"{whole // _HOUR} h {whole % _HOUR // _MINUTE} min"


def require_trained(training: Mapping[str, Any]) -> None:
    """Raise unless a training has completed.

    Raises:
        CliError: It failed or was cancelled.
    """
    if training["status"] == "COMPLETED":
        return
    why = training.get("error_message") or "no reason was given"
    what = "was cancelled" if training["status"] == "CANCELLED" else f"failed: {why.rstrip('.')}"
    raise CliError(f"Training {training['id']} {what}.")
