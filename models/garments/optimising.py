"""What all flow matchings share: the optimiser, its rate, an averaged copy, and the state to resume from."""

from __future__ import annotations

import copy
import math
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from models.garments.libraries import Transformer

_EMA: Final = 0.999


class AveragedTraining:
    """One network's training, with an averaged copy of its weights; a model's own class has the step.

    Args:
        model: The network, on its device.
        seed: Of everything that is drawn.
        lr: Highest learning rate.
        device: Device of the network.
        momenta: AdamW's two.
        last_rate: Share of the learning rate that is left at the end.
    """

    def __init__(
        self,
        model: Transformer,
        *,
        seed: int,
        lr: float,
        device: str = "cpu",
        momenta: tuple[float, float] = (0.9, 0.99),
        last_rate: float = 0.02,
    ) -> None:
        self.model = model
        self.average = {k: v.detach().clone() for k, v in model.state_dict().items()}
        self._device, self._lr, self._last_rate = device, lr, last_rate
        self._rng = np.random.default_rng(seed)
        self._noise = torch.Generator(device).manual_seed(seed)
        self._steps = 0
        self._optimiser = torch.optim.AdamW(
            model.parameters(), lr=lr, betas=momenta, weight_decay=0.01, fused=device.startswith("cuda")
        )

    def rate(self, progress: float) -> float:
        """Learning rate: warm-up by steps, flat for three tenths of the stage, then a cosine down to the last share."""
        warm, last = min(1.0, (self._steps + 1) / 100), self._last_rate
        fall = 1.0 if progress < 0.3 else last + (1 - last) * 0.5 * (1 + math.cos(math.pi * (progress - 0.3) / 0.7))
        return self._lr * warm * fall

    def descend(self, loss: Tensor, progress: float) -> None:
        """Take one step down the loss, and let the average follow."""
        for group in self._optimiser.param_groups:
            group["lr"] = self.rate(progress)
        self._optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self._optimiser.step()
        self._follow()

    @torch.no_grad()
    def _follow(self) -> None:
        # Early on the average forgets faster, or it would keep its start for thousands of steps.
        keep = min(_EMA, (1 + self._steps) / (10 + self._steps))
        live = self.model.state_dict()
        torch._foreach_lerp_([self.average[k] for k in live], list(live.values()), 1 - keep)
        self._steps += 1

    def averaged(self) -> Transformer:
        """Return a copy of the model with the averaged weights, on the CPU, for sampling and shipping."""
        model = copy.deepcopy(self.model)
        model.load_state_dict(self.average)
        return model.cpu().eval()

    def state(self) -> dict[str, Any]:
        """Everything a resumed stage needs."""
        return {
            "model": self.model.state_dict(),
            "average": self.average,
            "optimiser": self._optimiser.state_dict(),
            "rng": self._rng.bit_generator.state,
            "noise": self._noise.get_state(),
            "steps": self._steps,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned, also on another device than the one it was made on."""
        self.model.load_state_dict(state["model"])
        self.average = {k: v.to(self._device) for k, v in state["average"].items()}
        self._optimiser.load_state_dict(state["optimiser"])
        self._rng.bit_generator.state = state["rng"]
        if len(state["noise"]) == len(self._noise.get_state()):
            self._noise.set_state(state["noise"].cpu())  # states of other devices' generators are of another length
        self._steps = state["steps"]
