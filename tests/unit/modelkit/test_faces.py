from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from modelkit.consistency import ConsistencyCheck, Thresholds, ssim
from modelkit.faces import FaceRestoration, FaceSettings, NetworkFaces, RestoredFaces
from modelkit.upscale import Upscaler
from modelkit.vision import Face, Vision

PHOTO = Path(__file__).parent / "data" / "astronaut.jpg"
NO_CHECK = ConsistencyCheck(Thresholds(ssim=0))


class Finder:
    """Finds faces where it is told to."""

    def __init__(self, *boxes: tuple[float, float, float, float]) -> None:
        self.found = [Face(box, 0.9) for box in boxes]

    def faces(self, image: Image.Image) -> Sequence[Face]:
        assert image.mode == "RGB"
        return self.found


class Sharpener:
    """Enlarges by interpolation and sharpens, in the network's place."""

    def __init__(self, amount: int = 150) -> None:
        self.amount = amount
        self.sides: list[int] = []

    def restore(self, image: Image.Image, step: Callable[[int, int], None] | None = None) -> Image.Image:
        self.sides.append(max(image.size))
        if step is not None:
            step(1, 1)
        large = image.resize((image.width * 4, image.height * 4), Image.Resampling.BICUBIC)
        return large.filter(ImageFilter.UnsharpMask(8, self.amount, 0))


def photo(side: int = 128) -> Image.Image:
    with Image.open(PHOTO) as image:
        return image.convert("RGB").resize((side, side))


def restored(
    image: Image.Image, finder: Finder, *, strength: float = 1.0, seed: int = 0, **settings: object
) -> RestoredFaces:
    face_settings = FaceSettings(**settings)  # type: ignore[arg-type] # its members
    artist = NetworkFaces(Sharpener(), strength, seed)
    return FaceRestoration(finder, artist, NO_CHECK, face_settings).restore(image, lambda _: None)


def checked(
    image: Image.Image, finder: Finder, sharpener: Sharpener, ssim: float, max_retries: int = 3
) -> RestoredFaces:
    check = ConsistencyCheck(Thresholds(ssim=ssim))
    restoration = FaceRestoration(finder, NetworkFaces(sharpener), check, FaceSettings(max_retries=max_retries))
    return restoration.restore(image, lambda _: None, keep_drafts=True)


def test_a_picture_without_a_face_stays_as_it_is() -> None:
    image = photo()
    made = restored(image, Finder())
    assert made.image is image
    assert (made.faces, made.worst) == ((), None)


def test_only_the_ellipse_of_a_face_changes() -> None:
    image = photo()
    made = restored(image, Finder((40, 40, 80, 80)), feather_px=4)
    box = made.faces[0].box
    assert (box.left, box.top, box.right, box.bottom) == (30, 30, 90, 90)
    changed = (np.asarray(made.image) != np.asarray(image)).any(-1)
    assert changed[40:80, 40:80].mean() > 0.5
    rows, columns = np.mgrid[0:128, 0:128]
    assert not changed[np.hypot(rows + 0.5 - 60, columns + 0.5 - 60) > 30].any()


def test_all_faces_are_restored_those_at_the_edge_too() -> None:
    image = photo()
    made = restored(image, Finder((90, 90, 140, 140), (-10, -10, 30, 30), (50, 50, 60, 60)))
    changed = (np.asarray(made.image) != np.asarray(image)).any(-1)
    assert len(made.faces) == 3
    assert changed[100:, 100:].any()
    assert changed[:25, :25].any()
    assert changed[50:60, 50:60].any()


def test_a_face_outside_of_the_picture_is_none() -> None:
    assert restored(photo(), Finder((400, 400, 440, 440))).faces == ()


def test_transparency_stays_and_so_does_what_it_hides() -> None:
    image = photo()
    image.putalpha(255)
    image.paste((9, 9, 9, 0), (0, 0, 60, 128))
    made = restored(image, Finder((40, 40, 80, 80))).image
    assert made.mode == "RGBA"
    before, after = np.asarray(image), np.asarray(made)
    np.testing.assert_array_equal(before[..., 3], after[..., 3])
    np.testing.assert_array_equal(before[:, :60], after[:, :60])
    assert (before[:, 60:] != after[:, 60:]).any()


def test_a_face_that_fails_is_drawn_again_with_less_freedom_until_it_passes() -> None:
    image, finder, sharpener = photo(), Finder((40, 40, 80, 80)), Sharpener(600)
    (first,) = checked(image, finder, sharpener, 0.01).faces
    assert first.attempts == 1
    assert first.scores.ssim is not None
    sharpener.sides.clear()
    made = checked(image, finder, sharpener, first.scores.ssim + (1 - first.scores.ssim) * 0.3)
    (face,) = made.faces
    assert 1 < face.attempts <= 4
    assert face.scores.passed
    assert len(sharpener.sides) == face.attempts == len(made.drafts)
    assert sharpener.sides == sorted(sharpener.sides)
    assert set(made.drafts) == {f"face-1-attempt-{number}" for number in range(1, face.attempts + 1)}


def test_the_best_attempt_is_kept_where_none_passes() -> None:
    made = checked(photo(), Finder((40, 40, 80, 80)), Sharpener(600), 1.0, max_retries=2)
    (face,) = made.faces
    assert face.attempts == 3
    assert not face.scores.passed
    halves = [np.hsplit(np.asarray(draft), 2) for draft in made.drafts.values()]
    assert face.scores.ssim == pytest.approx(max(ssim(before, after) for before, after in halves))


def test_the_scores_are_those_of_the_worst_face() -> None:
    image = photo()
    image.paste((120, 120, 120), (64, 0, 128, 128))  # nothing to sharpen
    made = checked(image, Finder((80, 80, 110, 110), (10, 10, 40, 40)), Sharpener(), 0.01)
    assert made.worst is made.faces[1]


def test_a_seed_repeats_a_picture_and_another_one_changes_it() -> None:
    image, finder = photo(), Finder((20, 20, 110, 110))
    first, again, other = (restored(image, finder, seed=seed).image.tobytes() for seed in (1, 1, 5))
    assert first == again
    assert first != other


def test_a_strength_of_zero_changes_nothing() -> None:
    image = photo()
    assert restored(image, Finder((40, 40, 80, 80)), strength=0.0).image.tobytes() == image.tobytes()


def test_a_face_larger_than_the_network_draws_keeps_its_fine_detail() -> None:
    lots = np.random.default_rng(0)
    image = Image.fromarray(lots.integers(100, 156, (900, 900, 3), np.uint8))
    made = np.asarray(restored(image, Finder((100, 100, 700, 700))).image).astype(float)
    before = np.asarray(image).astype(float)
    assert made[300:500, 300:500].std() > 0.8 * before[300:500, 300:500].std()


def test_progress_rises_to_one_and_may_stop_the_work() -> None:
    told: list[float] = []
    finder = Finder((40, 40, 80, 80), (0, 0, 20, 20))
    FaceRestoration(finder, NetworkFaces(Sharpener()), NO_CHECK, FaceSettings()).restore(photo(), told.append)
    assert told == sorted(told)
    assert told[-1] == 1
    sharpener = Sharpener()

    def stop(_: float) -> None:
        raise KeyError

    with pytest.raises(KeyError):
        FaceRestoration(finder, NetworkFaces(sharpener), NO_CHECK, FaceSettings()).restore(photo(), stop)
    assert len(sharpener.sides) == 1


@pytest.mark.parametrize("size", [(1, 1), (2, 40), (40, 1)])
def test_tiny_pictures_are_taken(size: tuple[int, int]) -> None:
    image = Image.new("RGB", size, (120, 90, 80))
    assert restored(image, Finder((0, 0, size[0], size[1]))).image.size == size


def test_a_real_face_that_lost_its_detail_gets_closer_to_what_it_was() -> None:
    with Image.open(PHOTO) as image:
        truth = image.convert("RGB")
    soft = truth.resize((110, 128), Image.Resampling.BOX).resize(truth.size, Image.Resampling.BICUBIC)
    check = ConsistencyCheck(Thresholds(ssim=0.7))
    made = FaceRestoration(Vision(1), NetworkFaces(Upscaler()), check, FaceSettings()).restore(soft, lambda _: None)
    (face,) = made.faces
    assert face.scores.passed
    box = (face.box.left, face.box.top, face.box.right, face.box.bottom)
    was, before, after = (np.asarray(picture.crop(box)) for picture in (truth, soft, made.image))
    assert ssim(after, was) > ssim(before, was) + 0.005

    def detail(pixels: np.ndarray) -> float:
        return float(np.abs(np.diff(pixels.astype(float), axis=1)).mean())

    assert detail(after) > 1.05 * detail(before)
    assert np.abs(after.astype(float).mean((0, 1)) - before.astype(float).mean((0, 1))).max() < 3
