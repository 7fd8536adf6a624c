"""The loss on pictures, noise and noise levels that stay the same: a curve that a person can read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from modelkit.device import Device
from modelkit.training.encoding import EncodedTexts, Latents
from modelkit.training.flow import distance, mixed, packed, weights_of
from modelkit.training.network import TrainedNetwork
from modelkit.training.watching import ValidationPoint

BUCKETS = 4
"""Ranges of noise levels, each a quarter: 0 is the least noise."""
_MOST = 4
_SEED = 1234


@dataclass(frozen=True, slots=True)
class _Case:
    clean: torch.Tensor
    noise: torch.Tensor
    level: torch.Tensor
    caption: str
    weights: torch.Tensor | None
    bucket: int


def chosen(count: int, share: float) -> tuple[list[int], list[int]]:
    """Return the numbers of the pictures to train on and of those to measure by.

    Args:
        count: Pictures there are.
        share: How many of them are held out, spread evenly over their order; with none, some are both.
    """
    held = min(count - 1, round(count * share)) if share else 0
    if share and count > 1:
        held = max(1, held)
    if not held:
        shown = min(_MOST, count)
        return list(range(count)), [place * count // shown for place in range(shown)]
    measured = [(2 * place + 1) * count // (2 * held) for place in range(held)]
    return [number for number in range(count) if number not in measured], measured


class Validation:
    """Measures a network.

    Args:
        pictures: Pictures to measure by; at most four of them are taken.
        captions: Their captions.
        device: Where the network is.
    """

    def __init__(self, pictures: Sequence[Latents], captions: Sequence[str], device: Device) -> None:
        random = torch.Generator().manual_seed(_SEED)
        self._device = device
        self._cases: list[_Case] = []
        for bucket in range(BUCKETS):
            for picture, caption in list(zip(pictures, captions, strict=True))[:_MOST]:
                noise = torch.randn(picture.mean.shape, generator=random)
                level = (bucket + torch.rand(1, generator=random)) / BUCKETS
                weights = weights_of([picture])
                self._cases.append(_Case(picture.mean[None], noise[None], level, caption, weights, bucket))

    def measure(self, network: TrainedNetwork, texts: EncodedTexts, step: int) -> list[ValidationPoint]:
        """Return the mean loss of each range."""
        name = self._device.name
        losses: list[list[float]] = [[] for _ in range(BUCKETS)]
        with torch.no_grad(), network.training():
            for case in self._cases:
                text = texts[case.caption]
                clean, noise, level = (part.to(name) for part in (case.clean, case.noise, case.level))
                predicted = network.predict(
                    mixed(clean, noise, level), level, text.pooled.to(name), text.tokens.to(name)
                )
                weights = None if case.weights is None else case.weights.to(name)
                losses[case.bucket].append(float(distance(predicted, packed(noise - clean), weights)))
        return [ValidationPoint(step, bucket, sum(each) / len(each)) for bucket, each in enumerate(losses)]
