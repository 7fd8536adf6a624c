"""Language models behind providers' interfaces: one module each, by the provider's official client.

Every client's own retries are off, and so is everything else by which it would send a second request: one answer is
one paid call. A client is imported when the first task asks for it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, cast

from services.inference.providers.encoded import SentPicture
from services.inference.providers.errors import Fault, ProviderError

if TYPE_CHECKING:
    from services.inference.providers.config import ModelSettings

Told = Callable[[Sequence[str]], None]
"""Takes the pieces of the text so far."""


@dataclass(frozen=True, slots=True)
class ModelPrompt:
    """What a language model is told.

    Attributes:
        model: Name of the model.
        prompt: What the caller says.
        system: System prompt; None for none.
        pictures: What it is shown.
        temperature: Sampling temperature.
        top_p: Share of probability that is sampled from; None for the model's own.
        max_tokens: Tokens to write at most; None for the provider's limit.
    """

    model: str
    prompt: str
    system: str | None
    pictures: tuple[SentPicture, ...]
    temperature: float
    top_p: float | None = None
    max_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class ModelReply:
    """What a language model answered.

    Attributes:
        text: The answer.
        input_tokens: Tokens read; None where the provider does not tell.
        output_tokens: Tokens written.
        finish: What the provider says of why it ended; None where the answer ended without its end.
        cut: Whether the answer was cut at the most tokens it may have.
        refused: Whether the model, or a filter, withheld the answer.
        cost: What it cost in US dollars, where the provider tells.
        notes: What the caller should know: sentences.
    """

    text: str
    input_tokens: int | None
    output_tokens: int | None
    finish: str | None
    cut: bool = False
    refused: bool = False
    cost: float | None = None
    notes: tuple[str, ...] = ()


class ModelChat(Protocol):
    """A provider of language models.

    Attributes:
        provider: Its name, for sentences.
        free: Whether its calls cost nothing, so that one whose outcome is not known may be made again.
    """

    provider: str
    free: bool

    async def reply(self, asked: ModelPrompt, told: Told) -> ModelReply:
        """Have a model answer: one request, whose answer comes in pieces.

        Raises:
            Exception: Of the client's; `explain` tells what it means.
        """
        ...

    def explain(self, error: Exception) -> ProviderError | None:
        """Return what the provider said by an error; None where the error is no answer of its."""
        ...

    async def close(self) -> None:
        """Close the client."""
        ...


# Module, by the spelling of AiCoreProviderConfig.ai_provider.
_MODULES = {name: f"{__name__}.{name}" for name in ("openai", "anthropic", "gemini", "ollama")}


def open_chat(ai_provider: str, settings: ModelSettings) -> ModelChat:
    """Return the client of a provider, importing it."""
    module = importlib.import_module(_MODULES[ai_provider])
    return cast("Callable[[ModelSettings], ModelChat]", module.open_chat)(settings)


def checked(provider: str, reply: ModelReply) -> ModelReply:
    """Return an answer that is one.

    Raises:
        ProviderError: It was refused, broke off, or is empty.
    """
    if reply.refused:
        raise ProviderError(Fault.REFUSED, provider)
    if reply.finish is None and reply.text:
        # Part of it came: it was sent, and is paid as far as it was made.
        raise ProviderError(Fault.UNKNOWN, provider)
    if reply.cut and not reply.text:
        # Models that reason may spend all tokens on that; another attempt would too.
        raise ProviderError(
            Fault.EMPTY, provider, "all tokens that it may write were spent before the answer began", retryable=False
        )
    if reply.finish is None or not reply.text:
        raise ProviderError(Fault.EMPTY, provider)
    return reply
