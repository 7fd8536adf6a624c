"""The optimiser of a training."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from modelkit.device import Device

EIGHT_BIT = "adamw8bit"
_MOMENTA = (0.9, 0.999)
_DECAY = 1e-4  # as diffusers' and ai-toolkit's scripts have it for adapters
_RISE_STEPS = 10


def make_optimizer(
    wanted: str, parameters: Iterable[nn.Parameter], learning_rate: float, device: Device
) -> tuple[Any, str]:
    """Return an optimiser, and the name of the one that it is.

    8-bit AdamW needs CUDA and the library bitsandbytes; where either is missing, fused AdamW runs.
    """
    if wanted == EIGHT_BIT and torch.device(device.name).type == "cuda":
        try:
            import bitsandbytes  # type: ignore[import-not-found, unused-ignore] # noqa: PLC0415 -- it may be missing
        except ImportError:
            pass
        else:
            made = bitsandbytes.optim.AdamW8bit(parameters, lr=learning_rate, betas=_MOMENTA, weight_decay=_DECAY)
            return made, EIGHT_BIT
    fused = torch.optim.AdamW(parameters, lr=learning_rate, betas=_MOMENTA, weight_decay=_DECAY, fused=True)
    return fused, "adamw"


def rate_of(step: int, learning_rate: float) -> float:
    """Return the learning rate of a step, from 0: it rises over the first ten, then stays.

    It does not depend on the number of steps: a run that is continued equals one that was longer from the start.
    """
    return learning_rate * min(1.0, (step + 1) / _RISE_STEPS)
