"""The recipe: a tiny run ends in a folder that the pipeline loads."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from diffusers import FluxPipeline
from torch import nn

from models.garments.catalogue import GarmentFacts
from models.garments.evaluate import EvaluationCase, EvaluationLimits, load, make
from models.garments.flow import image_ids, pack, quicken
from models.garments.train import Recipe, train


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    # On a busy machine a second thread makes steps this small wait for a time slice at every barrier.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_packing_is_the_pipelines_own() -> None:
    latents = torch.randn(2, 16, 8, 4)
    assert torch.equal(pack(latents), FluxPipeline._pack_latents(latents, 2, 16, 8, 4))
    ids = FluxPipeline._prepare_latent_image_ids(2, 4, 2, "cpu", torch.float32)
    assert torch.equal(image_ids(4, 2), ids)


def test_quick_products_stay_near_the_exact_ones() -> None:
    torch.manual_seed(3)
    exact = nn.Sequential(nn.Linear(24, 48), nn.GELU(), nn.Linear(48, 8))
    quick = copy.deepcopy(exact)
    quicken(quick)
    x = torch.randn(4, 5, 24)
    y, z = exact(x), quick(x)
    assert z.dtype == torch.float32
    assert float((y - z).detach().norm() / y.detach().norm()) < 0.02
    torch.autograd.backward([y.pow(2).mean(), z.pow(2).mean()])
    for p, q in zip(exact.parameters(), quick.parameters(), strict=True):
        assert p.grad is not None
        assert q.grad is not None
        assert float((p.grad - q.grad).norm() / p.grad.norm()) < 0.05


def test_tiny_recipe_ends_in_a_folder_the_pipeline_loads(tmp_path: Path) -> None:
    recipe = Recipe(tmp_path, minutes=5, pictures=24, size=32, width=32, vae_batch=2, flow_batch=4, step_limit=2)
    folder = train(recipe)
    written = (folder / "transformer" / "diffusion_pytorch_model.safetensors").read_bytes()
    assert train(recipe) == folder  # goes through all stages without a step
    assert (folder / "transformer" / "diffusion_pytorch_model.safetensors").read_bytes() == written
    card = json.loads((folder / "atelier.json").read_text())
    assert (card["native_size"], card["license"]) == (32, "Apache-2.0")
    limits = EvaluationLimits(32, 2, 16, 2.0, "")
    asked = [EvaluationCase("seen", GarmentFacts("dress", "red"), "a red dress", seed) for seed in (1, 1, 2)]
    first, same, other = make(load(folder), limits, asked)
    assert first.shape == (32, 32, 3)
    assert (first == same).all()
    assert not (first == other).all()
