import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from modelkit.card import ModelCard
from modelkit.errors import ModelError
from modelkit.requests import BatchSettings, ImageRequest, Picture
from modelkit.tiling import RepaintCancelled, RepaintSettings, repaint, starts
from modelkit.upscale import Upscaler

SIDE = 64
UPSCALER = Upscaler()
SETTINGS = RepaintSettings("a", 10, 0.5, 7)


class TintingModel:
    """Stands in for a model: each tile comes back with a colour and a texture of its own."""

    card = ModelCard(name="tinting", architecture="flux", native_size=SIDE)

    def __init__(self, tint: float = 30.0) -> None:
        self.tint = tint

    def generate(
        self, settings: BatchSettings, requests: Sequence[ImageRequest], upscaler: Upscaler
    ) -> list[Picture | None]:
        made: list[Picture | None] = []
        for request in requests:
            assert request.reference is not None
            request.observer.progress(1, 1)
            lots = np.random.default_rng(request.seed)
            change = lots.uniform(-self.tint, self.tint, 3) + lots.normal(0, 6, (SIDE, SIDE, 3))
            pixels = (np.asarray(request.reference) + change).clip(0, 255).round().astype(np.uint8)
            made.append(None if request.observer.cancelled() else Picture(Image.fromarray(pixels), 0))
        return made


def painted(image: Image.Image, model: TintingModel, settings: RepaintSettings = SETTINGS) -> Image.Image:
    return repaint(image, settings, model, UPSCALER, done=lambda _share: None, cancelled=lambda: False)


def seam(pixels: NDArray[Any], places: Sequence[int]) -> float:
    """Return how much stronger columns differ from their neighbours at these places than elsewhere: 1 is no seam."""
    # Averaged down a column, texture cancels out, and a seam stays.
    steps = np.abs(np.diff(pixels.mean(0), axis=0)).mean(1)
    at = np.zeros(len(steps), bool)
    at[[place - 1 for place in places]] = True
    return float(steps[at].mean() / steps[~at].mean())


def test_no_edge_of_a_tile_is_left_in_the_picture() -> None:
    image = Image.new("RGB", (400, 300), (120, 130, 140))
    edges = [one for start in starts(400, SIDE) for one in (start, start + SIDE) if 0 < one < 400]
    made = np.asarray(painted(image, TintingModel()))
    lots = np.random.default_rng(1)
    pasted = np.asarray(image) + lots.normal(0, 6, (300, 400, 3))
    for start in starts(400, SIDE):
        pasted[:, start : start + SIDE] += lots.uniform(-30, 30, 3)
    assert seam(pasted, edges) > 5  # the measure sees seams
    assert seam(made, edges) < 1.2
    assert made.std() > 3  # and the texture is there


def test_tiles_keep_the_colours_of_the_picture() -> None:
    with Image.open(Path(__file__).parent / "data" / "photo-coffee.png") as file:
        image = file.convert("RGB")
    made = painted(image, TintingModel())
    coarse = [np.asarray(one.resize((6, 6), Image.Resampling.BOX)).astype(int) for one in (made, image)]
    assert np.abs(coarse[0] - coarse[1]).max() <= 6


@pytest.mark.parametrize("size", [(1, 1), (30, 200), (64, 64), (65, 64), (150, 20)])
def test_a_picture_of_any_size_keeps_it(size: tuple[int, int]) -> None:
    assert painted(Image.new("RGB", size, (9, 99, 200)), TintingModel()).size == size


def test_the_same_seed_repaints_the_same() -> None:
    image = Image.new("RGB", (100, 90), (120, 130, 140))
    first = painted(image, TintingModel())
    assert first.tobytes() == painted(image, TintingModel()).tobytes()
    assert first.tobytes() != painted(image, TintingModel(), RepaintSettings("a", 10, 0.5, 8)).tobytes()


@pytest.mark.parametrize("length", [1, 64, 65, 111, 112, 113, 500, 1000])
def test_tiles_cover_a_side_and_overlap_by_a_quarter(length: int) -> None:
    found = starts(length, SIDE)
    assert found[0] == 0
    assert found[-1] == max(0, length - SIDE)
    assert all(SIDE - (after - before) >= SIDE // 4 for before, after in itertools.pairwise(found))


def test_a_picture_of_too_many_tiles_is_refused_with_what_would_help() -> None:
    with pytest.raises(ModelError, match=r"upscale_denoise: the model tinting would repaint 1764 tiles of 64 pixels"):
        painted(Image.new("RGB", (2000, 2000)), TintingModel())


def test_work_that_is_called_off_stops_at_the_next_batch() -> None:
    told: list[float] = []
    with pytest.raises(RepaintCancelled):
        repaint(
            Image.new("RGB", (600, 600)),
            SETTINGS,
            TintingModel(),
            UPSCALER,
            done=told.append,
            cancelled=lambda: len(told) > 20,
        )
    assert 20 < len(told) <= 48
    assert told == sorted(told)
