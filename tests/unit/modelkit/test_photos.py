"""How photos are examined, on twelve real photos and on variants made of them; docs/task-types.md has the table."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from modelkit import photos
from modelkit.photos import PALETTE, blur_of, cut_sides, dominant, examine, light_of
from modelkit.vision import Vision

FOLDER = Path(__file__).parent / "data" / "people"
EXPECTED = json.loads((FOLDER / "expected.json").read_text(encoding="utf-8"))
# What a person sees in them: the colour of the garment, and the sides that cut the nearest person.
GARMENTS = {"astronaut": "orange", "biden": "black", "camera": "black", "grace-hopper": "black", "obama3": "black"}
CUT = {
    "astronaut": {"left", "bottom"},
    "grace-hopper": {"left", "right", "bottom"},
    "obama": {"bottom"},
    "obama2": {"left", "right", "bottom"},
    "obama3": {"bottom"},
}
VISION = Vision(1)
SEEN: dict[str, photos.ExaminedPhoto] = {}


def photo(name: str) -> Image.Image:
    with Image.open(FOLDER / f"{name}.jpg") as opened:
        return opened.convert("RGB")


def examined(name: str) -> photos.ExaminedPhoto:
    if name not in SEEN:
        SEEN[name] = examine(photo(name), VISION)
    return SEEN[name]


def lit(image: Image.Image, stops: float) -> Image.Image:
    """The photo with more light, or less, on the sensor."""
    level = np.asarray(image).astype(np.float64) / 255
    linear = np.where(level <= 0.04045, level / 12.92, ((level + 0.055) / 1.055) ** 2.4) * 2.0**stops
    linear = np.clip(linear, 0, 1)
    shown = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
    return Image.fromarray(np.round(shown * 255).astype(np.uint8))


def blurred(image: Image.Image, sigma: float) -> Image.Image:
    return Image.fromarray(cv2.GaussianBlur(np.asarray(image), (0, 0), sigma).astype(np.uint8))


def moved(image: Image.Image, pixels: int) -> Image.Image:
    kernel = np.zeros((pixels, pixels), np.float32)
    kernel[pixels // 2] = 1 / pixels
    return Image.fromarray(cv2.filter2D(np.asarray(image), -1, kernel).astype(np.uint8))


def blur_within(name: str, variant: Image.Image) -> float:
    """The blur of a variant, measured where the subject of the photo is."""
    box = examined(name).subject_box
    part = variant if box is None else variant.crop(box)
    return blur_of(np.asarray(part.convert("L")))


def light_within(variant: Image.Image) -> photos.Light:
    return examine(variant, VISION).light


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_a_real_photo_is_sharp_and_well_exposed_and_blur_is_seen(name: str) -> None:
    found = examined(name)
    assert (found.blurred, found.light.exposure) == (False, "normal")
    assert found.size == photo(name).size
    assert blur_within(name, blurred(photo(name), 2)) >= photos.BLURRED_FROM
    assert blur_within(name, moved(photo(name), 9)) >= photos.BLURRED_FROM


def test_two_stops_of_light_too_much_or_too_little_are_seen() -> None:
    over = [name for name in EXPECTED if light_within(lit(photo(name), 2)).exposure == "over"]
    under = [name for name in EXPECTED if light_within(lit(photo(name), -2)).exposure == "under"]
    # The bright ground of the aerial view passes for a white background.
    assert set(EXPECTED) - set(over) <= {"aero"}
    assert len(under) == len(EXPECTED)


def test_people_are_counted_and_have_boxes() -> None:
    right = [name for name, seen in EXPECTED.items() if examined(name).people == seen["people"]]
    assert len(right) >= 10
    for name in EXPECTED:
        found = examined(name)
        people = [one for one in found.found if one.kind == "person"]
        assert len(people) == found.people
        for one in found.found:
            left, top, right_, bottom = one.box
            assert 0 <= left < right_ <= found.size[0]
            assert 0 <= top < bottom <= found.size[1]
            assert 0 < one.confidence <= 1
            assert all(0 <= joint.x < found.size[0] and 0 <= joint.y < found.size[1] for joint in one.joints)
    [person, face] = examined("obama").found
    assert (person.kind, face.kind) == ("person", "face")
    assert {"nose", "left_shoulder", "right_shoulder"} <= {joint.name for joint in person.joints}
    assert all(inner >= outer for inner, outer in zip(face.box[:2], person.box[:2], strict=True))
    assert all(inner <= outer for inner, outer in zip(face.box[2:], person.box[2:], strict=True))


def test_garments_have_the_colour_that_people_see() -> None:
    assert {name: found.name for name in GARMENTS if (found := examined(name).garment)} == GARMENTS
    for name in ("aero", "chelsea", "coffee"):
        assert examined(name).garment is None


def test_a_body_that_the_picture_cuts_is_told() -> None:
    assert {name: set(examined(name).cut) for name in CUT} == CUT
    assert cut_sides((50, 50, 150, 150), (200, 200)) == ()


def test_boxes_are_of_the_whole_photo_however_large_it_is() -> None:
    large = photo("obama").resize((410 * 5, 512 * 5), Image.Resampling.LANCZOS)
    found, small = examine(large, VISION), examined("obama")
    assert found.size == large.size
    [person, *_] = found.found
    for edge, expected in zip(person.box, small.found[0].box, strict=True):
        assert abs(edge / 5 - expected) < 25


def test_a_thing_before_a_plain_background_is_the_subject() -> None:
    picture = Image.new("RGB", (320, 240), (235, 235, 235))
    picture.paste((184, 30, 38), (120, 60, 220, 180))
    found = examine(picture, VISION)
    assert (found.people, found.subject, found.cut) == (0, "object", ())
    assert found.garment is not None
    assert (found.garment.name, found.garment.rgb) == ("red", (184, 30, 38))
    # White around it is a background, and not burnt out.
    bright = Image.new("RGB", (320, 240), (255, 255, 255))
    bright.paste((184, 30, 38), (120, 60, 220, 180))
    assert examine(bright, VISION).light.exposure == "normal"


@pytest.mark.parametrize("name", sorted(PALETTE))
def test_a_colour_of_the_palette_has_its_name(name: str) -> None:
    cloth = np.clip(np.array(PALETTE[name]) + np.random.default_rng(7).normal(0, 4, (500, 3)), 0, 255)
    found = dominant(cloth.astype(np.uint8))
    assert found is not None
    assert found.name == name
    assert found.share > 0.8


def test_too_few_pixels_have_no_colour() -> None:
    assert dominant(np.zeros((20, 3), np.uint8)) is None


def test_a_picture_of_one_level_is_blurred_and_black_is_not_burnt_out() -> None:
    levels = np.zeros((40, 60), np.uint8)
    assert blur_of(levels) == 1.0
    light = light_of(levels)
    assert (light.exposure, light.burnt, light.black, light.median) == ("under", 0.0, 1.0, 0.0)
    assert blur_of(np.zeros((1, 1), np.uint8)) == 0.0


def test_a_burnt_face_counts_where_the_rest_of_the_subject_is_dark() -> None:
    levels = np.full((100, 100), 20, np.uint8)
    levels[10:20, 10:20], levels[50:60] = 255, 200
    assert light_of(levels).exposure == "normal"
    assert light_of(levels, None, (10.0, 10.0, 20.0, 20.0)).exposure == "over"
    assert light_of(levels, None, (-50.0, -50.0, -10.0, -10.0)).burnt == pytest.approx(0.01)
