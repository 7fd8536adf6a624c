"""Changes, their instructions and the recipe of the edits model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FluxKontextPipeline

from models.edits.flow import positions
from models.edits.pairs import Pairs, draw_part, draw_parts
from models.edits.scenes import LONG, GarmentScene, change, differences, family, fits, held_out_scenes, start
from models.edits.train import EditRecipe, train
from models.edits.wording import EVALUATION_WORDINGS, HEADS, instruction, labels_of, measured, worded
from models.garments.catalogue import HELD_OUT, GarmentFacts
from models.garments.draw import draw
from models.garments.ruler import cloth_mask
from models.garments.shapes import SHAPES

# Levels of one drawing, summed, as the garments model was trained on it.
EXPECTED_SUM = 2_483_223


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_only_the_colour_differs_between_two_drawings_of_one_seed() -> None:
    before = GarmentScene(GarmentFacts("dress", "red"))
    after = GarmentScene(GarmentFacts("dress", "blue"))
    first, second = before.draw(4), after.draw(4)
    assert (first.silhouette == second.silhouette).all()
    ground = first.silhouette == 0
    assert (first.picture[ground] == second.picture[ground]).all()
    assert np.abs(first.picture[~ground].astype(int) - second.picture[~ground]).mean() > 40


def test_one_generator_for_all_streams_draws_what_it_always_drew() -> None:
    one = draw(GarmentFacts("coat", "red", "dots", "white"), np.random.default_rng(3))
    assert int(one.picture.astype(np.int64).sum()) == EXPECTED_SUM


@pytest.mark.parametrize("garment", sorted(LONG))
def test_long_sleeves_only_add_cloth_at_the_sides(garment: str) -> None:
    facts = GarmentFacts(garment, "blue")
    short, long = GarmentScene(facts).draw(2).silhouette > 0.5, GarmentScene(facts, long=True).draw(2).silhouette > 0.5
    assert long.sum() > 1.02 * short.sum()
    assert (short & long).sum() > 0.85 * short.sum()
    middle = slice(28, 36)
    assert (short[:, middle] == long[:, middle]).mean() > 0.98


def test_no_family_holds_a_held_out_pair() -> None:
    for seed in range(300):
        scenes, pairs = family(seed, 4)
        assert all(fits(scene) for scene in scenes)
        for scene in scenes:
            facts = scene.facts
            assert (facts.garment, facts.colour) not in HELD_OUT
            assert (facts.garment, facts.second) not in HELD_OUT
        assert all(differences(a, b) for _, _, a, b in pairs)


def test_held_out_changes_are_the_sixteen_pairs_and_change_the_colour_alone() -> None:
    made = held_out_scenes(1)
    assert {(after.facts.garment, after.facts.colour) for _, after in made} == HELD_OUT
    assert all(differences(before, after) == ("colour",) and fits(before) for before, after in made)


def test_training_never_says_a_measuring_sentence() -> None:
    rng = np.random.default_rng(5)
    said = {worded(rng)[0].lower().strip(" .") for _ in range(3000)}
    for _ in range(40):
        before = start(rng)
        after = change(before, rng)
        if len(differences(before, after)) == 1:
            for index in range(8):
                assert measured(before, after, index).lower() not in said
    assert all(len(wordings) >= 4 for wordings in EVALUATION_WORDINGS.values())


def test_labels_say_what_an_instruction_asks_for() -> None:
    before = GarmentScene(GarmentFacts("dress", "red"))
    after = GarmentScene(GarmentFacts("dress", "blue", "stripes", "white"))
    assert differences(before, after) == ("colour", "print")
    labels = labels_of(before, after)
    assert len(labels) == len(HEADS)
    assert labels[0] == len(SHAPES)  # no other garment
    assert labels[-1] == 2  # nothing about sleeves
    text = instruction(before, after, np.random.default_rng(1)).lower()
    assert any(word in text for word in ("blue", "navy", "cobalt"))


def test_parts_are_drawn_beside_each_other_and_kept(tmp_path: Path) -> None:
    paths = draw_parts(tmp_path, 4, 32, processes=2, seed=0, part=2)
    drawn = Pairs.read(paths)
    alone = draw_part(1001, 2, 32)
    count = len(draw_part(1000, 2, 32).pictures)
    assert (drawn.pictures[count:] == alone.pictures).all()
    assert (drawn.before[-len(alone.before) :] == alone.before + count).all()
    times = [path.stat().st_mtime_ns for path in paths]
    assert draw_parts(tmp_path, 4, 32, processes=2, seed=0, part=2) == paths
    assert [path.stat().st_mtime_ns for path in paths] == times


def test_positions_are_the_pipelines_own() -> None:
    own = FluxKontextPipeline._prepare_latent_image_ids(1, 4, 4, "cpu", torch.float32)
    shown = own.clone()
    shown[:, 0] = 1
    assert torch.equal(positions(8, 8), torch.cat([own, shown]))


def test_the_ruler_sees_the_silhouette_of_a_drawing() -> None:
    made = GarmentScene(GarmentFacts("bag", "green")).draw(9)
    mask, truth = cloth_mask(made.picture), made.silhouette > 0.5
    assert (mask & truth).sum() / (mask | truth).sum() > 0.95


def test_tiny_recipe_ends_in_a_folder_that_the_pipeline_loads(tmp_path: Path) -> None:
    recipe = EditRecipe(tmp_path, minutes=5, families=3, batch=3, processes=1, step_limit=2)
    folder = train(recipe)
    written = (folder / "transformer" / "diffusion_pytorch_model.safetensors").read_bytes()
    assert train(recipe) == folder  # goes through both stages without a step
    assert (folder / "transformer" / "diffusion_pytorch_model.safetensors").read_bytes() == written
    card = json.loads((folder / "atelier.json").read_text())
    assert (card["name"], card["architecture"]) == ("edits", "flux-kontext")
    index = json.loads((folder / "model_index.json").read_text())
    assert index["_class_name"] == "FluxKontextPipeline"
