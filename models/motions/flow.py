"""The transformer: a small LTXVideoTransformer3DModel trained by flow matching, and the folder it is shipped in."""

from __future__ import annotations

import copy
import itertools
import json
import os
import shutil
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.garments.flow import quicken
from models.garments.optimising import AveragedTraining
from models.motions.film import FRAMES, MOTIONS, SIZE
from models.motions.libraries import (
    FlowMatchEulerDiscreteScheduler,
    LTXVideoTransformer3DModel,
    Transformer,
)
from models.motions.text import MAX_TOKENS, WIDTH, MotionText
from models.motions.vae import FACTOR, LATENT_CHANNELS, WEIGHTS
from models.motions.wordings import training_bank

# Noise levels of a sampler crowd near 1 by this factor (Esser et al. 2024, eq. 23), as the times of training do.
SHIFT: Final = 3.0
# Frames per second the pipeline is told: it only sets how far apart frames lie in the rotary embedding.
FRAME_RATE: Final = 2
_EMPTY_SHARE: Final = 0.1
_SIDE: Final = SIZE // FACTOR
_BANK: Final = 700  # prompts of each motion, encoded once

CARD: Final[dict[str, Any]] = {
    "name": "motions",
    "architecture": "ltx",
    "license": "Apache-2.0",
    "native_size": SIZE,
    "max_size": SIZE,
    "size_multiple": SIZE,
    "max_sequence_length": MAX_TOKENS,
    "video": {"min_frames": FRAMES, "max_frames": FRAMES, "frame_multiple": 1, "frame_rate": FRAME_RATE},
    "steps": {"default": 8, "min": 1, "max": 50},
    "guidance": {"embedded": False, "scale_default": 4.0, "negative_prompt": ""},
    "dtype": "float32",
}


_INDEX: Final = {
    "_class_name": "LTXImageToVideoPipeline",
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "T5EncoderModel"],
    "tokenizer": ["transformers", "T5TokenizerFast"],
    "transformer": ["diffusers", "LTXVideoTransformer3DModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def make_transformer(width: int = 192, layers: int = 4, head: int = 32) -> Transformer:
    """Return a fresh transformer that begins by predicting nothing."""
    model = LTXVideoTransformer3DModel(
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        patch_size=1,
        patch_size_t=1,
        num_attention_heads=width // head,
        attention_head_dim=head,
        cross_attention_dim=width,
        num_layers=layers,
        caption_channels=WIDTH,
    )
    nn.init.zeros_(model.proj_out.weight)
    nn.init.zeros_(model.proj_out.bias)
    return model


def pack(latents: Tensor) -> Tensor:
    """(n, c, f, h, w) latents to (n, f * h * w, c) tokens, as the pipeline lays them out."""
    return latents.flatten(2).transpose(1, 2)


class MotionTrainer(AveragedTraining):
    """Velocity matching (Lipman et al. 2023) of all frames but the first, which is given clean, as in the pipeline."""

    def __init__(
        self,
        model: Transformer,
        text: MotionText,
        latents: Tensor,
        motions: NDArray[np.int64],
        *,
        seed: int,
        device: str,
        lr: float = 1e-3,
    ) -> None:
        """Latents are (n, c, f, h, w) as the pipeline has them; motions name each, as positions in MOTIONS."""
        if device == "cpu":
            quicken(model)
        super().__init__(model.to(device), seed=seed, lr=lr, device=device, momenta=(0.9, 0.98), last_rate=0.01)
        self._latents, self._motions = latents, motions
        prompts, _ = training_bank(np.random.default_rng(seed + 1), _BANK)
        self._words, self._masks = text.encode([*prompts, ""], device)

    def step(self, progress: float, batch: int) -> float:
        """One step; returns the loss."""
        pick = self._rng.integers(0, len(self._latents), batch)
        said = self._motions[pick] * _BANK + self._rng.integers(0, _BANK, batch)
        said[self._rng.random(batch) < _EMPTY_SHARE] = len(MOTIONS) * _BANK
        words = torch.from_numpy(said).to(self._device)
        clean = self._latents[torch.from_numpy(pick).to(self._latents.device)].to(self._device).float()
        noise = torch.randn(clean.shape, generator=self._noise, device=self._device)
        # What moves where is decided while next to all is noise, so most times lie near 1; the pipeline begins there.
        u = torch.rand(batch, generator=self._noise, device=self._device)
        t = 1 - 0.98 * u.square()
        # Times by frame: the first stays clean, at time 0.
        times = t[:, None].repeat(1, clean.shape[2])
        times[:, 0] = 0
        mix = times[:, None, :, None, None]
        given = (1 - mix) * clean + mix * noise
        with torch.autocast(self._device.split(":")[0], torch.bfloat16, enabled=self._device != "cpu"):
            out = self.model(
                hidden_states=pack(given),
                encoder_hidden_states=self._words[words],
                timestep=1000 * times.repeat_interleave(_SIDE * _SIDE, 1),
                encoder_attention_mask=self._masks[words],
                num_frames=clean.shape[2],
                height=_SIDE,
                width=_SIDE,
                rope_interpolation_scale=(1 / FRAME_RATE, FACTOR, FACTOR),
                return_dict=False,
            )[0]
        wrong = out.float() - pack(noise - clean)
        loss = wrong[:, _SIDE * _SIDE :].square().mean()
        self.descend(loss, progress)
        return float(loss.detach())


@torch.no_grad()
def sample(
    model: Transformer,
    conditions: tuple[Tensor, Tensor],
    first: Tensor,
    noise: Tensor,
    *,
    steps: int,
    guidance: float,
    unasked: tuple[Tensor, Tensor],
) -> Tensor:
    """Draw latents (n, c, f, h, w) as the pipeline does, with Euler's steps from noise to nothing of it.

    Args:
        model: The transformer.
        conditions: Embeddings and mask of the prompts.
        first: Latents (n, c, h, w) of the first frames.
        noise: Noise (n, c, f, h, w).
        steps: Steps.
        guidance: Scale of classifier-free guidance; up to 1 there is none.
        unasked: Embeddings and mask of the negative prompts.
    """
    even = torch.linspace(1.0, 1 / steps, steps)
    levels: list[float] = [*(SHIFT * even / (1 + (SHIFT - 1) * even)).tolist(), 0.0]
    z = noise.clone()
    z[:, :, 0] = first
    frames, side = z.shape[2], z.shape[3]

    def velocity(given: Tensor, level: float, words: Tensor, mask: Tensor) -> Tensor:
        times = torch.full((len(given), frames), 1000 * level)
        times[:, 0] = 0
        out = model(
            hidden_states=pack(given),
            encoder_hidden_states=words,
            timestep=times.repeat_interleave(side * side, 1),
            encoder_attention_mask=mask,
            num_frames=frames,
            height=side,
            width=side,
            rope_interpolation_scale=(1 / FRAME_RATE, FACTOR, FACTOR),
            return_dict=False,
        )[0]
        unpacked: Tensor = out.transpose(1, 2).unflatten(2, (frames, side, side))
        return unpacked

    for level, following in itertools.pairwise(levels):
        asked = velocity(z, level, *conditions)
        if guidance > 1:
            plain = velocity(z, level, *unasked)
            asked = plain + guidance * (asked - plain)
        z[:, :, 1:] += (following - level) * asked[:, :, 1:]
    return z


def export(folder: Path, transformer: Transformer, text: MotionText) -> None:
    """Write a pipeline folder in half precision with the card file, and put it in place at once.

    The autoencoder in it is the garments model's own, which works on single pictures: what loads the folder lends it to
    the pipeline frame by frame. A reader of `folder` sees the old or the new content, never a part of it.
    """
    fresh = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    copy.deepcopy(transformer).cpu().half().save_pretrained(fresh / "transformer")
    copy.deepcopy(text.encoder).cpu().half().save_pretrained(fresh / "text_encoder")
    text.tokenizer.save_pretrained(fresh / "tokenizer")
    FlowMatchEulerDiscreteScheduler(shift=SHIFT, use_dynamic_shifting=False).save_pretrained(fresh / "scheduler")
    shutil.copytree(WEIGHTS, fresh / "vae")
    (fresh / "model_index.json").write_text(json.dumps(_INDEX, indent=2) + "\n")
    (fresh / "atelier.json").write_text(json.dumps(CARD, indent=2) + "\n")
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
