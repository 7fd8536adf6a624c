"""Training of the large model by `modelkit.training`: steps/s and memory, eager and compiled.

The network, its adapter, the objective and the optimiser are those of a training. Latents and embeddings are random
ones of the right sizes: a training has them in memory too, and encoding them is done before its first step.
"""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from bench.gpu.memory import memory_of
from bench.gpu.model import SIZES
from bench.gpu.setting import Figure, Setting

RANK = 16
_GIB = 1 << 30
_STEPS = 5
_CAPTION = "zorblax"
_LATENT_PIXELS = 8


def measure(setting: Setting) -> Iterator[Figure]:
    """Time steps of a training at two resolutions, without and with compiled blocks."""
    from modelkit.card import read_card  # noqa: PLC0415 -- heavy; only in this part's process
    from modelkit.device import Device  # noqa: PLC0415 -- as above
    from modelkit.training.network import TrainedNetwork  # noqa: PLC0415 -- as above
    from modelkit.training.optimizing import make_optimizer  # noqa: PLC0415 -- as above
    from modelkit.training.plan import TrainingPlan  # noqa: PLC0415 -- as above

    if setting.device == "cpu":
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    torch.zeros(1, device=setting.device)  # its context does not count as memory of the training
    device = Device(setting.device)
    plan = TrainingPlan(str(setting.model), _CAPTION, rank=RANK)
    with memory_of(setting.device, os.getpid()) as memory:
        begun = time.perf_counter()
        network = TrainedNetwork(setting.model, read_card(setting.model), plan, device)
        parameters = list(network.trained.values())
        yield Figure("transformer loaded, with its adapter", time.perf_counter() - begun, "s")
        numbers = sum(parameter.numel() for parameter in parameters)
        yield Figure("numbers of the adapter", numbers / 1e6, "million", f"rank {RANK}, {len(network.layers)} layers")
        optimizer, name = make_optimizer(plan.optimizer, parameters, plan.learning_rate, device)
        run = _TrainingSteps(setting, network, plan, optimizer, parameters)
        sides = (setting.scale.side // 2, setting.scale.side)
        eager = {side: run.take(side) for side in sides}
        for side, taken in eager.items():
            yield from taken.figures(f"{side}x{side} eager", f"batch 1, {name}")
        failures: list[Exception] = []
        # Making code for a processor takes minutes; there the traced blocks run as they are.
        network.compile(failures.append, "eager" if setting.device == "cpu" else "inductor")
        for side in sides:
            begun = time.perf_counter()
            run.step(side)
            yield Figure(f"first step of {side}x{side} compiled", time.perf_counter() - begun, "s")
            taken = run.take(side)
            gain = f"{taken.per_second / eager[side].per_second:.2f} times as fast as eager"
            yield from taken.figures(f"{side}x{side} compiled", gain)
        for failure in failures:
            yield Figure("blocks that did not compile", 1.0, "", f"{type(failure).__name__}: {failure}"[:200])
    yield Figure("peak memory", memory.gib, "GiB", "of the device" if setting.device != "cpu" else "resident")


@dataclass(frozen=True, slots=True)
class _Taken:
    """Steps of one size.

    Attributes:
        per_second: Steps a second, of their median.
        gib: The most that torch held; None on a processor.
    """

    per_second: float
    gib: float | None

    def figures(self, size: str, note: str) -> Iterator[Figure]:
        """Return them as lines of the table."""
        yield Figure(f"a step of {size}", self.per_second, "steps/s", note)
        if self.gib is not None:
            yield Figure(f"{size}: most memory that torch held", self.gib, "GiB", note)


class _TrainingSteps:
    """Takes steps as a training does."""

    def __init__(
        self, setting: Setting, network: Any, plan: Any, optimizer: Any, parameters: list[torch.nn.Parameter]
    ) -> None:
        self._setting = setting
        self._network = network
        self._plan = plan
        self._optimizer = optimizer
        self._parameters = parameters
        self._objectives: dict[int, Any] = {}

    def take(self, side: int) -> _Taken:
        """Take steps at a size, after one that is not timed."""
        cuda = self._setting.device != "cpu"
        self.step(side)
        if cuda:
            gc.collect()
            torch.cuda.reset_peak_memory_stats()
        seconds = []
        for _ in range(_STEPS):
            begun = time.perf_counter()
            self.step(side)
            seconds.append(time.perf_counter() - begun)
        return _Taken(1 / statistics.median(seconds), torch.cuda.max_memory_allocated() / _GIB if cuda else None)

    def step(self, side: int) -> None:
        """Take one step."""
        objective = self._objectives.setdefault(side, self._objective(side))
        self._optimizer.zero_grad(set_to_none=True)
        objective.backward([0], 1.0)
        float(torch.nn.utils.clip_grad_norm_(self._parameters, 1.0))
        self._optimizer.step()
        if self._setting.device != "cpu":
            torch.cuda.synchronize()

    def _objective(self, side: int) -> Any:
        from modelkit.device import Device  # noqa: PLC0415 -- heavy; only in this part's process
        from modelkit.training.encoding import Latents, Text  # noqa: PLC0415 -- as above
        from modelkit.training.objective import Objective  # noqa: PLC0415 -- as above

        sizes = SIZES[self._setting.scale.name]
        random = torch.Generator().manual_seed(0)
        dtype = Device(self._setting.device).dtype
        channels, grid = sizes.vae["latent_channels"], side // _LATENT_PIXELS
        drawn = torch.randn(2, channels, grid, grid, generator=random)
        text = Text(
            torch.randn(1, sizes.transformer["pooled_projection_dim"], generator=random).to(dtype),
            torch.randn(
                1, sizes.card["max_sequence_length"], sizes.transformer["joint_attention_dim"], generator=random
            ).to(dtype),
        )
        return Objective(
            self._network,
            self._plan,
            pictures=[Latents(drawn[0], drawn[1].abs() / 10)],
            captions=[_CAPTION],
            texts={_CAPTION: text, "": text},
            priors=[],
            scheduler={"use_dynamic_shifting": True},
            random=random,
            device=Device(self._setting.device),
        )
