"""The motions model: its clips, wordings and ruler, and a recipe that goes on where it was stopped."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from modelkit.card import read_card
from modelkit.device import Device
from modelkit.family import Source
from modelkit.frames import FrameAutoencoder
from modelkit.video import VideoFamily
from models.garments.catalogue import HELD_OUT, TRAINED_PAIRS, GarmentFacts
from models.garments.draw import draw
from models.motions import vae as vaes
from models.motions.evaluate import held_out, made, measure
from models.motions.film import FRAMES, MOTIONS, SIZE, Framing, Motion, film, film_many
from models.motions.ruler import flicker, motion_of, movements, psnr
from models.motions.train import MotionRecipe, train
from models.motions.wordings import EVALUATION, TRAINING, training_wording

SHIPPED = Path(__file__).parents[3] / "models" / "motions" / "weights"


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    # On a busy machine a second thread makes steps this small wait for a time slice at every barrier.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def clip_of(motion: Motion) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    drawing = draw(GarmentFacts("dress", "green"), np.random.default_rng(2), 2 * SIZE)
    return film(drawing, motion, Framing(0.8, 0.0, 0.0))


def test_clips_are_the_same_by_seed_and_begin_with_one_picture() -> None:
    clips, motions = film_many(5, 2)
    again, _ = film_many(5, 2)
    assert (clips == again).all()
    assert clips.shape == (12, FRAMES, SIZE, SIZE, 3)
    assert motions.tolist() == [*range(6), *range(6)]
    assert (clips[:6, 0] == clips[0, 0]).all()
    assert (clips[0, 0] != clips[6, 0]).any()


@pytest.mark.parametrize("motion", MOTIONS)
def test_the_ruler_reads_drawn_motions(motion: Motion) -> None:
    assert motion_of(clip_of(motion)) == motion


def test_the_ruler_names_no_motion_where_nothing_moves() -> None:
    still = np.repeat(clip_of("turn")[:1], FRAMES, axis=0)
    assert motion_of(still) is None
    assert flicker(still) == 0
    assert movements(np.full_like(still, 200))[0].right == 0


def test_a_pan_goes_as_far_as_its_clip_says() -> None:
    [*_, last] = movements(clip_of("pan left"))
    assert last.right == pytest.approx(0.6, abs=0.08)
    assert last.wider == pytest.approx(0, abs=0.1)


def test_flicker_of_the_ground_is_measured_beside_a_moving_garment() -> None:
    clip = clip_of("sway").astype(np.int16)
    clip[1::2] += 4
    assert flicker(np.clip(clip, 0, 255).astype(np.uint8)) == pytest.approx(4, abs=0.5)


def test_no_measuring_sentence_is_a_training_one() -> None:
    rng = np.random.default_rng(1)
    trained = {w.replace("{a}", "").strip() for words in TRAINING.values() for w in words}
    measured = [w for words in EVALUATION.values() for w in words]
    assert not trained & set(measured)
    worded = {training_wording(motion, rng).lower() for motion in MOTIONS for _ in range(400)}
    assert not {w.format(s="the garment").lower() for w in measured} & worded
    assert set(TRAINING) == set(EVALUATION) == set(MOTIONS)


def test_measured_garments_are_never_trained_on() -> None:
    assert not set(TRAINED_PAIRS) & HELD_OUT
    clips, motions, prompts = held_out(1, 1)
    assert len(clips) == len(motions) == len(prompts) == len(HELD_OUT) * len(MOTIONS)
    drawn = measure(clips[:12], clips[:12, 0], motions[:12])
    assert drawn["asked_share"] > 0.9
    assert drawn["first_frame_db"]["least"] > 90


def test_the_workers_autoencoder_makes_the_latents_of_the_recipe() -> None:
    clip = clip_of("zoom in")[None]
    own = vaes.load_vae()
    latents = vaes.encode_clips(own, np.repeat(clip, 6, axis=0))[:1].float()
    adapter = FrameAutoencoder(own)
    x = torch.from_numpy(clip).permute(0, 4, 1, 2, 3).float() / 127.5 - 1
    with torch.no_grad():
        encoded = adapter.encode(x).latents
        back = adapter.decode(encoded).sample
    assert adapter.spatial_compression_ratio == vaes.FACTOR
    assert torch.allclose(encoded, latents, atol=0.02)
    frames = ((back.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 4, 1).numpy()
    assert np.abs(frames.astype(int) - vaes.decode_clips(own, latents).astype(int)).mean() < 1
    assert psnr(frames[0, 0], clip[0, 0]) > 24


def test_a_tiny_run_goes_on_and_ends_in_a_folder_that_the_worker_loads(tmp_path: Path) -> None:
    recipe = MotionRecipe(tmp_path, minutes=10, garments=2, batch=4, step_limit=2, export_seconds=0)
    latest = train(recipe)
    state = torch.load(tmp_path / "state" / "flow.pt", weights_only=False)
    assert (state["steps"], state["done"]) == (2, True)
    # Stopped before its end, the last stage goes on; those before it are only read.
    torch.save({**state, "done": False}, tmp_path / "state" / "flow.pt")
    train(MotionRecipe(tmp_path, minutes=10, garments=2, batch=4, step_limit=3))
    resumed = torch.load(tmp_path / "state" / "flow.pt", weights_only=False)
    assert resumed["steps"] == 3
    assert any((state["state"]["model"][k] != v).any() for k, v in resumed["state"]["model"].items())
    card = read_card(latest)
    assert VideoFamily().matches(card)
    model = VideoFamily().load(Source(card, latest), Device("cpu", 1))
    assert model.card.video.max_frames == FRAMES
    model.close()


def test_the_shipped_folder_is_small_and_complete() -> None:
    assert sum(file.stat().st_size for file in SHIPPED.rglob("*") if file.is_file()) <= 25_000_000
    assert {file.suffix for file in SHIPPED.rglob("*") if file.is_file()} <= {".json", ".safetensors"}
    card = read_card(SHIPPED)
    assert (card.name, card.architecture, card.video.max_frames) == ("motions", "ltx", FRAMES)


def test_the_shipped_model_moves_a_garment_as_asked() -> None:
    clips, motions, prompts = held_out(11, 1)
    some = [place for place, _ in itertools.islice(enumerate(motions), 12)]
    guidance = json.loads((SHIPPED / "atelier.json").read_text())["guidance"]["scale_default"] / 2
    moved = made(SHIPPED, clips[some, 0], [prompts[k] for k in some], guidance, 8)
    found = measure(moved, clips[some, 0], [motions[k] for k in some])
    assert found["first_frame_db"]["mean"] > 24
    assert found["asked_share"] > 0.7
