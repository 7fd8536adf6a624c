"""What the GPU check computes and prints, without a device."""

import json
import threading
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from bench.gpu import model, pictures, shipped, stepping
from bench.gpu.memory import PeakMemory
from bench.gpu.report import Machine, as_json, table
from bench.gpu.running import Outcome
from bench.gpu.setting import SCALES, Figure, PartError

GIB = 1 << 30
MACHINE = Machine("H100", "2.13.0+cu130", "0.42.1", "full", "2026-01-01 00:00 UTC")


def picture(value: int, side: int = 4) -> Image.Image:
    return Image.fromarray(np.full((side, side, 3), value, np.uint8))


def test_equal_pictures_have_the_highest_ratio_and_others_less() -> None:
    assert shipped.psnr(picture(9), picture(9)) == 99.0
    assert shipped.psnr(picture(0), picture(255)) == pytest.approx(0.0)
    assert shipped.psnr(picture(10), picture(12)) == pytest.approx(20 * np.log10(255 / 2))


def test_pictures_of_other_sizes_are_not_compared() -> None:
    with pytest.raises(PartError, match="pixels"):
        shipped.psnr(picture(1), picture(1, side=8))


def test_seconds_a_step_leave_out_what_is_done_once_a_picture() -> None:
    scale = replace(SCALES["full"], steps=(2, 10), rounds=3)
    late = iter([0.0, 0.0, 5.0, 0.0, 0.0, 0.0])  # one picture of few steps is disturbed: the median takes no notice
    taken = stepping.take(lambda steps: 1.5 + 0.25 * steps + next(late), scale)
    assert taken.step == pytest.approx(0.25)
    assert [taken.few, taken.many] == pytest.approx([2.0, 4.0])


def test_batches_are_of_the_size_that_is_asked_and_never_join() -> None:
    bodies = [pictures.body("x", side=64, steps=2, seed=seed) for seed in range(8)]
    batches = pictures.in_batches(bodies, 4)
    assert [[each["seed"] for each in batch] for batch in batches] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    scales = [{each["config"]["guidance_scale"] for each in batch} for batch in batches]  # type: ignore[index] # a dict
    assert [len(each) for each in scales] == [1, 1]
    assert scales[0] != scales[1]
    assert "guidance_scale" not in bodies[0]["config"]  # type: ignore[operator] # a dict


@pytest.mark.parametrize(
    ("less", "said"),
    [
        ({"device_free": 20 * GIB}, "The GPU has 20.0 GiB free; the model needs 30.0 GiB."),
        ({"memory": 30 * GIB}, "This machine has 30.0 GiB of memory; the model needs 32.5 GiB."),
        ({"disk_free": 25 * GIB}, "/big has 25.0 GiB free; the model needs 26.0 GiB. Name another by --folder."),
    ],
)
def test_a_model_that_does_not_fit_is_refused_by_what_is_too_small(less: dict[str, int], said: str) -> None:
    room = {"device_free": 40 * GIB, "memory": 64 * GIB, "disk_free": 64 * GIB}
    model.check_room(needed=24 * GIB, where="/big", **room)
    model.check_room(needed=24 * GIB, where="/big", **{**room, "device_free": None})  # type: ignore[arg-type] # a CPU
    with pytest.raises(PartError) as caught:
        model.check_room(needed=24 * GIB, where="/big", **{**room, **less})
    assert str(caught.value) == said


def test_memory_that_is_taken_and_given_back_counts_and_what_was_taken_before_does_not() -> None:
    readings, all_read = iter([5, 6, 9, 7]), threading.Event()

    def taken() -> int:
        reading = next(readings, None)
        if reading is None:
            all_read.set()
        return GIB * (5 if reading is None else reading)

    with PeakMemory(taken, sample_seconds=0.001) as memory:
        assert all_read.wait(60)
    assert memory.gib == 4.0


def test_the_table_has_a_line_for_each_figure_and_says_which_part_failed() -> None:
    outcomes = [
        Outcome("bare", [Figure("a step", 0.12345, "s", "1024x1024")], "", 12.34),
        Outcome("worker", [], "OutOfMemoryError: tried | failed", 3.0),
    ]
    text = table(MACHINE, outcomes)
    assert "| bare | a step | 0.1235 | s | 1024x1024 |" in text
    assert "| worker | in all | 3.0 | s | FAILED: OutOfMemoryError: tried / failed |" in text
    assert text.startswith("H100, torch 2.13.0+cu130")
    bare, worker = json.loads(json.dumps(as_json(MACHINE, outcomes)))["parts"]
    assert (bare["ok"], bare["figures"][0]["value"]) == (True, 0.12345)
    assert (worker["ok"], worker["error"]) == (False, "OutOfMemoryError: tried | failed")
