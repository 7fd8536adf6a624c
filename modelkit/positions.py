"""The rotary embedding of a picture's positions, made once a picture and not once a forward pass."""

from __future__ import annotations

from typing import Any, cast

import torch


class KeptPositions(torch.nn.Module):
    """Stands before a transformer's position embedding and keeps its last result: all steps of a picture ask the same.

    Args:
        embed: The embedding, a function of its argument alone.
    """

    def __init__(self, embed: torch.nn.Module) -> None:
        super().__init__()
        self._embed = embed
        self._last: tuple[torch.Tensor, Any] | None = None

    def forward(self, ids: torch.Tensor) -> Any:
        """Embed positions."""
        # Elsewhere than on a processor the comparison would wait for the device, and what was made in inference mode
        # cannot be used where gradients are wanted.
        if ids.device.type != "cpu" or not torch.is_inference_mode_enabled():
            return self._embed(ids)
        last = self._last
        if last is None or last[0].dtype != ids.dtype or not torch.equal(last[0], ids):
            last = self._last = (ids, self._embed(ids))
        return last[1]


def keep_positions(transformer: torch.nn.Module) -> None:
    """Have a FLUX transformer keep its positions; without effect where it does already."""
    embed = cast("torch.nn.Module", transformer.pos_embed)
    if not isinstance(embed, KeptPositions):
        transformer.pos_embed = KeptPositions(embed)
