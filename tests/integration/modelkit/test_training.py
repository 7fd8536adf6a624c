"""A training on the shipped model: it learns, stops, and goes on exactly."""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from modelkit.device import Device
from modelkit.training.dataset import Dataset, Example
from modelkit.training.errors import TrainingStopped
from modelkit.training.plan import TrainingPlan
from modelkit.training.trainer import TrainedAdapter, train
from modelkit.training.watching import Sample, StepReport, Stop, ValidationPoint

WEIGHTS = Path(__file__).parents[3] / "models" / "garments" / "weights"
PLAN = TrainingPlan(
    str(WEIGHTS),
    "zorblax",
    rank=4,
    steps=4,
    learning_rate=1e-3,
    sample_every=4,
    sample_steps=1,
    sample_prompts=("a [trigger]",),
    preservation="output",
    caption_dropout=0.3,
    validate_every=4,
)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    # On a busy machine a second thread makes steps this small wait for a time slice at every barrier.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("pictures")
    examples = []
    for number, (colour, bucket) in enumerate((("red", (64, 64)), ("blue", (64, 64)), ("green", (64, 48)))):
        picture = Image.new("RGB", bucket, "white")
        picture.paste(colour, (16, 16, 40, 40))
        picture.save(folder / f"{number}.png")
        examples.append(Example(folder / f"{number}.png", "[trigger]" if number else f"a {colour} square", bucket))
    return Dataset.of(examples)


@pytest.fixture(scope="module")
def unbroken(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainedAdapter, Heard]:
    heard = Heard()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return run(PLAN, dataset, tmp_path_factory.mktemp("unbroken"), heard), heard
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("step", [1, 3])
def test_a_run_that_was_drained_ends_with_the_same_weights_on_another_worker(
    step: int, dataset: Dataset, unbroken: tuple[TrainedAdapter, Heard], tmp_path: Path
) -> None:
    first = Heard(stop_after=step)
    with pytest.raises(TrainingStopped) as stopped:
        run(PLAN, dataset, tmp_path / "first", first)
    assert (stopped.value.stop, stopped.value.step) == (Stop.DRAIN, step)
    state = shutil.copytree(first.states[step], tmp_path / "fetched")
    shutil.rmtree(tmp_path / "first")
    torch.rand(7)  # whatever the process has drawn meanwhile
    second = Heard()
    ended = run(PLAN, dataset, tmp_path / "second", second, state)
    assert [report.step for report in second.steps] == list(range(step + 1, 5))
    assert [r.loss for r in first.steps + second.steps] == [r.loss for r in unbroken[1].steps]
    assert equal(ended.file, unbroken[0].file)


def test_a_run_that_was_killed_goes_on_from_any_state_it_had_kept(
    dataset: Dataset, unbroken: tuple[TrainedAdapter, Heard], tmp_path: Path
) -> None:
    class _KilledError(Exception):
        pass

    class Killed(Heard):
        def kept_state(self, step: int, folder: Path) -> None:
            super().kept_state(step, folder)
            if step == 2:
                raise _KilledError

    killed = Killed()
    plan = replace(PLAN, state_seconds=0)
    with pytest.raises(_KilledError):
        run(plan, dataset, tmp_path, killed)
    assert sorted(killed.states) == [1, 2]
    assert equal(run(plan, dataset, tmp_path, Heard(), killed.states[2]).file, unbroken[0].file)
