import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from modelkit import upscale
from modelkit.device import Device
from modelkit.family import Source
from modelkit.upscale import Upscaler, UpscalerFamily, _cleaning, _factors
from models.garments.draw import draw_many

# Crops of 192 x 192 pixels: NASA's portrait of Eileen Collins (public domain), a cup of coffee by R. Michel (CC0).
PHOTOS = ("photo-astronaut", "photo-coffee")
BICUBIC = Image.Resampling.BICUBIC


@pytest.fixture(scope="module")
def upscaler() -> Upscaler:
    return Upscaler()


def disc(side: int) -> Image.Image:
    image = Image.new("RGB", (side * 8, side * 8), (240, 235, 225))
    ImageDraw.Draw(image).ellipse((side * 2, side * 2, side * 6, side * 6), fill=(200, 30, 40))
    return image.resize((side, side), Image.Resampling.BOX)


def photo(name: str) -> Image.Image:
    return Image.open(Path(__file__).parent / "data" / f"{name}.png").convert("RGB")


def smaller(image: Image.Image, factor: int) -> Image.Image:
    return image.resize((image.width // factor, image.height // factor), BICUBIC)


def psnr(made: Image.Image, truth: Image.Image) -> float:
    """Return how close a picture is to another, in dB."""
    error = (np.asarray(made).astype(float) - np.asarray(truth)) ** 2
    return float(10 * np.log10(255**2 / error.mean()))


@pytest.mark.parametrize("name", PHOTOS)
@pytest.mark.parametrize("factor", [2, 4])
def test_a_photo_is_at_least_two_decibels_closer_than_bicubic(upscaler: Upscaler, name: str, factor: int) -> None:
    truth = photo(name)
    small = smaller(truth, factor)
    made = upscaler.enlarge(small, *truth.size, faithful=True)
    assert psnr(made, truth) >= psnr(small.resize(truth.size, BICUBIC), truth) + 2


@pytest.mark.parametrize("quality", [40, 70, 90])
def test_a_jpeg_that_is_cleaned_first_is_closer_than_bicubic_and_than_one_that_is_not(
    upscaler: Upscaler, quality: int
) -> None:
    truth, file = photo("photo-coffee"), io.BytesIO()
    smaller(truth, 2).save(file, "JPEG", quality=quality)
    small = Image.open(file).convert("RGB")
    cleaned = psnr(upscaler.enlarge(small, *truth.size, faithful=True, jpeg_quality=quality), truth)
    assert cleaned >= psnr(small.resize(truth.size, BICUBIC), truth) + 1
    assert cleaned >= psnr(upscaler.enlarge(small, *truth.size, faithful=True), truth) + 0.5


def test_the_worse_a_jpeg_the_stronger_it_is_cleaned() -> None:
    names = [network.name[-2] if (network := _cleaning(quality)) else None for quality in (None, 99, 90, 70, 30)]
    assert names == [None, None, "0", "1", "2"]


def test_drawn_garments_become_sharp_true_and_keep_their_colours(upscaler: Upscaler) -> None:
    drawn, _ = draw_many(5, 2, 256)
    figures = []
    for pixels in drawn:
        truth = Image.fromarray(pixels)
        small = truth.resize((64, 64), Image.Resampling.BOX)
        made = upscaler.enlarge(small, 256, 256)
        told = upscaler.enlarge(small, 256, 256, faithful=True)
        figures.append((psnr(made, truth), psnr(told, truth), psnr(small.resize((256, 256), BICUBIC), truth)))
        assert psnr(made.resize((8, 8), Image.Resampling.BOX), truth.resize((8, 8), Image.Resampling.BOX)) > 45
    redrawn, faithful, bicubic = np.mean(figures, axis=0)
    assert redrawn > faithful > bicubic + 2


def test_a_cut_out_keeps_its_transparency_and_gets_no_hidden_colour_at_its_edge(upscaler: Upscaler) -> None:
    mask = Image.new("L", (48, 48))
    ImageDraw.Draw(mask).ellipse((12, 12, 36, 36), fill=255)
    image = Image.new("RGB", (48, 48), (0, 255, 0))  # what lies hidden is green
    image.paste((200, 30, 40), mask=mask)
    image.putalpha(mask)
    made = upscaler.enlarge(image, 96, 96)
    assert made.mode == "RGBA"
    alpha = np.asarray(made.getchannel("A"))
    assert np.abs(alpha.astype(int) - np.asarray(mask.resize((96, 96), BICUBIC))).max() <= 1
    seen = np.asarray(made)[alpha > 0][:, :3].astype(int)
    assert np.abs(seen - (200, 30, 40)).max() < 24


def test_a_picture_without_a_visible_pixel_stays_invisible(upscaler: Upscaler) -> None:
    made = upscaler.enlarge(Image.new("RGBA", (5, 3), (9, 9, 9, 0)), 20, 12)
    assert (made.size, made.getchannel("A").getextrema()) == ((20, 12), (0, 0))


def test_one_pixel_becomes_its_colour_at_any_size(upscaler: Upscaler) -> None:
    made = np.asarray(upscaler.enlarge(Image.new("RGB", (1, 1), (200, 100, 50)), 64, 16, faithful=True))
    assert made.shape == (16, 64, 3)
    assert np.abs(made.astype(int) - (200, 100, 50)).max() < 16


def test_a_family_counts_all_networks_that_it_may_load() -> None:
    files = [Path(f"{network.stem}.bin").stat().st_size for network in upscale._ALL]
    source = Source(UpscalerFamily.packaged[0])
    assert len(files) == 6
    assert UpscalerFamily().size(source, Device("cpu")) == 8 * sum(files)


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
