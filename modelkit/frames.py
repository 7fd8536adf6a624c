"""An autoencoder of single pictures in the place of one of clips, for video models that were trained on its latents."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

# Two by two latents of the pictures are one of the clip, so that a transformer has a quarter of the tokens.
_PATCH = 2


class FrameAutoencoder(nn.Module):
    """Encodes and decodes clips frame by frame, as `AutoencoderKLLTXVideo` does whole clips.

    Args:
        pictures: The autoencoder of single pictures (diffusers' AutoencoderKL).
    """

    temporal_compression_ratio = 1

    def __init__(self, pictures: Any) -> None:
        super().__init__()
        self.pictures = pictures
        self.spatial_compression_ratio = _PATCH * 2 ** (len(pictures.config.block_out_channels) - 1)
        self.config = SimpleNamespace(scaling_factor=1.0, timestep_conditioning=False)
        channels = pictures.config.latent_channels * _PATCH**2
        # The pictures' own shift and scale are applied below, so the pipeline has nothing left to level.
        self.latents_mean, self.latents_std = torch.zeros(channels), torch.ones(channels)

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        device: torch.device = self.pictures.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        dtype: torch.dtype = self.pictures.dtype
        return dtype

    def encode(self, clips: Tensor) -> SimpleNamespace:
        """Latents (n, 4c, f, h/16, w/16) of clips (n, 3, f, h, w) in -1..1: their means, no draw from them."""
        count = clips.shape[0]
        own = self.pictures.config
        mean = self.pictures.encode(clips.transpose(1, 2).flatten(0, 1)).latent_dist.mean
        latents = pixel_unshuffle((mean - own.shift_factor) * own.scaling_factor, _PATCH)
        return SimpleNamespace(latents=latents.reshape(count, -1, *latents.shape[1:]).transpose(1, 2))

    def decode(self, latents: Tensor, temb: Tensor | None = None, *, return_dict: bool = True) -> Any:  # noqa: ARG002 -- the pipeline's call
        """Clips (n, 3, f, h, w) of latents."""
        count = latents.shape[0]
        own = self.pictures.config
        flat = pixel_shuffle(latents.transpose(1, 2).flatten(0, 1), _PATCH)
        frames = self.pictures.decode(flat / own.scaling_factor + own.shift_factor).sample
        clips = frames.reshape(count, -1, *frames.shape[1:]).transpose(1, 2)
        return SimpleNamespace(sample=clips) if return_dict else (clips,)
