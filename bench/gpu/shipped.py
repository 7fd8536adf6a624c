"""The shipped model through the worker: the CPU's pictures, and pictures a second in batches.

A picture counts as equal to the CPU's where the peak signal-to-noise ratio is 40 dB or more: a root mean square error
of 2.55 of 255. Both start from the same noise, and differ in how numbers are rounded: bfloat16 on the GPU, float32 on
the CPU. Measured on a CPU over the eight pictures, that rounding alone gives 48 to 51 dB. Another seed gives 14 to 22
dB, and guidance of 2.5 in place of 2 gives 27 to 40. One step more or fewer gives 46 to 58, which cannot be told from
rounding here: the number of steps is for other tests.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from bench.gpu import pictures
from bench.gpu.setting import SHIPPED, Figure, PartError, Setting

LEAST_PSNR = 40.0
_SAME_PSNR = 99.0  # stands for pictures without any difference
PROMPTS = (
    "a red dress",
    "a blue bag",
    "a black hat",
    "a green coat with stripes",
    "yellow trousers",
    "a pink skirt with dots",
    "a brown boot",
    "a grey t-shirt",
)


def measure(setting: Setting) -> Iterator[Figure]:
    """Compare pictures, then time batches.

    Raises:
        PartError: A picture differs from the CPU's by more than rounding explains.
    """
    card = json.loads((SHIPPED / "atelier.json").read_text())
    mesh, scale, side = setting.running_mesh, setting.scale, card["native_size"]
    steps = card["steps"]["default"]
    prompts = [PROMPTS[number % len(PROMPTS)] for number in range(scale.compared)]
    bodies = [pictures.body(each, side=side, steps=steps, seed=seed) for seed, each in enumerate(prompts)]
    [first] = pictures.make(mesh, bodies[:1])
    yield Figure("first picture, model loaded in it", first.seconds, "s")
    made = [pictures.read(mesh, each) for each in pictures.make(mesh, bodies)]
    least = min(psnr(*pair) for pair in zip(made, _on_cpu(prompts, card, steps), strict=True))
    yield Figure(
        "picture against the CPU's in float32, PSNR", least, "dB", f"the least of {len(made)}; asked {LEAST_PSNR:.0f}"
    )
    if least < LEAST_PSNR:
        message = f"A picture differs from the CPU's: {least:.1f} dB, and {LEAST_PSNR:.0f} are asked."
        raise PartError(message)
    steps = scale.shipped_steps or steps
    many = [pictures.body(PROMPTS[0], side=side, steps=steps, seed=seed) for seed in range(scale.pictures)]
    blocker = pictures.body(PROMPTS[0], side=side, steps=scale.blocker_steps, seed=0)
    for size in scale.batches:
        pictures.make(mesh, many[:size])  # kernels of a new shape are chosen once
        seconds = pictures.seconds_of_batches(mesh, pictures.in_batches(many, size), blocker)
        yield Figure(f"batches of {size}", len(many) / seconds, "pictures/s", f"{side} px, {steps} steps")


def psnr(one: Image.Image, other: Image.Image) -> float:
    """Return the peak signal-to-noise ratio of two pictures, in dB.

    Raises:
        PartError: Their sizes differ.
    """
    if one.size != other.size:
        message = f"The worker's picture has {one.size} pixels, the CPU's {other.size}."
        raise PartError(message)
    error = float(np.mean((np.asarray(one, np.float64) - np.asarray(other, np.float64)) ** 2))
    return _SAME_PSNR if error == 0 else min(10 * math.log10(255**2 / error), _SAME_PSNR)


def _on_cpu(prompts: Sequence[str], card: dict[str, Any], steps: int) -> list[Image.Image]:
    """Make the pictures of seeds 0, 1, ... by bare diffusers in float32."""
    import torch  # noqa: PLC0415 -- only the part's own process imports it

    from bench.gpu import pipelines  # noqa: PLC0415 -- heavy; only in this part's process

    guidance = card["guidance"]
    pipeline = pipelines.load(SHIPPED, "cpu")
    return [
        pipeline(
            prompt=prompt,
            negative_prompt=guidance["negative_prompt"],
            true_cfg_scale=guidance["true_cfg_scale"],
            width=card["native_size"],
            height=card["native_size"],
            num_inference_steps=steps,
            max_sequence_length=card["max_sequence_length"],
            generator=torch.Generator("cpu").manual_seed(seed),
        ).images[0]
        for seed, prompt in enumerate(prompts)
    ]
