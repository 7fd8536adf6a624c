"""Datasets, states and adapters as files."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from modelkit.training.dataset import Dataset, Example
from modelkit.training.errors import TrainingFailed
from modelkit.training.files import put_file, put_folder
from modelkit.training.state import RunState, random_state, read_state, restore_random, write_state


def picture(path: Path, colour: str = "red") -> Path:
    Image.new("RGB", (64, 64), colour).save(path)
    return path


def test_a_dataset_comes_back_with_the_same_hash(tmp_path: Path) -> None:
    examples = [
        Example(picture(tmp_path / "a.png"), "[trigger]", (64, 64)),
        Example(picture(tmp_path / "b.png", "blue"), "b", (64, 48), picture(tmp_path / "m.png", "white")),
    ]
    dataset = Dataset.of(examples)
    read = Dataset.read(dataset.write(tmp_path))
    assert read.hash == dataset.hash
    assert [example.caption for example in read.examples] == ["[trigger]", "b"]
    assert read.examples[1].mask is not None


def test_whatever_is_changed_in_a_dataset_changes_its_hash(tmp_path: Path) -> None:
    one = Example(picture(tmp_path / "a.png"), "a", (64, 64))
    two = Example(picture(tmp_path / "b.png", "blue"), "b", (64, 64))
    hashes = [
        Dataset.of([one, two]).hash,
        Dataset.of([two, one]).hash,
        Dataset.of([one]).hash,
        Dataset.of([one, Example(two.image, "c", (64, 64))]).hash,
        Dataset.of([one, Example(two.image, "b", (64, 48))]).hash,
        Dataset.of([one, Example(two.image, "b", (64, 64), one.image)]).hash,
    ]
    picture(two.image, "green")
    hashes.append(Dataset.of([one, two]).hash)
    assert len(set(hashes)) == len(hashes)


@pytest.mark.parametrize(
    "content",
    [
        "no JSON",
        "[]",
        '{"examples": [{"image": "missing.png", "caption": "", "bucket": [64, 64]}]}',
        '{"examples": [{"image": "../secret.png", "caption": "", "bucket": [64, 64]}]}',
        '{"examples": [{"image": "a.png", "caption": "", "bucket": [64]}]}',
    ],
)
def test_what_is_no_dataset_is_refused(content: str, tmp_path: Path) -> None:
    folder = tmp_path / "dataset"
    folder.mkdir()
    picture(folder / "a.png")
    picture(tmp_path / "secret.png")
    (folder / "dataset.json").write_text(content)
    with pytest.raises(TrainingFailed, match="dataset"):
        Dataset.read(folder / "dataset.json")


def test_a_state_comes_back_as_it_was(tmp_path: Path) -> None:
    weights = {"a": torch.randn(3, 2)}
    optimizer = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.randn(3)}}, "param_groups": [{"lr": 0.1}]}
    drawn = {**random_state(), "draws": torch.Generator().manual_seed(5).get_state()}
    write_state(tmp_path, 7, RunState({"step": 7, "marks": {"saved": 3}}, weights, optimizer, drawn))
    expected = (random.random(), float(np.random.rand()), torch.rand(3))
    read = read_state(tmp_path / "step-000000007")
    restore_random(read.random)
    assert read.facts == {"step": 7, "marks": {"saved": 3}}
    assert torch.equal(read.weights["a"], weights["a"])
    assert read.optimizer["state"][0]["step"] == 3.0
    assert read.optimizer["param_groups"] == [{"lr": 0.1}]
    assert torch.equal(read.random["draws"], drawn["draws"])
    assert (random.random(), float(np.random.rand())) == expected[:2]
    assert torch.equal(torch.rand(3), expected[2])


def test_the_newest_two_states_stay(tmp_path: Path) -> None:
    for step in (1, 9, 10, 200):
        write_state(tmp_path, step, RunState({"step": step}, {}, {}, random_state()))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000010", "step-000000200"]


@pytest.mark.parametrize("damage", ["cut", "form", "missing"])
def test_a_damaged_state_is_refused(damage: str, tmp_path: Path) -> None:
    folder = write_state(tmp_path, 1, RunState({"step": 1}, {"a": torch.ones(9)}, {}, random_state()))
    tensors, facts = folder / "tensors.safetensors", folder / "state.json"
    if damage == "cut":
        tensors.write_bytes(tensors.read_bytes()[:-8])
    elif damage == "form":
        facts.write_text(json.dumps({**json.loads(facts.read_text()), "form": 99}))
    else:
        facts.unlink()
    with pytest.raises(TrainingFailed, match="state"):
        read_state(folder)


def test_what_fails_half_way_leaves_what_was_there(tmp_path: Path) -> None:
    file, folder = tmp_path / "a.txt", tmp_path / "state"

    def whole(path: Path) -> None:
        (path / "x" if path.is_dir() else path).write_text("old")

    def broken(path: Path) -> None:
        (path / "x" if path.is_dir() else path).write_text("half")
        raise BrokenPipeError

    for put, place in ((put_file, file), (put_folder, folder)):
        put(place, whole)
        with pytest.raises(BrokenPipeError):
            put(place, broken)
    assert file.read_text() == "old"
    assert (folder / "x").read_text() == "old"
