"""The text side: two tokenizers and two small encoders, taught to name what a prompt asks for and then frozen.

Classification is what makes unseen pairs work: "red" and "dress" end up in separate directions of the embedding, so
the transformer gets no unknown input for a held-out pair.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import sentencepiece
import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from models.garments import libraries
from models.garments.catalogue import BACKGROUNDS, CLOTHS, GARMENTS, PRINTS, GarmentFacts
from models.garments.draw import choose
from models.garments.libraries import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)
from models.garments.prompts import COLOUR_WORDS, FILLERS, WORDS, training_prompt

CLIP_WIDTH: Final = 96
T5_WIDTH: Final = 128
_CLIP_LIMIT: Final = 77
# Classes per head; the last class of the last three means "the prompt does not say".
_HEADS: Final = (len(GARMENTS) + 1, len(CLOTHS) + 1, len(PRINTS) + 1, len(CLOTHS) + 1, len(BACKGROUNDS) + 1)


@dataclass(frozen=True, slots=True)
class TextEncoders:
    """Tokenizers and encoders in the order FluxPipeline names them: CLIP (pooled), then T5 (a sequence)."""

    tokenizer: libraries.Tokenizer
    tokenizer_2: libraries.Tokenizer
    text_encoder: libraries.Encoder
    text_encoder_2: libraries.Encoder

    def clip_ids(self, prompts: Sequence[str]) -> Tensor:
        """Token ids (n, longest). CLIP is causal and pools at its end token, so padding to 77 would change nothing."""
        ids: Tensor = self.tokenizer(
            list(prompts), padding="longest", max_length=_CLIP_LIMIT, truncation=True, return_tensors="pt"
        ).input_ids
        return ids

    def t5_ids(self, prompts: Sequence[str], length: int) -> Tensor:
        """Token ids (n, length), padded as FluxPipeline pads them: without a mask, so that padding is seen too."""
        ids: Tensor = self.tokenizer_2(
            list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        ).input_ids
        return ids

    @torch.no_grad()
    def encode(self, prompts: Sequence[str], length: int) -> tuple[Tensor, Tensor]:
        """Pooled embeddings (n, 96) and sequences (n, length, 128)."""
        return self.text_encoder(self.clip_ids(prompts)).pooler_output, self.text_encoder_2(
            self.t5_ids(prompts, length)
        )[0]

    def freeze(self) -> None:
        """Switch to evaluation mode, without gradients."""
        self.text_encoder.eval().requires_grad_(requires_grad=False)
        self.text_encoder_2.eval().requires_grad_(requires_grad=False)


def _clip_tokenizer(corpus: Sequence[str], size: int) -> libraries.Tokenizer:
    bpe = Tokenizer(models.BPE(unk_token="<|endoftext|>", end_of_word_suffix="</w>"))  # noqa: S106 -- CLIP's token
    bpe.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    pattern = Regex(r"""'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+""")
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(pattern, "removed", invert=True), ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    alphabet = sorted(ByteLevel.alphabet())
    bpe.train_from_iterator(
        corpus,
        trainers.BpeTrainer(
            vocab_size=size - 2, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
        ),
    )
    learnt = json.loads(bpe.to_str())["model"]
    vocabulary: dict[str, int] = {}
    # CLIP's file order: bytes, bytes that end a word, merges, the two special tokens.
    ordered = [*alphabet, *(a + "</w>" for a in alphabet), *sorted(learnt["vocab"], key=learnt["vocab"].get)]
    for token in [*ordered, "<|startoftext|>", "<|endoftext|>"]:
        vocabulary.setdefault(token, len(vocabulary))
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in learnt["merges"]]
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=_CLIP_LIMIT)


def t5_tokenizer(corpus: Sequence[str], size: int) -> libraries.Tokenizer:
    """Return a T5 tokenizer of at most `size` pieces learnt on a corpus, with bytes for what it never saw."""
    with tempfile.TemporaryDirectory() as folder:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(corpus),
            model_prefix=f"{folder}/spiece",
            vocab_size=size,
            model_type="unigram",
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            byte_fallback=True,
            hard_vocab_limit=False,
            num_threads=1,
            minloglevel=2,
        )
        pieces = sentencepiece.SentencePieceProcessor(model_file=f"{folder}/spiece.model")
    vocabulary = [(pieces.id_to_piece(i), pieces.get_score(i)) for i in range(pieces.get_piece_size())]
    return T5TokenizerFast(vocab=vocabulary, extra_ids=0, model_max_length=512)


def make_text_side(seed: int = 5, prompts: int = 6000) -> TextEncoders:
    """Return tokenizers trained on generated prompts, and untrained encoders."""
    rng = np.random.default_rng(seed)
    corpus = [training_prompt(choose(rng), rng)[0] for _ in range(prompts)]
    known = [w for words in (*WORDS.values(), *COLOUR_WORDS.values()) for w in words]
    # Fillers by themselves, so that most everyday words are one or two tokens and a prompt fits its 32.
    corpus += [*FILLERS, *known, *(w.capitalize() for w in known)] * 3
    clip, t5 = _clip_tokenizer(corpus, 1100), t5_tokenizer(corpus, 1000)
    torch.manual_seed(seed)
    clip_config = CLIPTextConfig(
        vocab_size=len(clip),
        hidden_size=CLIP_WIDTH,
        intermediate_size=2 * CLIP_WIDTH,
        projection_dim=CLIP_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=_CLIP_LIMIT,
        bos_token_id=clip.bos_token_id,
        eos_token_id=clip.eos_token_id,
        pad_token_id=clip.pad_token_id,
    )
    t5_config = T5Config(
        vocab_size=len(t5), d_model=T5_WIDTH, d_kv=32, d_ff=256, num_layers=2, num_heads=4, dropout_rate=0.0
    )
    return TextEncoders(clip, t5, CLIPTextModel(clip_config), T5EncoderModel(t5_config))


def labels_of(facts: GarmentFacts, *, says_second: bool, says_ground: bool) -> tuple[int, int, int, int, int]:
    """Class indices of one prompt, in the order of the heads."""
    cloths, grounds = list(CLOTHS), list(BACKGROUNDS)
    return (
        GARMENTS.index(facts.garment),
        cloths.index(facts.colour),
        PRINTS.index(facts.print),
        cloths.index(facts.second) if facts.second and says_second else len(cloths),
        grounds.index(facts.background) if says_ground else len(grounds),
    )


# Words a training prompt and labels it, one class a head.
Wording: TypeAlias = Callable[[np.random.Generator], tuple[str, tuple[int, ...]]]


def _worded(rng: np.random.Generator) -> tuple[str, tuple[int, ...]]:
    facts = choose(rng)
    prompt, second, ground = training_prompt(facts, rng)
    return prompt, labels_of(facts, says_second=second, says_ground=ground)


class PromptClassifier:
    """Two linear heads over the encoders, and the optimiser that teaches them all to name a prompt's facts.

    Args:
        side: The encoders.
        seed: Of the prompts.
        lr: Learning rate at the start.
        word: Source of prompts.
        heads: Classes of each head.
        lengths: Lengths T5 is padded to.
        device: Where the steps run.
    """

    def __init__(
        self,
        side: TextEncoders,
        seed: int,
        lr: float = 2e-3,
        *,
        word: Wording = _worded,
        heads: tuple[int, ...] = _HEADS,
        lengths: tuple[int, ...] = (24, 32),
        device: str = "cpu",
    ) -> None:
        self._device = device
        side.text_encoder.to(device)
        side.text_encoder_2.to(device)
        self.side, self._word, self._sizes, self._lengths = side, word, heads, lengths
        self._rng = np.random.default_rng(seed)
        self._lr = lr
        self._heads = nn.ModuleList([nn.Linear(CLIP_WIDTH, sum(heads)), nn.Linear(T5_WIDTH, sum(heads))]).to(device)
        parameters = [*side.text_encoder.parameters(), *side.text_encoder_2.parameters(), *self._heads.parameters()]
        self._optimiser = torch.optim.AdamW(parameters, lr=lr, weight_decay=1e-3)

    def step(self, progress: float, warm: float, batch: int = 96) -> tuple[float, list[float]]:
        """One step on fresh prompts of trained pairs only.

        Args:
            progress: How much of the stage is over, 0..1: the rate falls linearly with it.
            warm: Warm-up factor, 0..1.
            batch: Prompts per step.

        Returns:
            The loss and the accuracies per head, CLIP's then T5's.
        """
        for group in self._optimiser.param_groups:
            group["lr"] = self._lr * warm * max(0.02, 1 - progress)
        prompts: list[str] = []
        labels: list[tuple[int, ...]] = []
        for _ in range(batch):
            prompt, facts = self._word(self._rng)
            prompts.append(prompt)
            labels.append(facts)
        y = torch.tensor(labels, device=self._device)
        pooled = self.side.text_encoder(self.side.clip_ids(prompts).to(self._device)).pooler_output
        length = int(self._rng.choice(self._lengths))
        ids = self.side.t5_ids(prompts, length).to(self._device)
        mask = (ids != self.side.tokenizer_2.pad_token_id).float()[..., None]
        mean = (self.side.text_encoder_2(ids)[0] * mask).sum(1) / mask.sum(1)
        loss = torch.zeros((), device=self._device)
        accuracies: list[float] = []
        for head, features in zip(self._heads, (pooled, mean), strict=True):
            for k, part in enumerate(head(features).split(self._sizes, 1)):
                loss = loss + cross_entropy(part, y[:, k])
                accuracies.append(float((part.argmax(1) == y[:, k]).float().mean()))
        self._optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        self._optimiser.step()
        return float(loss.detach()), accuracies

    def state(self) -> dict[str, Any]:
        """Everything a resumed stage needs."""
        return {
            "clip": self.side.text_encoder.state_dict(),
            "t5": self.side.text_encoder_2.state_dict(),
            "heads": self._heads.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "rng": self._rng.bit_generator.state,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        self.side.text_encoder.load_state_dict(state["clip"])
        self.side.text_encoder_2.load_state_dict(state["t5"])
        self._heads.load_state_dict(state["heads"])
        self._optimiser.load_state_dict(state["optimiser"])
        self._rng.bit_generator.state = state["rng"]


def save_text_side(side: TextEncoders, folder: Path) -> None:
    """Write the four parts under FluxPipeline's folder names, in full precision."""
    side.tokenizer.save_pretrained(folder / "tokenizer")
    side.tokenizer_2.save_pretrained(folder / "tokenizer_2")
    side.text_encoder.save_pretrained(folder / "text_encoder")
    side.text_encoder_2.save_pretrained(folder / "text_encoder_2")


def load_text_side(folder: Path) -> TextEncoders:
    """Read what save_text_side wrote."""
    return TextEncoders(
        CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        T5TokenizerFast.from_pretrained(folder / "tokenizer_2"),
        CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32),
        T5EncoderModel.from_pretrained(folder / "text_encoder_2", dtype=torch.float32),
    )
