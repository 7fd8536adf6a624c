"""The loss of a step: flow matching on the pictures, and what the model drew before kept as it was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from modelkit.device import Device
from modelkit.training.encoding import EncodedTexts, Latents
from modelkit.training.flow import distance, drawn_latents, drawn_levels, mixed, packed, shift_of, weights_of
from modelkit.training.network import TrainedNetwork
from modelkit.training.plan import TrainingPlan


@dataclass(frozen=True, slots=True)
class Prior:
    """What the model drew for a prompt before it was trained.

    Attributes:
        prompt: The prompt.
        clean: Its latents, (1, channels, h, w).
    """

    prompt: str
    clean: torch.Tensor


@dataclass(frozen=True, slots=True)
class Loss:
    """Losses of a pass.

    Attributes:
        picture: On the pictures.
        preservation: On what has to stay as it was; None where nothing is preserved.
    """

    picture: float
    preservation: float | None


@dataclass(frozen=True, slots=True)
class _FlowPart:
    noisy: torch.Tensor
    levels: torch.Tensor
    pooled: torch.Tensor
    tokens: torch.Tensor
    wanted: torch.Tensor
    weights: torch.Tensor | None


class Objective:
    """Draws what a pass is trained on, and computes its gradient.

    Args:
        network: The network.
        plan: How to train.
        pictures: All pictures.
        captions: Their captions, with the trigger word in place.
        texts: All captions, encoded.
        priors: What the model drew before for the plan's preservation prompts.
        scheduler: Settings of the model's own scheduler.
        random: What all draws come from.
        device: Where the network is.
    """

    def __init__(
        self,
        network: TrainedNetwork,
        plan: TrainingPlan,
        *,
        pictures: Sequence[Latents],
        captions: Sequence[str],
        texts: EncodedTexts,
        priors: Sequence[Prior],
        scheduler: Mapping[str, Any],
        random: torch.Generator,
        device: Device,
    ) -> None:
        self._network = network
        self._plan = plan
        self._pictures = pictures
        self._captions = captions
        self._texts = texts
        self._priors = priors
        self._scheduler = scheduler
        self._random = random
        self._name = device.name

    def backward(self, numbers: Sequence[int], share: float) -> Loss:
        """Add the gradient of a batch to what the parameters hold.

        Args:
            numbers: Its pictures.
            share: The batch's share of its step.
        """
        captions = [self._captions[number] for number in numbers]
        dropped = torch.rand(len(numbers), generator=self._random) < self._plan.caption_dropout
        shown = ["" if drop else caption for drop, caption in zip(dropped.tolist(), captions, strict=True)]
        pictures = [self._pictures[number] for number in numbers]
        weights = weights_of(pictures) if self._plan.masked_loss else None
        part = self._part(drawn_latents(pictures, self._random), shown, weights)
        if self._plan.preservation == "none":
            loss = self._distances([part])[0]
            torch.autograd.backward(loss * share)
            return Loss(float(loss.detach()), None)
        kept = self._kept(part, captions)
        weight = self._plan.preservation_weight
        if part.noisy.shape[1:] == kept.noisy.shape[1:] and not self._network.large:
            loss, preservation = self._distances([part, kept])
            torch.autograd.backward((loss + weight * preservation) * share)
        else:
            # One after the other: activations of both would need twice the memory.
            loss = self._distances([part])[0]
            torch.autograd.backward(loss * share)
            preservation = self._distances([kept])[0]
            torch.autograd.backward(preservation * (weight * share))
        return Loss(float(loss.detach()), float(preservation.detach()))

    def _part(self, clean: torch.Tensor, captions: Sequence[str], weights: torch.Tensor | None) -> _FlowPart:
        noise = torch.randn(clean.shape, generator=self._random)
        shift = shift_of(self._scheduler, clean.shape[-2] * clean.shape[-1] // 4)
        levels = drawn_levels(len(clean), shift, self._random)
        texts = [self._texts[caption] for caption in captions]
        return _FlowPart(
            mixed(clean, noise, levels).to(self._name),
            levels.to(self._name),
            torch.cat([text.pooled for text in texts]).to(self._name),
            torch.cat([text.tokens for text in texts]).to(self._name),
            packed(noise - clean).to(self._name),
            None if weights is None else weights.to(self._name),
        )

    def _kept(self, part: _FlowPart, captions: Sequence[str]) -> _FlowPart:
        """Return other prompts, with the base's own predictions as what is wanted.

        Where the plan names prompts, they come with what the model drew for them. Else they are the captions without
        the trigger word, on the same noisy pictures ("differential output preservation").
        """
        if self._priors:
            picks = torch.randint(len(self._priors), (len(captions),), generator=self._random).tolist()
            priors = [self._priors[pick] for pick in picks]
            other = self._part(
                torch.cat([prior.clean for prior in priors]), [prior.prompt for prior in priors], weights=None
            )
        else:
            texts = [self._texts[self._plan.unnamed(caption)] for caption in captions]
            other = _FlowPart(
                part.noisy,
                part.levels,
                torch.cat([text.pooled for text in texts]).to(self._name),
                torch.cat([text.tokens for text in texts]).to(self._name),
                part.wanted,
                None,
            )
        with torch.no_grad(), self._network.as_it_was(), self._network.training():
            wanted = self._network.predict(other.noisy, other.levels, other.pooled, other.tokens)
        return _FlowPart(other.noisy, other.levels, other.pooled, other.tokens, wanted, None)

    def _distances(self, parts: Sequence[_FlowPart]) -> list[torch.Tensor]:
        with self._network.training():
            predicted = self._network.predict(
                torch.cat([part.noisy for part in parts]),
                torch.cat([part.levels for part in parts]),
                torch.cat([part.pooled for part in parts]),
                torch.cat([part.tokens for part in parts]),
            )
        each = torch.split(predicted, [len(part.noisy) for part in parts])
        return [distance(own, part.wanted, part.weights) for own, part in zip(each, parts, strict=True)]
