"""A GGUF model that answers, run by llama.cpp (`xllamacpp`) in this process.

llama.cpp comes as a server that also listens for HTTP. It is given a socket file in a folder of its own, which is
removed as soon as it listens: nobody but this process can ask it. It keeps no prompts, so that no tenant's text stays
in memory and equal requests have equal answers.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import threading
from collections.abc import Hashable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import structlog
import xllamacpp

from modelkit.chat import MAX_ANSWER, PENALTY_WINDOW, Answer, ChatObserver, ChatRequest, too_long
from modelkit.errors import ModelError, ModelErrorKind
from modelkit.gguf import read_header

if TYPE_CHECKING:
    from modelkit.device import Device

_log = structlog.get_logger(module=__name__)

# Longer contexts cost memory whether they are used or not.
_MOST_CONTEXT = 8192
# Tokens that are read at once: a cancel is seen after so many.
_BATCH = 128
# The vocabulary, the buffers of a pass, and what the allocator keeps (measured with the packaged model).
_FIXED_BYTES = 8 << 20
_LOOK_SECONDS = 0.1
_MOST_SOCKET_PATH = 100  # of 108 that the kernel takes


def size(file: Path) -> int:
    """Return the bytes that a model will hold: its weights, a full context, and the outputs of one batch."""
    header = read_header(file)
    context = min(header.context, _MOST_CONTEXT) * header.context_bytes_per_token
    return file.stat().st_size + context + _BATCH * header.vocabulary * 4 + _FIXED_BYTES


class LlamaChat:
    """Answers, one question after the other; safe to share between threads, which take turns.

    Args:
        file: The GGUF file.
        device: Where it runs; a CPU build of llama.cpp runs on the processor whatever this says.
        frequency_penalty: That of questions which name none.

    Raises:
        ModelError: It does not load.
    """

    labels: tuple[str, ...] = ()

    def __init__(self, file: Path, device: Device, frequency_penalty: float = 0.0) -> None:
        self._penalty = frequency_penalty
        self._size = size(file)
        self._turn = threading.Lock()
        self.context = min(read_header(file).context, _MOST_CONTEXT)
        with _socket() as address:
            try:
                self._server: Any = xllamacpp.Server(_parameters(file, device, self.context, address))
            except RuntimeError as error:
                _log.error("language_model_not_loaded", exc_info=error)
                raise ModelError(
                    "This worker's language model could not be loaded.", ModelErrorKind.RESOURCE
                ) from error
        # llama.cpp's loop may not run yet, and to stop it then waits for ever: half of the loads did. An answer tells.
        self._server.handle_completions({"prompt": " ", "max_tokens": 1, "cache_prompt": False})

    def answer(self, request: ChatRequest, observer: ChatObserver) -> Answer | None:
        """Answer a question; None where the observer cancels.

        Raises:
            ModelError: The prompt is longer than the model reads, or the model failed.
        """
        with _turn(self._turn, request, observer) as ours:
            return self._answer(request, observer) if ours else None

    def holdings(self) -> Mapping[Hashable, int]:
        """Return the bytes of the weights, the context and the buffers."""
        return {self: self._size}

    def close(self) -> None:
        """Stop llama.cpp; its threads end, and its memory goes back."""
        with self._turn:
            self._server = None
            self._size = 0

    def _answer(self, request: ChatRequest, observer: ChatObserver) -> Answer | None:
        reply = _Reply(request, observer)
        self._server.handle_chat_completions(
            {
                "messages": [
                    {"role": "system", "content": request.system},
                    {"role": "user", "content": request.prompt},
                ],
                "max_tokens": request.max_tokens,
                "temperature": request.temperature,
                "top_p": request.top_p,
                "top_k": 0,
                "min_p": 0.0,
                "frequency_penalty": self._penalty if request.frequency_penalty is None else request.frequency_penalty,
                "repeat_last_n": PENALTY_WINDOW,
                "seed": _seed(request.seed),
                "cache_prompt": False,
                "stream": True,
                "stream_options": {"include_usage": True},
                "return_progress": True,
            },
            reply.take,
        )
        return reply.answer(self.context)


class _Reply:
    """An answer as it arrives, piece by piece."""

    def __init__(self, request: ChatRequest, observer: ChatObserver) -> None:
        self._request = request
        self._observer = observer
        self._text = ""
        self._pieces = 0
        self._read = 0
        self._usage: Mapping[str, int] = {}
        self._finish: str | None = None
        self._error: Mapping[str, Any] | None = None
        self._fault: Exception | None = None
        self._stopped = False

    def take(self, chunk: Any) -> bool:
        """Take a chunk of the stream; return True to end it."""
        try:
            return self._take(chunk)
        except Exception as error:  # llama.cpp would drop it
            self._fault = error
            return True

    def answer(self, context: int) -> Answer | None:
        """Return the answer once the stream has ended; None where it was cancelled."""
        if self._fault is not None:
            raise self._fault
        if self._error is not None:
            raise self._failure(context)
        if self._stopped:
            return None
        written = self._usage.get("completion_tokens", self._pieces)
        cut: Literal["max_tokens", "context"] | None = None
        if self._finish == "length":
            cut = "max_tokens" if written >= self._request.max_tokens or len(self._text) >= MAX_ANSWER else "context"
        return Answer(self._text, self._usage.get("prompt_tokens", self._read), written, cut)

    def _take(self, chunk: Any) -> bool:
        if self._observer.cancelled():
            self._stopped = True
            return True
        if "error" in chunk:
            self._error = chunk["error"]
            return True
        self._usage = chunk.get("usage") or self._usage
        self._read = (chunk.get("prompt_progress") or {}).get("total", self._read)
        for choice in chunk.get("choices", ()):
            self._finish = choice.get("finish_reason") or self._finish
            delta = choice.get("delta", {})
            piece = delta.get("content") or ""
            # What a model thinks aloud is written too, but is no part of its answer.
            if piece or delta.get("reasoning_content"):
                self._pieces += 1
            self._text += piece
        step = min(self._pieces, self._request.max_tokens)
        self._observer.progress(step, self._request.max_tokens, text=self._text)
        if len(self._text) < MAX_ANSWER:
            return False
        self._text, self._finish = self._text[:MAX_ANSWER], "length"
        return True

    def _failure(self, context: int) -> ModelError:
        assert self._error is not None
        if self._error.get("type") == "exceed_context_size_error":
            return ModelError(too_long(self._error["n_prompt_tokens"], self._error.get("n_ctx", context)))
        _log.error("language_model_failed", message=self._error.get("message"), kind=self._error.get("type"))
        return ModelError("The language model failed.", ModelErrorKind.RESOURCE, retryable=True)


@contextlib.contextmanager
def _turn(lock: threading.Lock, request: ChatRequest, observer: ChatObserver) -> Iterator[bool]:
    """Hold the lock; False where the observer cancels before it is free."""
    while not lock.acquire(timeout=_LOOK_SECONDS):
        if observer.cancelled():
            yield False
            return
        observer.progress(0, request.max_tokens)
    try:
        yield True
    finally:
        lock.release()


@contextlib.contextmanager
def _socket() -> Iterator[str]:
    """Name a socket file; gone, with its folder, once the block ends."""
    folder = Path(tempfile.mkdtemp(prefix="llama-"))
    if len(str(folder)) > _MOST_SOCKET_PATH:
        folder.rmdir()
        folder = Path(tempfile.mkdtemp(prefix="llama-", dir="/tmp"))
    try:
        yield str(folder / "s.sock")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _parameters(file: Path, device: Device, context: int, address: str) -> Any:
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(file)
    parameters.hostnames = [address]
    parameters.n_threads_http = 1
    parameters.endpoint_slots = parameters.ui = False
    parameters.verbosity = 0  # its log would stand between this process's lines of JSON
    parameters.n_ctx, parameters.n_parallel = context, 1
    parameters.n_batch = parameters.n_ubatch = _BATCH
    parameters.cache_prompt = parameters.cache_idle_slots = False
    parameters.cache_ram_mib = parameters.n_ctx_checkpoints = 0
    parameters.fit_params = parameters.warmup = False
    parameters.offline = True
    if device.name == "cpu":
        parameters.n_gpu_layers = 0
    if device.threads:
        parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = device.threads
    return parameters


def _seed(seed: int) -> int:
    """Fold a seed into 32 bits; the largest number stands for a random seed and is left out."""
    return (seed ^ (seed >> 32)) % 0xFFFF_FFFF
