from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from modelkit.vision import Vision, foreground

PHOTO = Path(__file__).parent / "data" / "astronaut.jpg"


@pytest.fixture(scope="module")
def vision() -> Vision:
    return Vision(1)


def product(shade: float = 0.0, noise: float = 0.0) -> Image.Image:
    image = Image.new("RGB", (160, 120), (225, 220, 210))
    ImageDraw.Draw(image).rectangle((40, 30, 99, 89), fill=(180, 40, 50))
    pixels = np.asarray(image).astype(float)
    pixels *= 1 - shade * np.linspace(0, 1, 160)[None, :, None]
    pixels += np.random.default_rng(0).normal(0, noise, pixels.shape) if noise else 0
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def test_a_person_is_found_in_a_photo(vision: Vision) -> None:
    with Image.open(PHOTO) as photo:
        subject = vision.subject(photo)
    assert subject is not None
    assert subject.kind == "person"
    left, top, right, bottom = subject.box
    assert top < 25
    assert bottom > 240
    assert right - left > 140
    assert subject.mask[60, 110]  # the face
    assert not subject.mask[20, 20]  # the flag's corner


@pytest.mark.parametrize(("shade", "noise"), [(0.0, 0.0), (0.25, 0.0), (0.0, 4.0)])
def test_a_thing_is_found_on_a_plain_background(vision: Vision, shade: float, noise: float) -> None:
    subject = vision.subject(product(shade, noise))
    assert subject is not None
    assert subject.kind == "object"
    assert subject.box == pytest.approx((40, 30, 100, 90), abs=2)


def test_a_thing_that_reaches_the_border_is_found(vision: Vision) -> None:
    image = product()
    ImageDraw.Draw(image).rectangle((60, 60, 90, 119), fill=(180, 40, 50))
    subject = vision.subject(image)
    assert subject is not None
    assert subject.box == pytest.approx((40, 30, 100, 120), abs=2)


def test_what_is_not_transparent_is_the_subject_of_a_cutout(vision: Vision) -> None:
    image = Image.new("RGBA", (50, 40))
    image.paste((1, 2, 3, 255), (10, 5, 30, 35))
    subject = vision.subject(image)
    assert subject is not None
    assert (subject.kind, subject.box) == ("cutout", (10, 5, 30, 35))


def test_a_plain_area_and_noise_have_no_subject(vision: Vision) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (80, 80, 3), np.uint8)
    assert vision.subject(Image.new("RGB", (80, 80), (90, 120, 10))) is None
    assert vision.subject(Image.fromarray(noise)) is None


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (1, 200), (700, 3)])
def test_tiny_and_narrow_pictures_are_taken(vision: Vision, size: tuple[int, int]) -> None:
    assert vision.subject(Image.new("RGB", size, (90, 120, 10))) is None


def test_a_foreground_leaves_specks_out() -> None:
    image = product()
    image.putpixel((5, 60), (0, 0, 0))
    mask = foreground(np.asarray(image))
    assert mask is not None
    assert not mask[60, 5]


def test_faces_near_and_far_are_found_the_largest_first(vision: Vision) -> None:
    with Image.open(PHOTO) as photo:
        person = photo.convert("RGB")
    scene = Image.new("RGB", (1600, 1200), (90, 100, 110))
    scene.paste(person, (100, 50))
    scene.paste(person.resize((880, 1024)), (500, 100))
    large, small = vision.faces(scene)
    assert large.box == pytest.approx((850, 240, 1055, 445), abs=15)
    assert small.box == pytest.approx((187, 85, 239, 137), abs=6)
    assert min(large.score, small.score) > 0.5


def test_a_rocket_beside_a_person_is_no_face(vision: Vision) -> None:
    with Image.open(PHOTO) as photo:
        (face,) = vision.faces(photo.convert("RGB").resize((880, 1024), Image.Resampling.LANCZOS))
    assert face.box == pytest.approx((346, 134, 557, 344), abs=15)


def test_things_noise_and_tiny_pictures_have_no_face(vision: Vision) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (80, 80, 3), np.uint8)
    for image in (product(), Image.fromarray(noise), Image.new("RGB", (1, 1)), Image.new("RGB", (700, 3))):
        assert vision.faces(image) == []
