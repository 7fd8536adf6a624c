"""What a model draws before it is trained, to be kept as it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from modelkit.training.encoding import Texts
from modelkit.training.files import put_file
from modelkit.training.network import TrainedNetwork
from modelkit.training.objective import Prior
from modelkit.training.plan import TrainingPlan
from modelkit.training.sampling import Sampler

_LEAST = 16
_FIRST_SEED = 90_000


def prior_prompts(plan: TrainingPlan) -> list[str]:
    """Return the plan's preservation prompts, each several times where there are few; none where none are kept."""
    if plan.preservation == "none" or not plan.preservation_prompts:
        return []
    rounds = -(-_LEAST // len(plan.preservation_prompts))
    return [prompt for prompt in plan.preservation_prompts for _ in range(rounds)]


def draw_priors(
    sampler: Sampler,
    network: TrainedNetwork,
    texts: Texts,
    plan: TrainingPlan,
    cache: Path,
    *,
    done: Callable[[int], None],
) -> list[Prior]:
    """Draw a picture for each of `prior_prompts`.

    Args:
        sampler: Draws.
        network: The network, whose training is left out.
        texts: The prompts, encoded.
        plan: How to train.
        cache: File that keeps the pictures' latents.
        done: Told how many are drawn.
    """
    prompts = prior_prompts(plan)
    if not prompts:
        return []
    kept = _read(cache, prompts)
    if kept is not None:
        return kept
    negative = None if sampler.negative is None else texts[sampler.negative]
    made: list[Prior] = []
    with network.as_it_was(), sampler.drawing() as draw:
        for number, prompt in enumerate(prompts):
            made.append(Prior(prompt, draw.latents(texts[prompt], negative, _FIRST_SEED + number)))
            done(len(made))
    tensors = {str(number): prior.clean.contiguous() for number, prior in enumerate(made)}
    put_file(cache, lambda path: save_file(tensors, path, {"prompts": json.dumps(prompts)}))
    return made


def _read(cache: Path, prompts: list[str]) -> list[Prior] | None:
    if not cache.is_file():
        return None
    try:
        with safe_open(cache, "pt") as file:
            if json.loads((file.metadata() or {})["prompts"]) != prompts:
                return None
            return [Prior(prompt, file.get_tensor(str(number))) for number, prompt in enumerate(prompts)]
    except (SafetensorError, OSError, ValueError, KeyError):
        return None
