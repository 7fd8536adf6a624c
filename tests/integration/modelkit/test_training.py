"""A training on the shipped model: wherever it is broken off, it ends with the same weights."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from modelkit.errors import ModelErrorKind
from modelkit.training.dataset import Dataset, Example
from modelkit.training.errors import TrainingFailed, TrainingStopped
from modelkit.training.plan import TrainingPlan
from modelkit.training.trainer import TrainedAdapter
from modelkit.training.watching import Stop
from tests.integration.modelkit.trainings import Heard, draw_dataset, equal, run

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


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    # On a busy machine a second thread makes steps this small wait for a time slice at every barrier.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return draw_dataset(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def unbroken(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainedAdapter, Heard]:
    heard = Heard()
    return run(PLAN, dataset, tmp_path_factory.mktemp("unbroken"), heard), heard


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
    assert [report.loss for report in first.steps + second.steps] == [report.loss for report in unbroken[1].steps]
    assert equal(ended.file, unbroken[0].file)


def test_a_run_that_was_killed_goes_on_from_the_state_it_had_kept(
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


def test_a_run_that_is_continued_equals_one_that_was_longer_from_the_start(
    dataset: Dataset, unbroken: tuple[TrainedAdapter, Heard], tmp_path: Path
) -> None:
    ended = Heard()
    run(replace(PLAN, steps=2), dataset, tmp_path, ended)
    longer = run(PLAN, dataset, tmp_path, Heard(), ended.states[2])
    assert equal(longer.file, unbroken[0].file)


def test_what_is_drawn_and_measured_in_between_changes_no_weight(
    dataset: Dataset, unbroken: tuple[TrainedAdapter, Heard], tmp_path: Path
) -> None:
    plan = replace(PLAN, sample_every=1, save_every=1, validate_every=1, sample_prompts=("a", "b"))
    heard = Heard(wanted={2: ["[trigger] now"]})
    assert equal(run(plan, dataset, tmp_path, heard).file, unbroken[0].file)
    drawn = [(sample.step, sample.index, sample.seed, sample.prompt) for sample in heard.samples]
    assert drawn[:3] == [(0, 0, 42, "a"), (0, 1, 43, "b"), (1, 0, 42, "a")]
    assert (2, 2, 44, "zorblax now") in drawn
    assert sorted(heard.saves) == [1, 2, 3]
    assert all(sample.path.read_bytes().startswith(b"\x89PNG") for sample in heard.samples)


def test_what_a_run_tells_is_complete(unbroken: tuple[TrainedAdapter, Heard]) -> None:
    heard = unbroken[1]
    assert heard.encoded[-1][0] == heard.encoded[-1][1]
    assert [done for done, _ in heard.encoded] == sorted(done for done, _ in heard.encoded)
    assert [report.step for report in heard.steps] == [1, 2, 3, 4]
    assert all(report.preservation is not None for report in heard.steps)
    assert heard.steps[0].eta_seconds is None
    assert heard.steps[2].eta_seconds is not None
    assert heard.steps[3].eta_seconds is None
    assert [(point.step, point.bucket) for point in heard.points] == [(s, b) for s in (0, 4) for b in range(4)]
    assert [(sample.step, sample.seed) for sample in heard.samples] == [(0, 42), (4, 42)]
    assert list(heard.states) == [4]
    assert any("8-bit AdamW needs CUDA" in line for line in heard.lines)


@pytest.mark.parametrize("what", ["pictures", "rank"])
def test_a_state_of_another_training_is_refused(
    what: str, dataset: Dataset, unbroken: tuple[TrainedAdapter, Heard], tmp_path: Path
) -> None:
    plan = replace(PLAN, rank=8) if what == "rank" else PLAN
    if what == "pictures":
        first, *others = dataset.examples
        dataset = Dataset.of([Example(first.image, "another caption", first.bucket), *others])
    with pytest.raises(TrainingFailed, match=what) as refused:
        run(plan, dataset, tmp_path, Heard(), unbroken[1].states[4])
    assert refused.value.category == ModelErrorKind.VALIDATION
