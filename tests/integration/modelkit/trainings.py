"""What tests of trainings share: a watcher that remembers, and a few drawn pictures."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file

from modelkit.device import Device
from modelkit.training.dataset import Dataset, Example
from modelkit.training.plan import TrainingPlan
from modelkit.training.trainer import TrainedAdapter, train
from modelkit.training.watching import Sample, StepReport, Stop, ValidationPoint


@dataclass
class Heard:
    """Hears of a training, and stops it after a step."""

    stop_after: int | None = None
    stop: Stop = Stop.DRAIN
    wanted: dict[int, list[str]] = field(default_factory=dict)
    steps: list[StepReport] = field(default_factory=list)
    points: list[ValidationPoint] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    states: dict[int, Path] = field(default_factory=dict)
    saves: dict[int, Path] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    encoded: list[tuple[int, int]] = field(default_factory=list)

    def stopping(self) -> Stop | None:
        return self.stop if self.stop_after is not None and self._done() >= self.stop_after else None

    def wanted_samples(self) -> Sequence[str]:
        return self.wanted.pop(self._done(), [])

    def cached(self, done: int, total: int) -> None:
        self.encoded.append((done, total))

    def stepped(self, report: StepReport) -> None:
        self.steps.append(report)

    def validated(self, points: Sequence[ValidationPoint]) -> None:
        self.points.extend(points)

    def sampled(self, sample: Sample) -> None:
        self.samples.append(sample)

    def kept_state(self, step: int, folder: Path) -> None:
        self.states[step] = folder

    def kept_save(self, step: int, file: Path) -> None:
        self.saves[step] = file

    def noted(self, line: str) -> None:
        self.lines.append(line)

    def _done(self) -> int:
        return self.steps[-1].step if self.steps else 0


def run(plan: TrainingPlan, dataset: Dataset, folder: Path, heard: Heard, resume: Path | None = None) -> TrainedAdapter:
    return train(plan, dataset, folder=folder, resume=resume, watcher=heard, device=Device("cpu"))


def equal(one: Path, other: Path) -> bool:
    a, b = load_file(one), load_file(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def draw_dataset(folder: Path, *, masks: bool = False) -> Dataset:
    """Three pictures of two sizes."""
    examples = []
    for number, (colour, bucket) in enumerate((("red", (64, 64)), ("blue", (64, 64)), ("green", (64, 48)))):
        picture = Image.new("RGB", bucket, "white")
        picture.paste(colour, (16, 16, 40, 40))
        picture.save(folder / f"{number}.png")
        mask = None
        if masks:
            mask = folder / f"{number}-mask.png"
            marked = Image.new("L", bucket, 0)
            marked.paste(255, (16, 16, 40, 40))
            marked.save(mask)
        caption = "[trigger]" if number else f"a {colour} square"
        examples.append(Example(folder / f"{number}.png", caption, bucket, mask))
    return Dataset.of(examples)
