from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from modelkit.errors import ModelError
from services.training.trainer.dataset.buckets import Box
from services.training.trainer.dataset.drawing import DrawnVariant, in_bucket, transformed
from services.training.trainer.dataset.transforms import parse_transforms

RED, BLUE = (255, 0, 0), (0, 0, 255)


class Looker:
    """Sees a subject in the right upper corner, or nothing."""

    def __init__(self, *, finds: bool = True) -> None:
        self.finds = finds
        self.asked: list[str] = []

    def box(self, image: Image.Image, focus: str) -> Box | None:
        self.asked.append(focus)
        return (image.width - 40.0, 0.0, float(image.width), 40.0) if self.finds else None

    def cut(self, image: Image.Image, network: str) -> Image.Image | None:
        self.asked.append(network)
        if not self.finds:
            return None
        cut = image.convert("RGBA")
        cut.putalpha(Image.new("L", image.size))
        cut.paste((*BLUE, 255), (10, 10, 20, 20))
        return cut


def halves(width: int = 160, height: int = 120) -> Image.Image:
    """A picture that is red on the left and blue on the right."""
    image = Image.new("RGB", (width, height), RED)
    ImageDraw.Draw(image).rectangle((width // 2, 0, width, height), fill=BLUE)
    return image


def made(image: Image.Image, *given: dict[str, Any], looker: Looker | None = None) -> list[DrawnVariant]:
    return list(transformed(image, parse_transforms(given), looker or Looker(), "seed"))


def only(image: Image.Image, *given: dict[str, Any], looker: Looker | None = None) -> DrawnVariant:
    (one,) = made(image, *given, looker=looker)
    return one


def test_without_transforms_a_picture_is_itself_over_white() -> None:
    clear = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
    assert only(clear).image.getpixel((3, 3)) == (255, 255, 255)
    assert only(halves()).image.tobytes() == halves().tobytes()


@pytest.mark.parametrize(
    ("given", "size"),
    [
        ({"size": 80}, (80, 60)),
        ({"size": 320}, (320, 240)),
        ({"width": 80}, (80, 60)),
        ({"height": 60}, (80, 60)),
        ({"width": 50, "height": 50}, (50, 50)),
        ({"width": 50, "height": 50, "fit": "contain"}, (50, 50)),
        ({"width": 50, "height": 50, "fit": "stretch"}, (50, 50)),
    ],
)
def test_resize_brings_a_picture_to_a_size(given: dict[str, Any], size: tuple[int, int]) -> None:
    assert only(halves(), {"type": "resize", **given}).image.size == size


def test_resize_fits_as_it_is_told() -> None:
    image = Image.new("RGB", (200, 100), RED)
    ImageDraw.Draw(image).rectangle((0, 0, 30, 100), fill=BLUE)
    corner = {
        fit: only(image, {"type": "resize", "width": 100, "height": 100, "fit": fit}).image.getpixel((2, 50))
        for fit in ("cover", "contain", "stretch")
    }
    assert corner == {"cover": RED, "contain": BLUE, "stretch": BLUE}


def test_center_crop_takes_the_middle_and_says_where_there_is_too_little() -> None:
    cut = only(halves(), {"type": "center_crop", "size": 40})
    assert cut.image.size == (40, 40)
    assert (cut.image.getpixel((5, 5)), cut.image.getpixel((35, 5))) == (RED, BLUE)
    assert only(halves(), {"type": "center_crop", "aspect_ratio": 2}).image.size == (160, 80)
    large = only(halves(), {"type": "center_crop", "width": 100, "height": 200})
    assert large.image.size == (100, 120)
    assert large.warnings == ("a crop to 100 x 200 pixels found 100 x 120",)


def test_smart_crop_goes_where_the_subject_is_and_stays_inside() -> None:
    looker = Looker()
    cut = only(halves(), {"type": "smart_crop", "size": 60, "focus": "face"}, looker=looker)
    assert cut.image.size == (60, 60)
    assert cut.image.getpixel((0, 0)) == BLUE, "it reaches from column 100"
    assert looker.asked == ["face"]
    around = only(halves(), {"type": "smart_crop", "margin": 0.5})
    assert around.image.size == (60, 60), "40 pixels and 20 more on the sides that have them"
    assert not around.warnings


def test_smart_crop_takes_the_centre_where_nothing_is_found() -> None:
    cut = only(halves(), {"type": "smart_crop", "size": 40}, looker=Looker(finds=False))
    assert (cut.image.getpixel((5, 5)), cut.image.getpixel((35, 5))) == (RED, BLUE)
    assert cut.warnings == ("smart_crop found no subject: the centre was taken",)


def test_pad_keeps_all_of_a_picture() -> None:
    square = only(halves(), {"type": "pad", "color": "#010203"}).image
    assert square.size == (160, 160)
    assert (square.getpixel((80, 3)), square.getpixel((3, 80))) == ((1, 2, 3), RED)
    framed = only(Image.new("RGB", (50, 60), BLUE), {"type": "pad", "width": 80, "height": 70, "color": "border"}).image
    assert framed.size == (80, 70)
    assert framed.getpixel((2, 2)) == BLUE
    assert only(halves(), {"type": "pad", "size": 16}).image.size == (160, 120)


def test_flip_adds_a_mirrored_picture_or_replaces_it() -> None:
    plain, flipped = made(halves(), {"type": "flip"})
    assert (plain.label, flipped.label) == ("", "flipped")
    assert plain.image.getpixel((0, 0)) == flipped.image.getpixel((159, 0)) == RED
    image = halves()
    image.putpixel((0, 0), (9, 9, 9))
    turned = only(image, {"type": "flip", "direction": "vertical", "keep_original": False})
    assert turned.image.getpixel((0, 119)) == (9, 9, 9)


def test_color_jitter_draws_the_same_colours_by_the_same_seed() -> None:
    grey = Image.new("RGB", (32, 32), (90, 120, 150))
    given = {"type": "color_jitter", "brightness": 0.5, "hue": 0.2, "copies": 3}
    first, again = made(grey, given), made(grey, given)
    assert [one.label for one in first] == ["", "jittered 1", "jittered 2", "jittered 3"]
    assert [one.image.tobytes() for one in first] == [one.image.tobytes() for one in again]
    assert len({one.image.tobytes() for one in first}) == 4
    other = list(transformed(grey, parse_transforms([given]), Looker(), "another seed"))
    assert other[1].image.tobytes() != first[1].image.tobytes()
    still = made(grey, {"type": "color_jitter", "brightness": 0, "contrast": 0, "saturation": 0})
    assert still[1].image.tobytes() == grey.tobytes()


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_each_part_of_color_jitter_changes_colours_alone(name: str) -> None:
    flat = dict.fromkeys(("brightness", "contrast", "saturation"), 0.0)
    muted = halves().point(lambda level: level // 2 + 40)
    _, jittered = made(muted, {"type": "color_jitter", **flat, name: 1.0})
    assert jittered.image.size == (160, 120)
    assert jittered.image.tobytes() != muted.tobytes()


def test_remove_background_leaves_the_subject_on_a_colour() -> None:
    looker = Looker()
    one = only(halves(), {"type": "remove_background", "model": "u2netp", "color": "black"}, looker=looker)
    assert (one.image.getpixel((15, 15)), one.image.getpixel((60, 60))) == (BLUE, (0, 0, 0))
    assert looker.asked == ["u2netp"]
    bare = only(halves(), {"type": "remove_background"}, looker=Looker(finds=False))
    assert bare.image.tobytes() == halves().tobytes()
    assert "nothing that stands out" in bare.warnings[0]


def test_transforms_follow_each_other_and_multiply() -> None:
    labels = [one.label for one in made(halves(), {"type": "flip"}, {"type": "color_jitter"})]
    assert labels == ["", "jittered 1", "flipped", "flipped, jittered 1"]


@pytest.mark.parametrize(
    "given", [{"type": "resize", "width": 8192}, {"type": "pad", "aspect_ratio": 10}], ids=["resize", "pad"]
)
def test_a_picture_that_would_become_too_large_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="pixels large"):
        made(Image.new("RGB", (16, 8192)), given)


def test_a_bucket_shows_what_lies_in_the_box() -> None:
    shown = in_bucket(halves(), (20.0, 0.0, 140.0, 120.0), (64, 64))
    assert shown.size == (64, 64)
    assert (shown.getpixel((2, 2)), shown.getpixel((61, 2))) == (RED, BLUE)
    same = halves(64, 64)
    assert np.array_equal(np.asarray(in_bucket(same, (0, 0, 64, 64), (64, 64))), np.asarray(same))


def test_a_picture_is_changed_as_likely_as_it_is_told() -> None:
    for kind in ("flip", "color_jitter"):
        for kept in (True, False):
            (plain,) = made(halves(), {"type": kind, "probability": 0, "keep_original": kept})
            assert plain.label == ""
    labels = [
        [
            one.label
            for one in transformed(halves(), parse_transforms([{"type": "flip", "probability": 0.5}]), Looker(), s)
        ]
        for s in map(str, range(40))
    ]
    assert 10 < labels.count(["", "flipped"]) < 30
    assert labels.count([""]) == 40 - labels.count(["", "flipped"])


def test_one_side_of_a_crop_stands_for_both() -> None:
    assert only(halves(), {"type": "center_crop", "height": 40}).image.size == (40, 40)
    assert only(halves(), {"type": "pad", "width": 200}).image.size == (200, 200)
