"""A transformers model that answers: a folder with a causal language model, its tokenizer and its chat template."""

from __future__ import annotations

import threading
import time
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import structlog
import torch

from modelkit.chat import MAX_ANSWER, PENALTY_WINDOW, Answer, ChatObserver, ChatRequest, too_long
from modelkit.errors import ModelError, ModelErrorKind
from modelkit.weights import memory_of, stored_numbers

if TYPE_CHECKING:
    from modelkit.device import Device

_log = structlog.get_logger(module=__name__)

_MOST_CONTEXT = 8192
_READ_AT_ONCE = 256  # tokens of a prompt; a cancel is seen after so many
_LOOK_SECONDS = 0.1
# Decoding all tokens so far costs more with each token.
_TEXT_SECONDS = 0.2


def size(folder: Path, device: Device) -> int:
    """Return the bytes of the weights in the device's type of numbers.

    Raises:
        ModelError: The folder holds no weights.
    """
    numbers = stored_numbers(folder)
    if not numbers:
        raise ModelError("The language model's folder holds no safetensors.", ModelErrorKind.RESOURCE)
    return numbers * device.dtype.itemsize


class CausalChat:
    """Answers, one question after the other; safe to share between threads, which take turns.

    Args:
        folder: The model's folder.
        device: Where it runs.

    Raises:
        ModelError: It does not load, or has no chat template.
    """

    labels: tuple[str, ...] = ()

    def __init__(self, folder: Path, device: Device) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415 -- seconds that a GGUF does not need

        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            self._model: Any = AutoModelForCausalLM.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, dtype=device.dtype
            ).to(device.name)
        except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
            _log.error("language_model_not_loaded", exc_info=error)
            raise ModelError("This worker's language model could not be loaded.", ModelErrorKind.RESOURCE) from error
        if not self._tokenizer.chat_template:
            raise ModelError("The language model has no chat template.", ModelErrorKind.RESOURCE)
        self._model.eval()
        self._device = device.name
        self._turn = threading.Lock()
        self._bytes = memory_of([self._model])
        self._ends = _ends(self._model, self._tokenizer)
        self.context = min(getattr(self._model.config, "max_position_embeddings", _MOST_CONTEXT), _MOST_CONTEXT)

    def answer(self, request: ChatRequest, observer: ChatObserver) -> Answer | None:
        """Answer a question; None where the observer cancels.

        Raises:
            ModelError: The prompt is longer than the model reads.
        """
        while not self._turn.acquire(timeout=_LOOK_SECONDS):
            if observer.cancelled():
                return None
            observer.progress(0, request.max_tokens)
        try:
            with torch.inference_mode():
                return self._answer(request, observer)
        finally:
            self._turn.release()

    def holdings(self) -> Mapping[Hashable, int]:
        """Return the bytes of the weights; the context grows with a question and goes with it."""
        return self._bytes

    def close(self) -> None:
        """Let go of the weights."""
        with self._turn:
            self._model = self._tokenizer = None
            self._bytes = {}

    def _answer(self, request: ChatRequest, observer: ChatObserver) -> Answer | None:
        from transformers import DynamicCache  # noqa: PLC0415 -- as above

        prompt = self._prompt(request)
        read = int(prompt.shape[1])
        if read >= self.context:
            raise ModelError(too_long(read, self.context))
        most = min(request.max_tokens, self.context - read)
        state, scores = DynamicCache(), None
        for start in range(0, read, _READ_AT_ONCE):
            if observer.cancelled():
                return None
            observer.progress(0, request.max_tokens)
            out = self._model(
                prompt[:, start : start + _READ_AT_ONCE], past_key_values=state, use_cache=True, logits_to_keep=1
            )
            scores = out.logits[0, -1]
        assert scores is not None  # a chat template is never empty
        draws = torch.Generator("cpu").manual_seed(request.seed)
        written: list[int] = []
        told, text = 0.0, ""
        while len(written) < most:
            token = _choose(_lowered(scores, written, request.frequency_penalty or 0.0), request, draws)
            written.append(token)
            if token in self._ends:
                return Answer(self._decoded(written[:-1]), read, len(written), None)
            if observer.cancelled():
                return None
            if (now := time.monotonic()) - told >= _TEXT_SECONDS:
                told, text = now, self._decoded(written)
            observer.progress(len(written), request.max_tokens, text=text)
            if len(text) >= MAX_ANSWER:
                break
            following = torch.tensor([[token]], device=self._device)
            scores = self._model(following, past_key_values=state, use_cache=True).logits[0, -1]
        cut: Literal["max_tokens", "context"] = "context" if len(written) == most < request.max_tokens else "max_tokens"
        return Answer(self._decoded(written), read, len(written), cut)

    def _prompt(self, request: ChatRequest) -> torch.Tensor:
        messages = [{"role": "system", "content": request.system}, {"role": "user", "content": request.prompt}]
        encoded = self._tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        ids: torch.Tensor = encoded["input_ids"].to(self._device)
        return ids

    def _decoded(self, tokens: list[int]) -> str:
        text: str = self._tokenizer.decode(tokens, skip_special_tokens=True)
        # A character may take several tokens: the end of the last one may be missing.
        return text.rstrip("\ufffd")[:MAX_ANSWER]


def _ends(model: Any, tokenizer: Any) -> frozenset[int]:
    named = model.generation_config.eos_token_id
    ends = named if isinstance(named, list) else [named]
    return frozenset(token for token in (*ends, tokenizer.eos_token_id) if token is not None)


def _lowered(scores: torch.Tensor, written: list[int], penalty: float) -> torch.Tensor:
    """Lower the scores of what has come up, once for each time."""
    if not penalty or not written:
        return scores
    recent = torch.tensor(written[-PENALTY_WINDOW:], device=scores.device)
    return scores - penalty * torch.bincount(recent, minlength=scores.shape[-1])


def _choose(scores: torch.Tensor, request: ChatRequest, draws: torch.Generator) -> int:
    """Draw the next token: from the likeliest that together hold `top_p` (nucleus sampling, arXiv:1904.09751)."""
    if request.temperature <= 0:
        return int(scores.argmax())
    shares = torch.softmax(scores.float().cpu() / request.temperature, -1)
    ordered, tokens = shares.sort(descending=True, stable=True)
    kept = ordered.cumsum(-1) - ordered < request.top_p
    kept[0] = True
    return int(tokens[torch.multinomial(ordered * kept, 1, generator=draws)])
