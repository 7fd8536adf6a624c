"""Flow matching (Lipman et al. 2023) for FLUX: noise levels, tokens, and the loss."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from modelkit.training.encoding import Latents


def shift_of(scheduler: Mapping[str, Any], tokens: int) -> float:
    """Return by how much the model's own scheduler shifts noise levels of pictures of this many tokens.

    Training draws the levels that sampling will ask for. FLUX.1-dev shifts by exp(mu), mu growing with the picture
    from 0.5 at 256 tokens to 1.15 at 4096; a model without such a shift has a constant one.
    """
    if not scheduler.get("use_dynamic_shifting"):
        return float(scheduler.get("shift", 1.0))
    few, many = scheduler.get("base_image_seq_len", 256), scheduler.get("max_image_seq_len", 4096)
    low, high = scheduler.get("base_shift", 0.5), scheduler.get("max_shift", 1.15)
    return math.exp(low + (high - low) * (tokens - few) / (many - few))


def shifted(levels: torch.Tensor, shift: float) -> torch.Tensor:
    """Shift noise levels from 0 (clean) to 1 (noise) towards noise, as Esser et al. 2024 do for larger pictures."""
    return shift * levels / (1 + (shift - 1) * levels)


def drawn_levels(count: int, shift: float, random: torch.Generator) -> torch.Tensor:
    """Draw noise levels: logit-normal, shifted."""
    return shifted(torch.sigmoid(torch.randn(count, generator=random)), shift)


def drawn_latents(pictures: list[Latents], random: torch.Generator) -> torch.Tensor:
    """Draw one sample of each picture's posterior, (n, channels, h, w)."""
    mean = torch.stack([picture.mean for picture in pictures])
    deviation = torch.stack([picture.deviation for picture in pictures])
    return mean + deviation * torch.randn(mean.shape, generator=random)


def mixed(clean: torch.Tensor, noise: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    """Mix latents (n, c, h, w) with noise by their levels (n,)."""
    share = levels.view(-1, 1, 1, 1)
    return (1 - share) * clean + share * noise


def packed(latents: torch.Tensor) -> torch.Tensor:
    """Lay (n, c, h, w) out as FluxPipeline does: (n, h/2 * w/2, 4c) tokens of 2 x 2 places."""
    n, c, h, w = latents.shape
    return latents.view(n, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(n, h * w // 4, 4 * c)


def positions(rows: int, columns: int) -> torch.Tensor:
    """Return positions (rows * columns, 3) of image tokens: always 0, row, column."""
    ids = torch.zeros(rows, columns, 3)
    ids[..., 1] = torch.arange(rows)[:, None]
    ids[..., 2] = torch.arange(columns)[None]
    return ids.view(-1, 3)


def weights_of(pictures: list[Latents]) -> torch.Tensor | None:
    """Return how much each value of the pictures' tokens counts; None where all count the same."""
    if all(picture.weight is None for picture in pictures):
        return None
    return packed(
        torch.stack(
            [
                torch.ones_like(picture.mean)
                if picture.weight is None
                else picture.weight.expand_as(picture.mean).contiguous()
                for picture in pictures
            ]
        )
    )


def distance(predicted: torch.Tensor, wanted: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
    """Return the mean squared distance, in float32, weighted where there are weights."""
    squared = (predicted.float() - wanted.float()).square()
    if weights is None:
        return squared.mean()
    return (squared * weights).sum() / weights.sum()
