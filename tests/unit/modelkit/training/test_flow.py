import math

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline

from modelkit.training.encoding import Latents
from modelkit.training.flow import (
    distance,
    drawn_latents,
    drawn_levels,
    mixed,
    packed,
    positions,
    shift_of,
    shifted,
    weights_of,
)

DYNAMIC = {
    "use_dynamic_shifting": True,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
    "base_shift": 0.5,
    "max_shift": 1.15,
    "shift": 3.0,
}


def test_tokens_and_positions_are_the_pipelines_own() -> None:
    latents = torch.randn(2, 16, 8, 4)
    assert torch.equal(packed(latents), FluxPipeline._pack_latents(latents, 2, 16, 8, 4))
    assert torch.equal(
        positions(4, 2), FluxPipeline._prepare_latent_image_ids(2, 4, 2, torch.device("cpu"), torch.float32)
    )


@pytest.mark.parametrize(("tokens", "mu"), [(256, 0.5), (4096, 1.15), (1024, 0.63)])
def test_levels_shift_with_the_resolution_as_the_sampler_shifts_them(tokens: int, mu: float) -> None:
    shift = shift_of(DYNAMIC, tokens)
    assert math.log(shift) == pytest.approx(mu, abs=1e-6)
    scheduler = FlowMatchEulerDiscreteScheduler(**DYNAMIC)
    scheduler.set_timesteps(sigmas=[0.9, 0.5, 0.1], mu=math.log(shift))
    assert torch.allclose(shifted(torch.tensor([0.9, 0.5, 0.1]), shift), scheduler.sigmas[:3])


def test_a_model_without_that_shift_keeps_its_constant_one() -> None:
    assert shift_of({"use_dynamic_shifting": False, "shift": 1.0}, 4096) == 1.0
    assert torch.equal(shifted(torch.tensor([0.2, 0.7]), 1.0), torch.tensor([0.2, 0.7]))


def test_levels_are_logit_normal() -> None:
    levels = drawn_levels(20_000, 1.0, torch.Generator().manual_seed(0))
    logits = torch.logit(levels)
    assert abs(float(logits.mean())) < 0.03
    assert abs(float(logits.std()) - 1) < 0.03
    larger = drawn_levels(20_000, shift_of(DYNAMIC, 4096), torch.Generator().manual_seed(0))
    assert float(larger.median()) == pytest.approx(float(shifted(torch.tensor(0.5), math.exp(1.15))), abs=0.01)


def test_posteriors_are_drawn_anew_from_mean_and_deviation() -> None:
    mean, deviation = torch.full((4, 2, 2), 3.0), torch.full((4, 2, 2), 0.5)
    random = torch.Generator().manual_seed(0)
    drawn = torch.stack([drawn_latents([Latents(mean, deviation)], random)[0] for _ in range(500)])
    assert float(drawn.mean()) == pytest.approx(3.0, abs=0.05)
    assert float(drawn.std()) == pytest.approx(0.5, abs=0.03)


def test_mixing_goes_from_picture_to_noise() -> None:
    clean, noise = torch.zeros(2, 1, 2, 2), torch.ones(2, 1, 2, 2)
    assert torch.equal(mixed(clean, noise, torch.tensor([0.0, 0.25])).amax(dim=(1, 2, 3)), torch.tensor([0.0, 0.25]))


def test_a_masked_loss_counts_what_the_mask_marks() -> None:
    weight = torch.full((1, 4, 4), 0.1)
    weight[:, :2] = 1.0
    plain = Latents(torch.zeros(16, 4, 4), torch.zeros(16, 4, 4))
    masked = Latents(plain.mean, plain.deviation, weight)
    assert weights_of([plain]) is None
    wanted, below = torch.zeros(1, 16, 4, 4), torch.zeros(1, 16, 4, 4)
    below[:, :, 2:] = 1.0
    weights = weights_of([masked])
    assert float(distance(packed(below), packed(wanted), weights)) == pytest.approx(0.1 / 1.1)
    assert float(distance(packed(1 - below), packed(wanted), weights)) == pytest.approx(1 / 1.1)
    assert float(distance(packed(below), packed(wanted))) == pytest.approx(0.5)
    mixed_batch = weights_of([plain, masked])
    assert mixed_batch is not None
    assert float(mixed_batch[0].min()) == 1.0
