"""The transformer: a small FluxTransformer2DModel trained by flow matching, and the folder it is shipped in."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from models.garments.catalogue import GarmentFacts
from models.garments.libraries import (
    Autoencoder,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    Transformer,
)
from models.garments.optimising import AveragedTraining
from models.garments.prompts import preserved_prompts, training_prompt
from models.garments.text import CLIP_WIDTH, T5_WIDTH, TextEncoders
from models.garments.vae import LATENT_CHANNELS

MAX_TOKENS: Final = 32
# Lengths T5 is padded to in training, with their odds: any max_sequence_length of 16 to 32 then works.
_LENGTHS: Final = (16, 24, 32)
_LENGTH_ODDS: Final = (0.5, 0.25, 0.25)
_EMPTY_SHARE: Final = 0.1

CARD: Final[dict[str, Any]] = {
    "name": "garments",
    "architecture": "flux",
    "license": "Apache-2.0",
    "native_size": 64,
    "max_size": 64,
    "size_multiple": 16,
    "max_sequence_length": MAX_TOKENS,
    "steps": {"default": 12, "min": 1, "max": 50},
    "guidance": {"scale_default": 1.0, "embedded": False, "true_cfg_scale": 2.0, "negative_prompt": ""},
    "lora": {
        "target_modules": [
            *("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
            *("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2", "proj_mlp", "proj_out"),
        ],
        # Measured on things that the model has never seen: see CARD.md.
        "learning_rate_scale": 10.0,
        "preserved_prompts": preserved_prompts(),
    },
    "dtype": "float32",
}


def make_transformer(width: int = 192, double: int = 2, single: int = 4, head: int = 32) -> Transformer:
    """Return a fresh transformer whose blocks all begin as the identity (adaLN-zero, Peebles and Xie 2023)."""
    model = FluxTransformer2DModel(
        patch_size=1,
        in_channels=4 * LATENT_CHANNELS,
        num_layers=double,
        num_single_layers=single,
        attention_head_dim=head,
        num_attention_heads=width // head,
        joint_attention_dim=T5_WIDTH,
        pooled_projection_dim=CLIP_WIDTH,
        axes_dims_rope=(head // 4, head // 8 * 3, head // 8 * 3),
        guidance_embeds=False,
    )
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and ".norm" in f".{name}" and name.endswith("linear"):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    nn.init.zeros_(model.proj_out.weight)
    nn.init.zeros_(model.proj_out.bias)
    return model


class _Product(torch.autograd.Function):
    """x @ weight.T with bfloat16 factors and float32 results, forwards and backwards."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        """Multiply; keeps the rounded factors for the way back."""
        half_x, half_weight = x.bfloat16(), weight.bfloat16()
        ctx.save_for_backward(half_x, half_weight)
        return (half_x @ half_weight.t()).float()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of both factors."""
        half_x, half_weight = ctx.saved_tensors
        half = gradients[0].bfloat16()
        rows = half.reshape(-1, half.shape[-1]).t()
        return (half @ half_weight).float(), (rows @ half_x.reshape(-1, half_x.shape[-1])).float()


class _QuickLinear(nn.Linear):
    """A linear layer for training on processors with AVX512-BF16, where such products are three times as fast.

    Autocast and set_float32_matmul_precision("medium") were measured too: neither made a whole step any faster.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer; weights stay float32."""
        y: Tensor = _Product.apply(x, self.weight)  # type: ignore[no-untyped-call] # torch leaves it untyped
        return y if self.bias is None else y + self.bias


def quicken(model: Transformer) -> None:
    """Let all linear layers of a model multiply in bfloat16. Names and weights stay as they are."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = _QuickLinear


class FlowTrainer(AveragedTraining):
    """Velocity matching (Lipman et al. 2023) with logit-normal times (Esser et al. 2024) and an averaged copy."""

    def __init__(
        self,
        model: Transformer,
        side: TextEncoders,
        latents: Tensor,
        facts: Sequence[GarmentFacts],
        *,
        seed: int,
        lr: float = 1e-3,
    ) -> None:
        """Latents are (n, 16, h, w), already shifted and scaled as the pipeline expects them; facts name each."""
        quicken(model)
        super().__init__(model, seed=seed, lr=lr)
        self._side, self._latents, self._facts = side, latents, facts

    def step(self, progress: float, batch: int) -> float:
        """One step; returns the loss."""
        pick: NDArray[np.int64] = self._rng.integers(0, len(self._latents), batch)
        clean = self._latents[torch.from_numpy(pick)].float()
        prompts = [
            "" if self._rng.random() < _EMPTY_SHARE else training_prompt(self._facts[i], self._rng)[0] for i in pick
        ]
        length = int(self._rng.choice(_LENGTHS, p=_LENGTH_ODDS))
        pooled, sequence = self._side.encode(prompts, length)
        noise = torch.randn(clean.shape, generator=self._noise)
        t = torch.sigmoid(torch.randn(batch, generator=self._noise))
        mix = t.view(-1, 1, 1, 1)
        h, w = clean.shape[-2:]
        out = self.model(
            hidden_states=pack((1 - mix) * clean + mix * noise),
            timestep=t,
            pooled_projections=pooled,
            encoder_hidden_states=sequence,
            txt_ids=torch.zeros(length, 3),
            img_ids=image_ids(h // 2, w // 2),
            return_dict=False,
        )[0]
        loss = mse_loss(out, pack(noise - clean))
        self.descend(loss, progress)
        return float(loss.detach())


def pack(latents: Tensor) -> Tensor:
    """(n, c, h, w) latents to (n, h/2 * w/2, 4c) tokens of 2 x 2 patches, as FluxPipeline lays them out."""
    n, c, h, w = latents.shape
    return latents.view(n, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(n, h * w // 4, 4 * c)


def image_ids(rows: int, columns: int) -> Tensor:
    """Positions (rows * columns, 3) of image tokens for RoPE: always 0, row, column."""
    ids = torch.zeros(rows, columns, 3)
    ids[..., 1] = torch.arange(rows)[:, None]
    ids[..., 2] = torch.arange(columns)[None]
    return ids.view(-1, 3)


def export(folder: Path, transformer: Transformer, vae: Autoencoder, side: TextEncoders, size: int) -> None:
    """Write a FluxPipeline folder in half precision with the model's card file, and put it in place at once.

    A reader of `folder` sees the old or the new content, never a part of it.
    """
    fresh = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(fresh, ignore_errors=True)
    pipeline = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0, use_dynamic_shifting=False),
        vae=copy.deepcopy(vae).to(memory_format=torch.contiguous_format).half(),
        text_encoder=copy.deepcopy(side.text_encoder).half(),
        tokenizer=side.tokenizer,
        text_encoder_2=copy.deepcopy(side.text_encoder_2).half(),
        tokenizer_2=side.tokenizer_2,
        transformer=copy.deepcopy(transformer).half(),
    )
    pipeline.save_pretrained(fresh, safe_serialization=True)
    card = {**CARD, "native_size": size, "max_size": size}
    (fresh / "atelier.json").write_text(json.dumps(card, indent=2) + "\n")
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
