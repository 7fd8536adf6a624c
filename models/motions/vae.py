"""The picture side: the garments model's autoencoder, frame by frame, and its latents as the transformer has them."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.garments.libraries import Autoencoder, AutoencoderKL
from models.garments.vae import LATENT_CHANNELS as OWN_CHANNELS
from models.garments.vae import to_pictures, to_tensor
from models.motions.film import MOTIONS, Clip

WEIGHTS: Final = Path(__file__).parents[1] / "garments" / "weights" / "vae"
# Two by two latents make one token, so that a clip is few of them.
PATCH: Final = 2
FACTOR: Final = 8 * PATCH
LATENT_CHANNELS: Final = OWN_CHANNELS * PATCH * PATCH


def load_vae(folder: Path = WEIGHTS) -> Autoencoder:
    """Read the autoencoder, which is not trained any further."""
    vae = AutoencoderKL.from_pretrained(folder, dtype=torch.float32).to(memory_format=torch.channels_last)
    return vae.eval().requires_grad_(requires_grad=False)


def patched(latents: Tensor) -> Tensor:
    """(n, c, h, w) to (n, 4c, h/2, w/2), as torch's pixel_unshuffle orders them."""
    return torch.nn.functional.pixel_unshuffle(latents, PATCH)


@torch.no_grad()
def encode(vae: Autoencoder, frames: NDArray[np.uint8], batch: int = 50) -> Tensor:
    """Latents (n, 4c, h/16, w/16) of frames (n, h, w, 3), of mean 0 and spread 1, in half precision."""
    parts = []
    device = next(vae.parameters()).device
    for i in range(0, len(frames), batch):
        mean = vae.encode(to_tensor(frames[i : i + batch]).to(device)).latent_dist.mean
        parts.append(patched((mean - vae.config.shift_factor) * vae.config.scaling_factor).half().cpu())
    return torch.cat(parts)


def encode_clips(vae: Autoencoder, clips: Clip) -> Tensor:
    """Latents (n, 4c, f, h/16, w/16) of clips (n, f, h, w, 3); the motions of one garment share their first frame."""
    garments = len(clips) // len(MOTIONS)
    grouped = clips.reshape(garments, len(MOTIONS), *clips.shape[1:])
    first = encode(vae, grouped[:, 0, 0])
    moved = encode(vae, grouped[:, :, 1:].reshape(-1, *clips.shape[2:])).view(
        garments, len(MOTIONS), clips.shape[1] - 1, *first.shape[1:]
    )
    opening = first[:, None, None].expand(-1, len(MOTIONS), 1, -1, -1, -1)
    return torch.cat([opening, moved], 2).flatten(0, 1).transpose(1, 2).contiguous()


@torch.no_grad()
def decode_clips(vae: Autoencoder, latents: Tensor) -> Clip:
    """Clips (n, f, h, w, 3) of latents (n, 4c, f, h/16, w/16)."""
    flat = torch.nn.functional.pixel_shuffle(latents.float().transpose(1, 2).flatten(0, 1), PATCH)
    parts = [
        to_pictures(vae.decode(part / vae.config.scaling_factor + vae.config.shift_factor).sample)
        for part in torch.split(flat, 50)
    ]
    frames = np.concatenate(parts)
    return frames.reshape(len(latents), -1, *frames.shape[1:])
