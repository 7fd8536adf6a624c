"""The transformer's training, with the picture before in its sequence, and the folder it is shipped in.

FLUX.1 Kontext (Black Forest Labs 2025) appends the clean latents of the picture before to the noisy ones; their
positions carry image number 1.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from models.edits.libraries import FluxKontextPipeline
from models.garments.flow import CARD, image_ids, pack, quicken
from models.garments.libraries import Autoencoder, FlowMatchEulerDiscreteScheduler, Transformer
from models.garments.optimising import AveragedTraining
from models.garments.text import TextEncoders

MAX_TOKENS: Final = 32
# Lengths T5 is padded to in training, with their odds: any max_sequence_length of 16 to 32 then works.
_LENGTHS: Final = (16, 24, 32)
_LENGTH_ODDS: Final = (0.6, 0.25, 0.15)
# An empty instruction asks for the picture as it is, which is what a negative prompt is for. Not used by default: the
# measured edits are better without guidance.
_EMPTY_SHARE: Final = 0.08
# Times lean towards noise, where it is decided what the picture shows and where it stands.
_TIME_SHIFT: Final = 0.4

EDIT_CARD: Final[dict[str, Any]] = {
    **CARD,
    "name": "edits",
    "architecture": "flux-kontext",
    "references": 0,
    "guidance": {**CARD["guidance"], "true_cfg_scale": 1.0},
    "max_sequence_length": MAX_TOKENS,
}


class EditBatches:
    """Latents, instructions and pairs, and the batches drawn from them.

    Args:
        latents: (n, 16, h, w), shifted and scaled as the pipeline expects them.
        before: (m,) picture before of each instruction.
        after: (m,) picture after of each instruction.
        clip_ids: (m, tokens) of the instructions.
        t5_ids: (m, MAX_TOKENS) of the same.
        device: Where the steps run.
    """

    def __init__(self, latents: Tensor, before: Tensor, after: Tensor, ids: tuple[Tensor, Tensor], device: str) -> None:
        clip_ids, t5_ids = ids
        self.latents, self.before, self.after = latents.to(device), before.to(device), after.to(device)
        self.clip_ids, self.t5_ids = clip_ids.to(device), t5_ids.to(device)
        tokens = (t5_ids != 0).sum(1)
        # Instructions that a length does not cut; T5's cost goes with the length.
        self.by_length = {length: (tokens <= length).nonzero()[:, 0].to(device) for length in _LENGTHS}


class EditTrainer(AveragedTraining):
    """Velocity matching (Lipman et al. 2023) with logit-normal times (Esser et al. 2024) and an averaged copy."""

    def __init__(
        self, model: Transformer, side: TextEncoders, batches: EditBatches, *, seed: int, lr: float, device: str
    ) -> None:
        if device == "cpu":
            quicken(model)
        super().__init__(model.to(device), seed=seed, lr=lr, device=device)
        self._batches = batches
        self._clip, self._t5 = side.text_encoder.to(device), side.text_encoder_2.to(device)
        self._empty_clip = side.clip_ids([""]).to(device)
        self._empty_t5 = side.t5_ids([""], MAX_TOKENS).to(device)

    @torch.no_grad()
    def _text(self, chosen: Tensor, empty: Tensor, length: int) -> tuple[Tensor, Tensor]:
        clip, t5 = self._batches.clip_ids[chosen].long(), self._batches.t5_ids[chosen].long()
        blank = torch.full_like(clip, int(self._empty_clip[0, -1]))
        blank[:, : self._empty_clip.shape[1]] = self._empty_clip
        clip = torch.where(empty[:, None], blank, clip)
        t5 = torch.where(empty[:, None], self._empty_t5, t5)[:, :length]
        return self._clip(clip).pooler_output.float(), self._t5(t5)[0].float()

    def step(self, progress: float, batch: int) -> Tensor:
        """One step; returns the loss, still on the device."""
        b, device = self._batches, self._device
        length = int(self._rng.choice(_LENGTHS, p=_LENGTH_ODDS))
        pool = b.by_length[length]
        chosen = pool[torch.randint(len(pool), (batch,), generator=self._noise, device=device)]
        empty = torch.rand(batch, generator=self._noise, device=device) < _EMPTY_SHARE
        shown = b.latents[b.before[chosen]].float()
        clean = torch.where(empty[:, None, None, None], shown, b.latents[b.after[chosen]].float())
        pooled, sequence = self._text(chosen, empty, length)
        noise = torch.randn(clean.shape, generator=self._noise, device=device)
        t = torch.sigmoid(torch.randn(batch, generator=self._noise, device=device) + _TIME_SHIFT)
        mix = t.view(-1, 1, 1, 1)
        noisy = pack((1 - mix) * clean + mix * noise)
        out = self.model(
            hidden_states=torch.cat([noisy, pack(shown)], dim=1),
            timestep=t,
            pooled_projections=pooled,
            encoder_hidden_states=sequence,
            txt_ids=torch.zeros(length, 3, device=device),
            img_ids=positions(*clean.shape[2:]).to(device),
            return_dict=False,
        )[0]
        loss = mse_loss(out[:, : noisy.shape[1]], pack(noise - clean))
        self.descend(loss, progress)
        return loss.detach()


def positions(rows: int, columns: int) -> Tensor:
    """Positions of a sequence of latents: the noisy ones' tokens, then those of the picture before, with number 1."""
    own = image_ids(rows // 2, columns // 2)
    shown = own.clone()
    shown[:, 0] = 1
    return torch.cat([own, shown])


def token_ids(side: TextEncoders, texts: list[str]) -> tuple[Tensor, Tensor]:
    """Tokenize instructions: CLIP's ids, padded to the longest, and T5's, padded to MAX_TOKENS."""
    return side.clip_ids(texts).to(torch.int16), side.t5_ids(texts, MAX_TOKENS).to(torch.int16)


def export_edits(folder: Path, transformer: Transformer, vae: Autoencoder, side: TextEncoders, size: int) -> None:
    """Write a FluxKontextPipeline folder in half precision with the model's card file, and put it in place at once."""
    fresh = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(fresh, ignore_errors=True)
    pipeline = FluxKontextPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0, use_dynamic_shifting=False),
        vae=copy.deepcopy(vae).cpu().to(memory_format=torch.contiguous_format).half(),
        text_encoder=copy.deepcopy(side.text_encoder).cpu().half(),
        tokenizer=side.tokenizer,
        text_encoder_2=copy.deepcopy(side.text_encoder_2).cpu().half(),
        tokenizer_2=side.tokenizer_2,
        transformer=copy.deepcopy(transformer).half(),
    )
    pipeline.save_pretrained(fresh, safe_serialization=True)
    card = {**EDIT_CARD, "native_size": size, "max_size": size}
    (fresh / "atelier.json").write_text(json.dumps(card, indent=2) + "\n")
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
