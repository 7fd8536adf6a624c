import math
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from modelkit.background import BackgroundChange, background_colour, change_background
from modelkit.mattes import Floats, Pixels

GROUND = (225, 220, 210)
PALETTE = (205, 220, 235)


def lab(pixels: Pixels) -> Floats:
    return np.asarray(cv2.cvtColor(np.asarray(pixels / 255, np.float32), cv2.COLOR_RGB2LAB), np.float32)


def colour_of(rgb: tuple[int, int, int]) -> tuple[float, float, float]:
    found = background_colour(np.full((8, 8, 3), rgb, np.uint8), None)
    assert found is not None
    return found


def scene(side: int = 400) -> tuple[Pixels, Floats]:
    """A red square on a light ground, whose left third is in deep shadow."""
    pixels = np.full((side, side, 3), GROUND, np.uint8)
    pixels[:, : side // 3] = (70, 68, 66)
    pixels[150:250, 180:260] = (180, 40, 50)
    subject = np.zeros((side, side), np.float32)
    subject[150:250, 180:260] = 1
    return pixels, subject


@pytest.mark.parametrize("strategy", ["color_shift", "replace"])
def test_the_background_gets_the_palettes_colour(strategy: str) -> None:
    pixels, subject = scene()
    made = change_background(pixels, subject, colour_of(PALETTE), BackgroundChange(strategy, blur=5))  # type: ignore[arg-type] # one of two
    far = np.linalg.norm(lab(made)[:, 330:] - colour_of(PALETTE), axis=-1)
    assert far.max() < 1
    assert (made[subject > 0] == pixels[subject > 0]).all()


def test_shadows_keep_their_colour_where_colours_shift() -> None:
    pixels, subject = scene()
    made = change_background(pixels, subject, colour_of(PALETTE), BackgroundChange())
    assert (np.abs(made[:, :133].astype(int) - pixels[:, :133]) <= 1).all()
    plain = change_background(pixels, subject, colour_of(PALETTE), BackgroundChange("replace"))
    assert np.linalg.norm(lab(plain)[:, :40] - colour_of(PALETTE), axis=-1).max() < 1


def test_between_the_thresholds_colours_shift_in_part() -> None:
    ramp = np.repeat(np.arange(100, 256, dtype=np.uint8)[None, :, None], 3, axis=2).repeat(40, axis=0)
    far = (50.0, 40.0, 0.0)
    change = BackgroundChange(blur=0, expansion=0)
    made = lab(change_background(ramp, np.zeros((40, 156), np.float32), far, change))[20, :, 1]
    assert np.abs(made[:50]).max() < 1  # up to 150
    assert (np.diff(made[55:115]) > 0).mean() > 0.9
    assert made[85] == pytest.approx(20, abs=3)  # half way
    assert made[125:140] == pytest.approx(40, abs=3)


@pytest.mark.parametrize("threshold", [0, 128, 255])
def test_equal_thresholds_are_a_step(threshold: int) -> None:
    pixels, subject = scene()
    change = BackgroundChange(shadow=threshold, light=threshold, blur=0)
    made = change_background(pixels, subject, colour_of(PALETTE), change)
    moved = (made[5, 5] != pixels[5, 5]).any(), (made[5, 350] != pixels[5, 350]).any()
    assert moved == {0: (True, True), 128: (False, True), 255: (False, False)}[threshold]


def test_the_mask_grows_by_a_share_of_the_longer_side() -> None:
    pixels, subject = scene()
    change = BackgroundChange("replace", expansion=0.05, blur=0)
    made = change_background(pixels, subject, colour_of(PALETTE), change)
    changed = (made != pixels).any(-1)
    assert not changed[200, 160:280].any()  # 20 pixels on each side
    assert changed[200, 150:159].all()
    assert changed[200, 281:].all()


def test_a_blurred_edge_has_no_step() -> None:
    pixels, subject = scene()
    change = BackgroundChange("color_shift", expansion=0.02, blur=12)
    made = lab(change_background(pixels, subject, (60.0, 20.0, 20.0), change))[200, 261:]
    assert np.abs(np.diff(made, axis=0)).max() < 3


def test_the_old_background_does_not_glow_around_the_subject() -> None:
    pixels, subject = scene()
    made = change_background(pixels, subject, colour_of(PALETTE), BackgroundChange())
    around = np.linalg.norm(lab(made)[200, 263:] - colour_of(PALETTE), axis=-1)  # from the grown mask on
    assert around.max() < 2


def test_half_transparent_edges_are_only_changed_below_a_half() -> None:
    pixels, subject = scene()
    subject[150:250, 260] = 0.6
    subject[150:250, 261] = 0.25
    made = change_background(pixels, subject, colour_of(PALETTE), BackgroundChange("replace", expansion=0, blur=0))
    assert (made[150:250, 260] == pixels[150:250, 260]).all()
    assert (made[150:250, 261] != pixels[150:250, 261]).any()


def test_a_picture_that_its_subject_fills_stays() -> None:
    pixels, _ = scene()
    made = change_background(pixels, np.ones((400, 400), np.float32), colour_of(PALETTE), BackgroundChange())
    assert (made == pixels).all()
    assert background_colour(pixels, np.ones((400, 400), np.float32)) is None


def test_the_colour_of_a_background_is_its_median_without_the_subject() -> None:
    pixels, subject = scene()
    found = background_colour(pixels, subject)
    assert found is not None
    assert math.dist(found, colour_of(GROUND)) < 0.5


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 30), (30, 1)])
def test_tiny_pictures_pass(width: int, height: int) -> None:
    pixels = np.full((height, width, 3), GROUND, np.uint8)
    made = change_background(pixels, np.zeros((height, width), np.float32), colour_of(PALETTE), BackgroundChange())
    assert made.shape == pixels.shape


def test_a_wide_blur_of_a_large_picture_is_done_on_a_small_mask() -> None:
    pixels = np.full((2000, 1500, 3), GROUND, np.uint8)
    subject = np.zeros((2000, 1500), np.float32)
    subject[800:1200, 600:900] = 1
    made = change_background(pixels, subject, colour_of(PALETTE), BackgroundChange(blur=1000))
    assert (made[800:1200, 600:900] == pixels[800:1200, 600:900]).all()
    assert (made != pixels).any()


def test_the_person_of_a_photo_is_unchanged() -> None:
    data = Path(__file__).parent / "data"
    with Image.open(data / "astronaut.jpg") as photo, Image.open(data / "astronaut-subject.png") as mask:
        pixels = np.asarray(photo.convert("RGB"))
        subject = np.asarray(np.asarray(mask.convert("L")) / 255, np.float32)
    change = BackgroundChange(shadow=60, light=90, blur=2)
    made = change_background(pixels, subject, colour_of(PALETTE), change)
    assert (made[subject > 0] == pixels[subject > 0]).all()
    found = background_colour(made, subject, above=90)
    assert found is not None
    assert math.dist(found, colour_of(PALETTE)) < 4
