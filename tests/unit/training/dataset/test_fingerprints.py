import io
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.garments.catalogue import GarmentFacts
from models.garments.draw import draw
from services.training.trainer.dataset.fingerprints import copies, fingerprint, same_picture

DATA = Path(__file__).parents[2] / "modelkit" / "data"
PHOTOS = ("astronaut.jpg", "photo-astronaut.png", "photo-coffee.png")


def photo(name: str) -> Image.Image:
    with Image.open(DATA / name) as image:
        return image.convert("RGB")


def drawn(garment: str, colour: str = "red", seed: int = 0, size: int = 64) -> Image.Image:
    return Image.fromarray(
        draw(GarmentFacts(garment, colour, "dots", "blue"), np.random.default_rng(seed), size).picture
    )


def jpeg(image: Image.Image, quality: int, share: float = 1.0) -> Image.Image:
    content = io.BytesIO()
    size = (round(image.width * share), round(image.height * share))
    image.resize(size, Image.Resampling.BICUBIC).save(content, "JPEG", quality=quality)
    return Image.open(content).convert("RGB")


@pytest.mark.parametrize("name", PHOTOS)
@pytest.mark.parametrize(("quality", "share"), [(90, 1.0), (60, 0.7), (40, 0.5), (90, 0.3)])
def test_a_photo_saved_anew_is_the_same_picture(name: str, quality: int, share: float) -> None:
    assert same_picture(fingerprint(photo(name)), fingerprint(jpeg(photo(name), quality, share)))


def test_photos_and_drawings_of_one_garment_are_different_pictures() -> None:
    prints = [fingerprint(photo(name)) for name in PHOTOS]
    assert not any(same_picture(*pair) for pair in combinations(prints, 2))
    for garment in ("dress", "hat", "sneaker"):
        prints = [fingerprint(drawn(garment, seed=seed)) for seed in range(8)]
        assert not any(same_picture(*pair) for pair in combinations(prints, 2))


def test_a_garment_in_another_colour_is_another_picture() -> None:
    assert not same_picture(fingerprint(drawn("dress")), fingerprint(drawn("dress", "green")))


def test_of_copies_the_largest_is_kept_then_the_first() -> None:
    one, other = photo("photo-coffee.png"), photo("photo-astronaut.png")
    prints = [fingerprint(image) for image in (jpeg(one, 90, 0.5), other, one, one, jpeg(other, 70))]
    assert copies(prints) == {0: 2, 3: 2, 4: 1}
