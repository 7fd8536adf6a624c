"""The shipped video model without the mesh: its keyframes against the CPU's, and seconds a clip.

Keyframes count as equal to the CPU's where their peak signal-to-noise ratio is 30 dB or more. Both start from the same
noise, and differ in how numbers are rounded: bfloat16 on the GPU, float32 on the CPU.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from bench.gpu.inputs import Unwatched, still
from bench.gpu.setting import Figure, PartError, Setting
from bench.stacks import ROOT

if TYPE_CHECKING:
    from modelkit.video import VideoModel

WEIGHTS = ROOT / "models" / "motions" / "weights"
LEAST_PSNR = 30.0
_PROMPTS = ("the bag sways", "the camera zooms in", "the camera pans left")
_SECONDS = 2
_RATE = 24
_SIDE = 256


def measure(setting: Setting) -> Iterator[Figure]:
    """Compare keyframes, then time them and the frames in between.

    Raises:
        PartError: A keyframe differs from the CPU's by more than rounding explains.
    """
    from modelkit.clips import Clip  # noqa: PLC0415 -- only the part's own process imports it
    from modelkit.video import ClipRequest  # noqa: PLC0415 -- as above

    requests = [
        ClipRequest(prompt=prompt, still=np.asarray(still(_SIDE)), seconds=_SECONDS, seed=seed, observer=Unwatched())
        for seed, prompt in enumerate(_PROMPTS)
    ]
    model, reference = _load(setting.device), _load("cpu")
    least = 99.0
    for request in requests:
        made, right = model.keyframes(request), reference.keyframes(request)
        assert made is not None, "nothing cancels it"
        assert right is not None, "nothing cancels it"
        wrong = np.mean([(a.astype(float) - b) ** 2 for a, b in zip(made.frames, right.frames, strict=True)])
        least = min(least, float(10 * np.log10(255**2 / max(float(wrong), 1e-6))))
    yield Figure("keyframes against the CPU's in float32, PSNR", least, "dB", f"asked {LEAST_PSNR:.0f}")
    if least < LEAST_PSNR:
        message = f"Keyframes differ from the CPU's: {least:.1f} dB, and {LEAST_PSNR:.0f} are asked."
        raise PartError(message)
    times = []
    for _ in range(setting.scale.rounds):
        began = time.monotonic()
        drawn = model.keyframes(requests[0])
        times.append(time.monotonic() - began)
    yield Figure("keyframes of a clip", float(np.median(times)), "s", f"{model.card.steps.default} steps")
    assert drawn is not None, "nothing cancels it"
    began = time.monotonic()
    count = sum(1 for _ in Clip(drawn.frames, requests[0].still, enlarged=True).frames(_SECONDS * _RATE))
    yield Figure("frames in between, on the processor", count / (time.monotonic() - began), "frames/s", f"{_SIDE} px")


def _load(device: str) -> VideoModel:
    from modelkit.card import read_card  # noqa: PLC0415 -- only the part's own process imports it
    from modelkit.device import Device  # noqa: PLC0415 -- as above
    from modelkit.family import Source  # noqa: PLC0415 -- as above
    from modelkit.video import VideoFamily  # noqa: PLC0415 -- as above

    return VideoFamily().load(Source(read_card(WEIGHTS), WEIGHTS), Device(device))
