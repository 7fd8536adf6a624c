"""The rotary embedding of positions, computed once a picture instead of once a forward pass."""

from __future__ import annotations

from typing import Any, cast

import torch


class KeptPositions(torch.nn.Module):
    """Wraps a position embedding and keeps its last result, because all steps of a picture have the same positions.

    Args:
        embed: The embedding, a function of its argument alone.
    """

    def __init__(self, embed: torch.nn.Module) -> None:
        super().__init__()
        self._embed = embed
        self._last: tuple[torch.Tensor, Any] | None = None

    def forward(self, ids: torch.Tensor) -> Any:
        """Embed positions."""
        # On a GPU the comparison would wait for the device. Training must not get a tensor that was made in inference
        # mode, because it has no gradient.
        if ids.device.type != "cpu" or not torch.is_inference_mode_enabled():
            return self._embed(ids)
        last = self._last
        if last is None or last[0].dtype != ids.dtype or not torch.equal(last[0], ids):
            last = self._last = (ids, self._embed(ids))
        return last[1]


def keep_positions(transformer: torch.nn.Module) -> None:
    """Wrap the position embedding of a FLUX transformer; do nothing if it is wrapped already."""
    embed = cast("torch.nn.Module", transformer.pos_embed)
    if not isinstance(embed, KeptPositions):
        transformer.pos_embed = KeptPositions(embed)
