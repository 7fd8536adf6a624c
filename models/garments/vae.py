"""The picture side: an 8x AutoencoderKL of 16 channels, taught on whole drawings with prints in them."""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from models.garments.draw import Picture
from models.garments.libraries import Autoencoder, AutoencoderKL, Downsample2D, ResnetBlock2D, Upsample2D

LATENT_CHANNELS: Final = 16
FACTOR: Final = 8
_KL_WEIGHT: Final = 1e-4


def to_tensor(pictures: Picture) -> Tensor:
    """(n, h, w, 3) uint8 to (n, 3, h, w) float in -1..1, channels last, which convolutions on the CPU prefer."""
    x = torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return x.contiguous(memory_format=torch.channels_last)


def to_pictures(x: Tensor) -> Picture:
    """Return the inverse of to_tensor, clamped."""
    y: Picture = ((x.detach().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    return y


def make_vae(size: int, blocks: tuple[int, int, int, int] = (16, 32, 64, 96)) -> Autoencoder:
    """Return a fresh autoencoder with its gentle start; `size` is only noted in its configuration."""
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=LATENT_CHANNELS,
        block_out_channels=blocks,
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * len(blocks),
        up_block_types=("UpDecoderBlock2D",) * len(blocks),
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
        shift_factor=0.0,
        scaling_factor=1.0,
        sample_size=size,
    )
    _start_gently(vae)
    return vae.to(memory_format=torch.channels_last)


@torch.no_grad()
def _start_gently(vae: Autoencoder, log_variance: float = -5.0) -> None:
    """Start as a plain, almost noiseless linear resampler.

    Residual branches begin at zero, skips orthogonal, resamplers as the identity: colour gets through from the first
    step, where diffusers' own start stays grey for hundreds of them.
    """
    for module in vae.modules():
        if isinstance(module, ResnetBlock2D):
            nn.init.zeros_(module.conv2.weight)
            nn.init.zeros_(module.conv2.bias)
            if module.conv_shortcut is not None:
                nn.init.orthogonal_(module.conv_shortcut.weight)
                nn.init.zeros_(module.conv_shortcut.bias)
        elif isinstance(module, Downsample2D | Upsample2D):
            weight = module.conv.weight
            weight.mul_(0.1)
            module.conv.bias.zero_()
            identity = torch.eye(weight.shape[0], weight.shape[1])
            if isinstance(module, Downsample2D):
                weight[:, :, :2, :2] += identity[..., None, None] / 4
            else:
                weight[:, :, 1, 1] += identity
    vae.encoder.conv_out.bias[LATENT_CHANNELS:] = log_variance
    vae.encoder.conv_out.weight[LATENT_CHANNELS:] *= 0.1


def picture_loss(y: Tensor, x: Tensor) -> Tensor:
    """L1 + chroma + edges + half the squared error; without the chroma term colour is learnt last."""
    e = y - x
    edge = (y.diff(dim=2) - x.diff(dim=2)).abs().mean() + (y.diff(dim=3) - x.diff(dim=3)).abs().mean()
    chroma = (e[:, 0] - e[:, 1]).abs().mean() + (e[:, 2] - 0.5 * (e[:, 0] + e[:, 1])).abs().mean()
    loss: Tensor = e.abs().mean() + chroma + 0.5 * edge + 0.5 * mse_loss(y, x)
    return loss


def vae_loss(vae: Autoencoder, x: Tensor) -> Tensor:
    """Return the loss of one step of the whole autoencoder."""
    posterior = vae.encode(x).latent_dist
    kl = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean()
    loss: Tensor = picture_loss(vae.decode(posterior.sample()).sample, x) + _KL_WEIGHT * kl
    return loss


def polish_loss(vae: Autoencoder, x: Tensor, noise: float = 0.1) -> Tensor:
    """Return the loss of a decoder-only step, on latents as noisy as a sampler leaves them. The flow stays valid."""
    with torch.no_grad():
        z = vae.encode(x).latent_dist.mean
        z = z + noise * torch.rand(len(z), 1, 1, 1) * torch.randn_like(z) / vae.config.scaling_factor
    return picture_loss(vae.decode(z).sample, x)


@torch.no_grad()
def encode(vae: Autoencoder, pictures: Picture, batch: int = 64) -> Tensor:
    """Latent means (n, 16, h/8, w/8) in half precision, as the autoencoder gives them (neither shifted nor scaled)."""
    parts = [
        vae.encode(to_tensor(pictures[i : i + batch])).latent_dist.mean.half() for i in range(0, len(pictures), batch)
    ]
    return torch.cat(parts).contiguous()


@torch.no_grad()
def level_channels(vae: Autoencoder, pictures: Picture) -> None:
    """Give every latent channel the same spread, exactly, by scaling the convolutions on both sides of the latent.

    FLUX's pipeline knows one scale for all channels; with unequal ones the flow would spend its loss on the loud few.
    The log-variance half moves along, so that sampling keeps its meaning. Sets shift_factor and scaling_factor.
    """
    z = encode(vae, pictures).float()
    spread = z.std((0, 2, 3)).clamp_min(1e-3)
    out = vae.encoder.conv_out
    k = LATENT_CHANNELS
    out.weight[:k] /= spread[:, None, None, None]
    out.bias[:k] /= spread
    out.bias[k:] -= 2 * spread.log()
    vae.decoder.conv_in.weight *= spread[None, :, None, None]
    z = encode(vae, pictures).float()
    vae.register_to_config(shift_factor=round(z.mean().item(), 5), scaling_factor=round(1 / z.std().item(), 5))


@torch.no_grad()
def psnr(vae: Autoencoder, pictures: Picture) -> float:
    """Mean peak signal-to-noise ratio, in dB, of the round trip over pictures (Wang and Bovik 2009, eq. 2)."""
    values: list[Tensor] = []
    for i in range(0, len(pictures), 64):
        x = to_tensor(pictures[i : i + 64])
        y = vae.decode(vae.encode(x).latent_dist.mean).sample.clamp(-1, 1)
        values.append(-10 * (((x - y) ** 2).mean((1, 2, 3)) / 4).log10())
    return float(torch.cat(values).mean())
