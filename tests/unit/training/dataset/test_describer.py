from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.garments.catalogue import GarmentFacts
from models.garments.draw import draw
from services.training.trainer.dataset.describer import cloth_colours, describe, silhouette
from services.training.trainer.dataset.masks import mask_of
from services.training.trainer.dataset.seeing import PictureEyes

PHOTO = Path(__file__).parents[2] / "modelkit" / "data" / "astronaut.jpg"


@pytest.fixture(scope="module")
def eyes() -> PictureEyes:
    return PictureEyes(1)


def drawn(garment: str, colour: str, second: str = "") -> Image.Image:
    facts = GarmentFacts(garment, colour, "two colours" if second else "plain", second)
    return Image.fromarray(draw(facts, np.random.default_rng(1), 128).picture)


def photo() -> Image.Image:
    with Image.open(PHOTO) as image:
        return image.convert("RGB")


@pytest.mark.parametrize(
    ("garment", "colour", "told"),
    [
        ("dress", "red", "a red dress on a white background"),
        ("trousers", "blue", "blue trousers on a white background"),
        ("t-shirt", "orange", "an orange t-shirt on a white background"),
        ("boot", "green", "a green boot on a white background"),
        ("bag", "black", "a black bag on a white background"),
    ],
)
def test_a_packshot_is_described_by_colour_shape_and_ground(
    eyes: PictureEyes, garment: str, colour: str, told: str
) -> None:
    assert describe(drawn(garment, colour), eyes) == told


def test_a_second_colour_is_told(eyes: PictureEyes) -> None:
    told = describe(drawn("dress", "blue", "yellow"), eyes)
    assert "blue" in told
    assert "yellow" in told


def test_a_person_is_described_by_framing_and_clothes(eyes: PictureEyes) -> None:
    told = describe(photo(), eyes)
    assert told.startswith("an upper body picture of a person in a")
    assert "top" in told


def test_a_picture_of_nothing_is_described_by_its_ground(eyes: PictureEyes) -> None:
    assert describe(Image.new("RGB", (96, 96), (45, 95, 200)), eyes) == "a picture on a blue background"


def test_an_outline_that_is_no_garment_is_none() -> None:
    stripe = np.zeros((100, 100), bool)
    stripe[48:52] = True
    assert silhouette(stripe) is None


def test_colours_are_those_of_the_mask_alone() -> None:
    image = Image.new("RGB", (40, 40), "white")
    image.paste((200, 30, 40), (0, 0, 20, 40))
    left = np.zeros((40, 40), bool)
    left[:, :20] = True
    assert cloth_colours(image, left) == ["red"]
    assert sorted(cloth_colours(image, np.ones((40, 40), bool))) == ["red", "white"]


def test_a_mask_marks_the_person_or_the_garment_and_a_little_more(eyes: PictureEyes) -> None:
    person = mask_of(photo(), "person", eyes)
    assert person is not None
    assert (person.mode, person.size) == ("L", (220, 256))
    assert (person.getpixel((110, 60)), person.getpixel((5, 5))) == (255, 0)
    dress = drawn("dress", "red")
    garment = mask_of(dress, "garment", eyes)
    assert garment is not None
    cloth = np.asarray(dress).astype(int).min(-1) < 150
    marked = np.asarray(garment) > 127
    assert marked[cloth].mean() > 0.99
    assert cloth.mean() < marked.mean() < 2 * cloth.mean()


def test_a_picture_without_a_person_has_no_mask_of_one(eyes: PictureEyes) -> None:
    assert mask_of(Image.new("RGB", (64, 64), "white"), "person", eyes) is None
