"""Editing without the mesh: the shipped edit model's pictures against the CPU's, and a step of a large Kontext model.

Pictures count as equal to the CPU's where their peak signal-to-noise ratio is 30 dB or more. Both start from the same
noise, and differ in how numbers are rounded: bfloat16 on the GPU, float32 on the CPU. A step of Kontext has the picture
before in its sequence, so that it reads twice the tokens of a step that draws from a prompt alone.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

from bench.gpu import stepping
from bench.gpu.inputs import Unwatched, still
from bench.gpu.memory import memory_of
from bench.gpu.model import SIZES
from bench.gpu.setting import Figure, PartError, Setting
from bench.gpu.shipped import psnr
from bench.stacks import ROOT

if TYPE_CHECKING:
    from modelkit.kontext import KontextModel
    from modelkit.requests import ImageRequest
    from modelkit.upscale import Upscaler

WEIGHTS = ROOT / "models" / "edits" / "weights"
LEAST_PSNR = 30.0
_INSTRUCTIONS = ("make it red", "add stripes", "turn it into a hat", "make it blue with dots")


def measure(setting: Setting) -> Iterator[Figure]:
    """Compare edited pictures of the shipped model, then time them.

    Raises:
        PartError: A picture differs from the CPU's by more than rounding explains.
    """
    from modelkit.requests import BatchSettings, ImageRequest  # noqa: PLC0415 -- only the part's own process imports it

    model, reference = _load(setting.device), _load("cpu")
    side = model.card.native_size
    settings = BatchSettings(side, side, whole=True)
    requests = [
        ImageRequest(prompt=text, seed=seed, observer=Unwatched(), reference=still(side))
        for seed, text in enumerate(_INSTRUCTIONS)
    ]
    pairs = zip(_edited(model, settings, requests), _edited(reference, settings, requests), strict=True)
    least = min(psnr(made, right) for made, right in pairs)
    yield Figure(
        "edited picture against the CPU's in float32, PSNR", least, "dB", f"the least of 4; asked {LEAST_PSNR:.0f}"
    )
    if least < LEAST_PSNR:
        message = f"An edited picture differs from the CPU's: {least:.1f} dB, and {LEAST_PSNR:.0f} are asked."
        raise PartError(message)
    times = []
    for _ in range(setting.scale.rounds):
        began = time.monotonic()
        _edited(model, settings, requests)
        times.append(time.monotonic() - began)
    yield Figure("batches of 4", len(requests) / statistics.median(times), "pictures/s", f"{side} px")


def measure_large(setting: Setting) -> Iterator[Figure]:
    """Time a step of the large model with a picture before in its sequence, and the memory it takes."""
    import torch  # noqa: PLC0415 -- heavy; only in this part's process
    from diffusers import FluxKontextPipeline  # noqa: PLC0415 -- as above

    from bench.gpu import pipelines  # noqa: PLC0415 -- as above

    side = setting.scale.side
    torch.zeros(1, device=setting.device)  # makes the device's context, which is no memory of the model
    with memory_of(setting.device, os.getpid()) as memory:
        pipeline = FluxKontextPipeline(**pipelines.load(setting.model, setting.device).components)
        pipeline.set_progress_bar_config(disable=True)

        def make(steps: int) -> float:
            began = time.perf_counter()
            pipeline(
                image=still(side),
                prompt=_INSTRUCTIONS[0],
                width=side,
                height=side,
                max_area=side * side,
                _auto_resize=False,
                num_inference_steps=steps,
                max_sequence_length=SIZES[setting.scale.name].card["max_sequence_length"],
                generator=torch.Generator("cpu").manual_seed(0),
            )
            return time.perf_counter() - began

        make(setting.scale.steps[0])
        steps = stepping.take(make, setting.scale)
    yield Figure("a step with a picture before", steps.step, "s", f"{side}x{side}")
    yield Figure("peak memory", memory.gib, "GiB", "of the device" if setting.device != "cpu" else "resident")


def _edited(model: KontextModel, settings: Any, requests: list[ImageRequest]) -> list[Any]:
    images = []
    nothing_is_enlarged = cast("Upscaler", None)
    for made in model.generate(settings, requests, nothing_is_enlarged):
        assert made is not None, "nothing cancels it"
        images.append(made.image)
    return images


def _load(device: str) -> KontextModel:
    from modelkit.card import read_card  # noqa: PLC0415 -- only the part's own process imports it
    from modelkit.device import Device  # noqa: PLC0415 -- as above
    from modelkit.family import Source  # noqa: PLC0415 -- as above
    from modelkit.kontext import KontextFamily  # noqa: PLC0415 -- as above

    return cast("KontextModel", KontextFamily().load(Source(read_card(WEIGHTS), WEIGHTS), Device(device)))
