import tracemalloc

import cv2
import numpy as np
import pytest
from PIL import Image, ImageDraw

from modelkit import mattes


def disc(side: int, radius: float) -> mattes.Floats:
    """A disc with an edge of one pixel, 0 to 1."""
    rows, columns = np.mgrid[:side, :side] + 0.5
    distance = np.hypot(rows - side / 2, columns - side / 2)
    return np.asarray(np.clip(radius - distance + 0.5, 0, 1), np.float32)


def mixed(front: tuple[int, ...], back: tuple[int, ...], alpha: mattes.Floats) -> mattes.Pixels:
    colours = np.array(front) * alpha[..., None] + np.array(back) * (1 - alpha[..., None])
    return np.asarray(colours + 0.5, np.uint8)


def coarse_of(alpha: mattes.Floats, side: int) -> mattes.Floats:
    reduced = Image.fromarray((alpha * 255).astype(np.uint8)).resize((side, side), Image.Resampling.BOX)
    return np.asarray(np.asarray(reduced) / 255, np.float32)


@pytest.mark.parametrize("side", [256, 1500])
def test_a_coarse_mask_is_fitted_to_the_edge_of_the_picture(side: int) -> None:
    truth = disc(side, side * 0.3)
    picture = mixed((180, 40, 50), (225, 220, 210), truth)
    coarse = coarse_of(truth, 64)
    enlarged = np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BILINEAR))
    fitted = mattes.refine(coarse, picture)
    assert fitted.shape == (side, side)
    assert np.abs(fitted - truth).mean() < np.abs(enlarged - truth).mean() / 1.5
    assert ((fitted > 0.5) ^ (truth > 0.5)).mean() < 0.002


def test_a_mask_is_exactly_clear_and_solid_where_it_is_sure() -> None:
    truth = disc(256, 80)
    noisy = mixed((90, 90, 90), (160, 160, 160), truth).astype(int)
    noisy += np.random.default_rng(0).normal(0, 12, noisy.shape).astype(int)
    fitted = mattes.refine(coarse_of(truth, 64), noisy.clip(0, 255).astype(np.uint8))
    assert (fitted[disc(256, 60) == 1] == 1).all()
    assert (fitted[disc(256, 100) == 0] == 0).all()


def test_the_fringe_of_the_old_background_goes_from_the_edge() -> None:
    alpha = np.asarray(cv2.GaussianBlur(disc(300, 90), (0, 0), 3), np.float32)
    picture = mixed((180, 40, 50), (60, 200, 80), alpha)
    edge = (alpha > 0.2) & (alpha < 0.8)
    before = np.abs(picture[edge].astype(int) - (180, 40, 50)).mean()
    own = mattes.foreground_colours(picture, alpha)
    assert np.abs(own[edge].astype(int) - (180, 40, 50)).mean() < before / 6
    assert (own[alpha == 1] == picture[alpha == 1]).all()


def test_bands_do_not_show() -> None:
    side = 1400  # two bands
    alpha = np.asarray(cv2.GaussianBlur(disc(side, 600), (0, 0), 4), np.float32)
    own = mattes.foreground_colours(mixed((180, 40, 50), (60, 200, 80), alpha), alpha)
    edge = (alpha > 0.3) & (alpha < 0.8)
    assert own[edge].std(axis=0).max() < 6


def test_memory_does_not_grow_with_the_height() -> None:
    alpha = np.zeros((6000, 1500), np.float32)
    alpha[1000:5000, 300:1200] = 1
    alpha[:, 750] = 0.5
    picture = mixed((180, 40, 50), (60, 200, 80), alpha)
    tracemalloc.start()
    mattes.foreground_colours(picture, mattes.refine(alpha[::8, ::8], picture))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * picture.nbytes


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 40), (40, 1), (3, 2)])
def test_tiny_pictures_pass(width: int, height: int) -> None:
    picture = np.full((height, width, 3), 120, np.uint8)
    fitted = mattes.refine(np.ones((64, 64), np.float32), picture)
    assert fitted.shape == (height, width)
    assert (fitted == 1).all()
    assert mattes.foreground_colours(picture, fitted).shape == picture.shape


def test_a_mask_grows_by_pixels_on_each_side() -> None:
    image = Image.new("L", (100, 60))
    ImageDraw.Draw(image).rectangle((40, 20, 59, 39), fill=255)
    mask = np.asarray(np.asarray(image) / 255, np.float32)
    grown = mattes.grow(mask, 5)
    rows, columns = np.flatnonzero(grown.any(1)), np.flatnonzero(grown.any(0))
    assert (columns[0], columns[-1], rows[0], rows[-1]) == (35, 64, 15, 44)
    assert (mattes.grow(mask, 0) == mask).all()
    assert (mattes.grow(np.zeros_like(mask), 5) == 0).all()
    assert (mattes.grow(np.ones_like(mask), 5) == 1).all()
