"""The text side: a tokenizer and a small T5 encoder, taught to name the motion a prompt asks for and then frozen."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from models.garments.libraries import Encoder, T5Config, T5EncoderModel, T5TokenizerFast, Tokenizer
from models.garments.prompts import COLOUR_WORDS, FILLERS, WORDS
from models.garments.text import t5_tokenizer
from models.motions.film import MOTIONS
from models.motions.wordings import training_bank, training_wording

WIDTH: Final = 128
MAX_TOKENS: Final = 32


class MotionText:
    """A tokenizer and an encoder, as LTXImageToVideoPipeline uses them: padded, and the padding masked afterwards."""

    def __init__(self, tokenizer: Tokenizer, encoder: Encoder) -> None:
        self.tokenizer, self.encoder = tokenizer, encoder

    def tokens(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """Token ids and mask, both (n, MAX_TOKENS)."""
        given = self.tokenizer(
            prompts, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt"
        )
        return given.input_ids, given.attention_mask

    @torch.no_grad()
    def encode(self, prompts: list[str], device: str) -> tuple[Tensor, Tensor]:
        """Embeddings (n, MAX_TOKENS, WIDTH) and mask (n, MAX_TOKENS)."""
        ids, mask = self.tokens(prompts)
        parts = [self.encoder(part.to(device))[0] for part in torch.split(ids, 256)]
        return torch.cat(parts), mask.to(device)


def make_text(seed: int, prompts: int = 900) -> MotionText:
    """Return a tokenizer learnt on generated prompts, and an untrained encoder."""
    rng = np.random.default_rng(seed)
    corpus, _ = training_bank(rng, prompts)
    known = [w for words in (*WORDS.values(), *COLOUR_WORDS.values()) for w in words]
    corpus += [*FILLERS, *known, *(w.capitalize() for w in known)] * 3
    tokenizer = t5_tokenizer(corpus, 1000)
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=len(tokenizer), d_model=WIDTH, d_kv=32, d_ff=256, num_layers=2, num_heads=4, dropout_rate=0.0
    )
    return MotionText(tokenizer, T5EncoderModel(config))


class MotionNamer:
    """A linear head over the encoder, and the optimiser that teaches both to name a prompt's motion."""

    def __init__(self, text: MotionText, seed: int, device: str, lr: float = 2e-3) -> None:
        self.text = text
        text.encoder.to(device)
        self._rng = np.random.default_rng(seed)
        self._lr, self._device = lr, device
        self._head = nn.Linear(WIDTH, len(MOTIONS)).to(device)
        self._optimiser = torch.optim.AdamW(
            [*text.encoder.parameters(), *self._head.parameters()], lr=lr, weight_decay=1e-2
        )

    def step(self, progress: float, warm: float, batch: int = 48) -> float:
        """One step on fresh prompts; returns the loss."""
        for group in self._optimiser.param_groups:
            group["lr"] = self._lr * warm * max(0.02, 1 - progress)
        labels = self._rng.integers(0, len(MOTIONS), batch)
        prompts = [training_wording(MOTIONS[m], self._rng) for m in labels]
        ids, mask = (t.to(self._device) for t in self.text.tokens(prompts))
        weights = mask.float()[..., None]
        mean = (self.text.encoder(ids)[0] * weights).sum(1) / weights.sum(1)
        loss = cross_entropy(self._head(mean), torch.from_numpy(labels).to(self._device))
        self._optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        self._optimiser.step()
        return float(loss.detach())

    @torch.no_grad()
    def named(self, prompts: list[str]) -> list[int]:
        """Return the motion the head reads in each prompt, as positions in MOTIONS."""
        ids, mask = (t.to(self._device) for t in self.text.tokens(prompts))
        weights = mask.float()[..., None]
        mean = (self.text.encoder(ids)[0] * weights).sum(1) / weights.sum(1)
        named: list[int] = self._head(mean).argmax(1).tolist()
        return named

    def state(self) -> dict[str, Any]:
        """Everything a resumed stage needs."""
        return {
            "encoder": self.text.encoder.state_dict(),
            "head": self._head.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "rng": self._rng.bit_generator.state,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        self.text.encoder.load_state_dict(state["encoder"])
        self._head.load_state_dict(state["head"])
        self._optimiser.load_state_dict(state["optimiser"])
        self._rng.bit_generator.state = state["rng"]


def save_text(text: MotionText, folder: Path) -> None:
    """Write both parts under the pipeline's folder names, in full precision."""
    text.tokenizer.save_pretrained(folder / "tokenizer")
    text.encoder.save_pretrained(folder / "text_encoder")


def load_text(folder: Path) -> MotionText:
    """Read what save_text wrote."""
    return MotionText(
        T5TokenizerFast.from_pretrained(folder / "tokenizer"),
        T5EncoderModel.from_pretrained(folder / "text_encoder", dtype=torch.float32),
    )
