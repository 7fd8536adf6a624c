import numpy as np
import pytest
from PIL import Image, ImageDraw

from modelkit.upscale import Upscaler, _factors


@pytest.fixture(scope="module")
def upscaler() -> Upscaler:
    return Upscaler()


def disc(side: int) -> Image.Image:
    image = Image.new("RGB", (side * 8, side * 8), (240, 235, 225))
    ImageDraw.Draw(image).ellipse((side * 2, side * 2, side * 6, side * 6), fill=(200, 30, 40))
    return image.resize((side, side), Image.Resampling.BOX)


@pytest.mark.parametrize("size", [(64, 64), (100, 37), (33, 99)])
def test_the_result_has_exactly_the_size_asked_for(upscaler: Upscaler, size: tuple[int, int]) -> None:
    assert upscaler.enlarge(disc(16), *size).size == size


def test_edges_are_sharper_than_interpolated_ones_and_true(upscaler: Upscaler) -> None:
    truth = np.asarray(disc(128)).astype(float)
    small = disc(32)
    made = np.asarray(upscaler.enlarge(small, 128, 128)).astype(float)
    bicubic = np.asarray(small.resize((128, 128), Image.Resampling.BICUBIC)).astype(float)
    assert ((made - truth) ** 2).mean() < 0.8 * ((bicubic - truth) ** 2).mean()


def test_a_tiled_picture_has_no_seams(upscaler: Upscaler, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = disc(100)
    whole = np.asarray(upscaler.enlarge(picture, 200, 200)).astype(int)
    monkeypatch.setattr("modelkit.upscale._TILE", 40)
    tiled = np.asarray(upscaler.enlarge(picture, 200, 200)).astype(int)
    assert np.abs(whole - tiled).max() <= 8


def test_every_tile_is_told_and_may_stop_the_work(upscaler: Upscaler) -> None:
    told: list[tuple[int, int]] = []
    upscaler.enlarge(disc(16), 128, 128, lambda done, total: told.append((done, total)))
    assert told == [(1, 3), (2, 3), (3, 3)]

    def stop(_done: int, _total: int) -> None:
        raise KeyError

    with pytest.raises(KeyError):
        upscaler.enlarge(disc(16), 128, 128, stop)


def test_restoring_makes_a_picture_four_times_as_large_and_may_be_stopped(upscaler: Upscaler) -> None:
    told: list[tuple[int, int]] = []
    made = upscaler.restore(disc(16), lambda done, total: told.append((done, total)))
    assert (made.size, told) == ((64, 64), [(1, 1)])
    truth = np.asarray(disc(64)).astype(float)
    assert np.abs(np.asarray(made).astype(float) - truth).mean() < 12

    def stop(_done: int, _total: int) -> None:
        raise KeyError

    with pytest.raises(KeyError):
        upscaler.restore(disc(16), stop)


@pytest.mark.parametrize(
    ("scale", "pixels", "factors"),
    [
        (1.0, 64 * 64, ()),
        (1.5, 64 * 64, (2,)),
        (4.0, 64 * 64, (4,)),
        (8.0, 64 * 64, (4, 2)),
        (16.0, 64 * 64, (4, 4)),
        (128.0, 64 * 64, (4, 4, 4)),
        (4.0, 2048 * 2048, ()),
    ],
)
def test_passes_reach_the_scale_or_their_bound(scale: float, pixels: int, factors: tuple[int, ...]) -> None:
    assert _factors(scale, pixels) == factors
