from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from modelkit.alignment import align, blurred
from modelkit.consistency import ConsistencyCheck, Thresholds, ssim
from modelkit.details import DetailedPicture, DetailSettings, DetailTransfer, ReferenceDetails
from modelkit.patches import PixelBox
from modelkit.vision import Vision
from tests.unit.modelkit.drawn import shirt, soft

SSIM = ConsistencyCheck(Thresholds())


class Blind:
    """Finds nothing but what `Vision` has found."""

    def matte(self, image: Image.Image) -> np.ndarray | None:
        return None


def transferred(
    base: Image.Image, reference: Image.Image, check: ConsistencyCheck = SSIM, **settings: Any
) -> DetailedPicture:
    transfer = DetailTransfer(Vision(1), Blind(), ReferenceDetails(), check, DetailSettings(**settings))
    return transfer.transfer(base, reference, lambda _: None, keep_drafts=True)


def lab(image: Image.Image) -> np.ndarray:
    pixels = np.asarray(image.convert("RGB"), np.float32) / 255
    return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGB2LAB), float)


@pytest.mark.parametrize(
    "reference", [shirt(), shirt(320, 380, 3, (200, 205, 210))], ids=["the same view", "another view"]
)
def test_lost_detail_comes_back_from_a_reference(reference: Image.Image) -> None:
    truth, base = shirt(), soft(shirt())
    made = transferred(base, reference)
    (tile,) = made.tiles
    assert tile.scores.passed
    before, wanted, after = tile.detail
    assert before < 0.6 * wanted
    assert abs(after - wanted) < 0.3 * abs(before - wanted)
    place = (70, 75, 130, 140)  # the print
    was, lost, got = (np.asarray(each.crop(place)) for each in (truth, base, made.image))
    assert ssim(got, was) > ssim(lost, was) + 0.1


def test_colour_stays_what_it_was_and_so_does_everything_outside_of_the_box() -> None:
    base = soft(shirt())
    yellowish = Image.fromarray((np.asarray(shirt()) * (1.0, 0.95, 0.6)).astype(np.uint8))
    made = transferred(base, yellowish)
    box = made.tiles[0].box
    before, after = np.asarray(base), np.asarray(made.image)
    outside = np.ones(before.shape[:2], bool)
    outside[box.slices] = False
    assert outside.sum() > 3000
    np.testing.assert_array_equal(before[outside], after[outside])
    place = (60, 150, 140, 215)  # the stripes below the print
    shift = np.abs((lab(base.crop(place)) - lab(made.image.crop(place))).mean((0, 1)))
    assert shift.max() < 2
    assert (before != after).any()


def test_the_background_within_the_box_stays() -> None:
    base = soft(shirt())
    made = transferred(base, shirt(background=(90, 90, 90)))
    corner = (30, 130, 45, 220)  # beside the body, below a sleeve
    assert np.abs(np.asarray(made.image.crop(corner)).astype(int) - np.asarray(base.crop(corner))).max() <= 1


def test_a_reference_of_something_else_changes_little() -> None:
    base = soft(shirt())
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (250, 200, 3), np.uint8))
    made = transferred(base, noise)
    assert ssim(np.asarray(base), np.asarray(made.image)) > 0.7


def test_an_elongated_garment_is_two_tiles() -> None:
    tall = shirt().resize((110, 250))
    made = transferred(soft(tall), tall, split=2.0)
    upper, lower = (tile.box for tile in made.tiles)
    assert (upper.left, upper.right, upper.bottom) == (lower.left, lower.right, lower.top)
    assert len(transferred(soft(tall), tall, split=10.0).tiles) == 1
    wide = tall.rotate(90, expand=True)
    left, right = (tile.box for tile in transferred(soft(wide), wide, split=2.0).tiles)
    assert (left.top, left.bottom, left.right) == (right.top, right.bottom, right.left)


def test_a_tile_that_fails_is_made_again_with_less_and_the_best_is_kept() -> None:
    base, reference = soft(shirt()), shirt()
    first = transferred(base, reference).tiles[0]
    assert first.scores.ssim is not None
    between = ConsistencyCheck(Thresholds(ssim=first.scores.ssim + (1 - first.scores.ssim) * 0.3))
    made = transferred(base, reference, between)
    assert 1 < made.tiles[0].attempts <= 4
    assert made.tiles[0].scores.passed
    assert len(made.drafts) == made.tiles[0].attempts
    hopeless = transferred(base, reference, ConsistencyCheck(Thresholds(ssim=1.0)), max_retries=1).tiles[0]
    assert (hopeless.attempts, hopeless.scores.passed) == (2, False)
    assert hopeless.scores.ssim is not None
    assert hopeless.scores.ssim > first.scores.ssim


def test_the_same_pictures_give_the_same_result() -> None:
    first, second = (transferred(soft(shirt()), shirt(320, 380, 3)).image.tobytes() for _ in range(2))
    assert first == second


def test_transparency_stays_and_so_does_what_it_hides() -> None:
    base = soft(shirt()).convert("RGBA")
    base.paste((9, 9, 9, 0), (0, 0, 100, 250))
    made = transferred(base, shirt()).image
    assert made.mode == "RGBA"
    before, after = np.asarray(base), np.asarray(made)
    np.testing.assert_array_equal(before[..., 3], after[..., 3])
    np.testing.assert_array_equal(before[:, :100], after[:, :100])


def test_progress_rises_to_one_and_may_stop_the_work() -> None:
    told: list[float] = []
    transfer = DetailTransfer(Vision(1), Blind(), ReferenceDetails(), SSIM, DetailSettings(split=1.0))
    transfer.transfer(soft(shirt()), shirt(), told.append)
    assert told == sorted(told)
    assert told[-1] == pytest.approx(1)
    assert len(told) > 5

    def stop(_: float) -> None:
        raise KeyError

    with pytest.raises(KeyError):
        transfer.transfer(soft(shirt()), shirt(), stop)


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 2), (300, 9)])
def test_tiny_and_narrow_pictures_are_taken(size: tuple[int, int]) -> None:
    image = Image.new("RGB", size, (120, 90, 80))
    assert transferred(image, shirt()).image.size == size
    assert transferred(soft(shirt()), image).image.size == (200, 250)


def test_a_picture_is_laid_over_a_turned_and_larger_one() -> None:
    target, picture = np.asarray(shirt()), np.asarray(shirt(320, 400, 6))
    laid = align(picture, PixelBox(30, 40, 290, 380), target)
    around = (slice(80, 135), slice(75, 125))  # the print
    by_box = np.asarray(Image.fromarray(picture[40:380, 30:290]).resize((200, 250)))
    assert ssim(laid.pixels[around], target[around]) > ssim(by_box[around], target[around]) + 0.2
    assert laid.agreement[around].mean() > 0.8
    assert laid.inside[around].all()


def test_pictures_without_features_are_laid_box_to_box() -> None:
    target = np.full((40, 60, 3), 120, np.uint8)
    picture = np.zeros((80, 90, 3), np.uint8)
    picture[20:60, 10:70] = 200
    laid = align(picture, PixelBox(10, 20, 70, 60), target)
    assert laid.rows[0, 0] == pytest.approx(20, abs=1)
    assert laid.columns[-1, -1] == pytest.approx(69, abs=1)


def test_a_broad_blur_on_a_smaller_copy_is_the_same_blur() -> None:
    coarse = np.random.default_rng(3).random((30, 20), np.float32)
    field = np.asarray(cv2.resize(coarse, (400, 600), interpolation=cv2.INTER_CUBIC), np.float32)
    exact = cv2.GaussianBlur(field, (0, 0), 40, borderType=cv2.BORDER_REFLECT)
    assert np.abs(blurred(field, 40) - exact).max() < 0.005
