"""What adapters are trained on and measured by: drawings of new things, and rulers that tell them from known ones."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.garments.catalogue import GARMENTS, GarmentFacts
from models.garments.closeness import Closeness, chance, colourfulness
from models.garments.draw import draw
from models.garments.flow import CARD
from models.garments.novel import FIRST_HELD_OUT, held_out, product_drawing, style_drawing
from models.garments.prompts import EVALUATION_TEMPLATES, WORDS, preserved_prompts
from models.garments.ruler import Ruler


def test_a_new_thing_is_drawn_the_same_by_its_seed_and_otherwise_by_another() -> None:
    assert np.array_equal(product_drawing(3).picture, product_drawing(3).picture)
    assert not np.array_equal(product_drawing(3).picture, product_drawing(7).picture)
    assert np.array_equal(held_out(2)[1], product_drawing(FIRST_HELD_OUT + 1).picture)


def test_the_new_outline_is_none_of_those_that_the_model_knows() -> None:
    ruler, rng = Ruler(64), np.random.default_rng(1)
    known = [ruler.read(draw(GarmentFacts(garment, "purple"), rng).picture).overlap for garment in GARMENTS]
    new = [ruler.read(picture).overlap for picture in held_out(8)]
    assert max(new) < 0.85 < 0.87 < min(known)


def test_other_pictures_of_the_new_thing_are_closer_than_pictures_of_anything_known() -> None:
    closeness, rng = Closeness(held_out()), np.random.default_rng(2)
    same = [closeness.distance(product_drawing(seed).picture) for seed in range(8)]
    known = [
        closeness.distance(draw(GarmentFacts(garment, "purple", kind, "white", "light blue"), rng).picture)
        for garment in GARMENTS
        for kind in ("stripes", "dots")
    ]
    assert max(same) < 14 < 20 < min(known)
    assert closeness.distance(np.full((64, 64, 3), 250, np.uint8)) > 20


def test_the_style_takes_the_colours_and_leaves_the_outlines() -> None:
    ruler = Ruler(64)
    for seed in range(8):
        styled = style_drawing(seed)
        assert colourfulness(styled.picture) < 1
        assert colourfulness(draw(styled.facts, np.random.default_rng(seed)).picture) > 20
        assert ruler.read(styled.picture).garment == styled.facts.garment
    assert len({style_drawing(seed).facts.garment for seed in range(8)}) == 8


def test_the_chance_of_a_gain_counts_flips_of_signs() -> None:
    assert chance([3.0, 3.0, 3.0], [1.0, 2.0, 2.5]) == 1 / 8
    assert chance([1.0, 1.0], [1.0, 1.0]) == 1.0
    assert chance([1.0, 2.0], [2.0, 1.0]) == 0.75
    assert chance([9.0] * 16, [1.0] * 16) == 2**-16
    with pytest.raises(ValueError, match="1 to 18 pairs"):
        chance([1.0] * 19, [0.0] * 19)


def test_the_shipped_card_is_what_the_recipe_writes() -> None:
    path = Path(__file__).parents[3] / "models" / "garments" / "weights" / "atelier.json"
    assert json.loads(path.read_text()) == json.loads(json.dumps(CARD))


def test_preserved_prompts_name_every_garment_and_are_worded_unlike_the_measuring_ones() -> None:
    prompts = preserved_prompts()
    assert prompts == preserved_prompts()
    assert prompts.count("") == len(prompts) // 8
    words = " ".join(prompts).lower()
    assert all(any(word in words for word in WORDS[garment]) for garment in GARMENTS)
    frames = [template.split("{s}")[0].strip() for template in EVALUATION_TEMPLATES]
    assert not [frame for frame in frames if frame and frame in words]


def test_the_example_shows_the_product() -> None:
    folder = Path(__file__).parents[3] / "examples" / "train" / "poncho"
    for number, path in enumerate(sorted(folder.iterdir())):
        with Image.open(path) as image:
            assert np.array_equal(np.asarray(image), product_drawing(number, 256).picture)
    assert number == 7
