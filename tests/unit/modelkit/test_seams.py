"""Pictures that were put together of several are told from those that were not."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modelkit.seams import is_collage

PHOTO = Path(__file__).parent / "data" / "astronaut.jpg"


def photo() -> Image.Image:
    with Image.open(PHOTO) as opened:
        return opened.convert("RGB")


def texture(side: int = 256) -> Image.Image:
    """What no part of the photo looks like: clouds of noise."""
    coarse = np.random.default_rng(4).integers(30, 220, (12, 12, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)


def beside(left: Image.Image, right: Image.Image, gap: int = 0) -> Image.Image:
    right = right.resize((right.width * left.height // right.height, left.height))
    both = Image.new("RGB", (left.width + gap + right.width, left.height), "white")
    both.paste(left)
    both.paste(right, (left.width + gap, 0))
    return both


@pytest.mark.parametrize("gap", [0, 6])
@pytest.mark.parametrize("turned", [False, True])
def test_two_pictures_beside_each_other_are_a_collage(gap: int, turned: bool) -> None:
    both = beside(photo(), texture(), gap)
    assert is_collage(both.rotate(90, expand=True) if turned else both)


def test_a_collage_is_one_after_it_was_compressed() -> None:
    held = io.BytesIO()
    beside(photo(), texture()).save(held, "JPEG", quality=85)
    with Image.open(held) as both:
        assert is_collage(both.convert("RGB"))


def test_a_photo_is_none() -> None:
    assert not is_collage(photo())


def test_a_border_does_not_make_a_photo_a_collage() -> None:
    framed = Image.new("RGB", (photo().width + 120, photo().height + 120), "white")
    framed.paste(photo(), (60, 60))
    assert not is_collage(framed)


def test_bars_beside_a_photo_do_not_make_it_a_collage() -> None:
    barred = Image.new("RGB", (photo().width * 2, photo().height))
    barred.paste(photo(), (photo().width // 2, 0))
    assert not is_collage(barred)


@pytest.mark.parametrize("size", [(1, 1), (3, 900), (900, 3), (16, 16)])
def test_tiny_and_narrow_pictures_are_none(size: tuple[int, int]) -> None:
    assert not is_collage(Image.new("RGB", size, "red"))
