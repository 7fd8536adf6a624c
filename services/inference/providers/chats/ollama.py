"""Ollama: models on a machine of the operator's, which cost nothing by the call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx
import ollama

from services.inference.providers.chats import ModelPrompt, ModelReply, Told
from services.inference.providers.errors import Fault, ProviderError, fault_of_status
from services.inference.providers.sdk import client_options

if TYPE_CHECKING:
    from services.inference.providers.config import ModelSettings

_NAME = "Ollama"


class OllamaChat:
    """Models of an Ollama.

    Args:
        settings: Address, and the key where it stands behind one.
    """

    provider = _NAME
    free = True

    def __init__(self, settings: ModelSettings) -> None:
        options = client_options(httpx, settings.provider_http)
        if settings.ollama_key.get_secret_value():
            options["headers"] = {"authorization": f"Bearer {settings.ollama_key.get_secret_value()}"}
        self._client = ollama.AsyncClient(settings.ollama_url, **options)

    async def reply(self, asked: ModelPrompt, told: Told) -> ModelReply:
        """Have a model answer."""
        options: dict[str, Any] = {"temperature": asked.temperature}
        if asked.max_tokens is not None:
            options["num_predict"] = asked.max_tokens
        user = ollama.Message(
            role="user", content=asked.prompt, images=[ollama.Image(value=each.data) for each in asked.pictures] or None
        )
        system = [] if asked.system is None else [ollama.Message(role="system", content=asked.system)]
        stream = await self._client.chat(asked.model, messages=[*system, user], options=options, stream=True)
        pieces: list[str] = []
        last: Any = None
        async for part in stream:
            if part.message.content:
                pieces.append(part.message.content)
                told(pieces)
            if part.done:
                last = part
        return ModelReply(
            text="".join(pieces),
            input_tokens=last.prompt_eval_count if last else None,
            output_tokens=last.eval_count if last else None,
            finish=last.done_reason or "stop" if last else None,
            cut=last is not None and last.done_reason == "length",
            cost=0.0,
        )

    async def close(self) -> None:
        """Close the client."""
        await self._client.close()  # type: ignore[no-untyped-call] # it takes nothing and returns nothing

    def explain(self, error: Exception) -> ProviderError | None:
        """Return what Ollama said by an error."""
        if not isinstance(error, ollama.ResponseError):
            return None
        status = error.status_code if error.status_code >= 400 else None  # none within a stream
        fault = Fault.BROKEN if status is None else fault_of_status(status, paid=False)
        return ProviderError(fault, _NAME, error.error if fault is Fault.INVALID else "", http_status=status)


def open_chat(settings: ModelSettings) -> OllamaChat:
    """Return the client."""
    return OllamaChat(settings)
