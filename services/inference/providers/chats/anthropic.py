"""Anthropic's messages."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import anthropic
import httpx2

from services.inference.providers.chats import ModelPrompt, ModelReply, Told
from services.inference.providers.errors import Fault, ProviderError, fault_of_status
from services.inference.providers.sdk import bounded_client

if TYPE_CHECKING:
    from services.inference.providers.config import ModelSettings
    from services.inference.providers.encoded import SentPicture

_NAME = "Anthropic"
_FAULTS = {
    "authentication_error": Fault.DENIED,
    "permission_error": Fault.DENIED,
    "billing_error": Fault.DENIED,
    "rate_limit_error": Fault.LIMITED,
    "overloaded_error": Fault.BROKEN,
    "api_error": Fault.BROKEN,
    "invalid_request_error": Fault.INVALID,
    "not_found_error": Fault.INVALID,
    "request_too_large": Fault.INVALID,
}
# An account without credits is told so by a 400 of the kind of any mistake.
_NO_CREDITS = "credit balance is too low"


class AnthropicChat:
    """Models of Anthropic.

    Args:
        settings: Key, address, the models that take a temperature, and the tokens to write at most where a task does
            not say, because the API asks for a number.
    """

    provider = _NAME
    free = False

    def __init__(self, settings: ModelSettings) -> None:
        self._tempered = settings.anthropic_temperature
        self._max_tokens = settings.anthropic_max_tokens
        self._client = anthropic.AsyncAnthropic(
            api_key=settings.anthropic_key.get_secret_value(),
            base_url=settings.anthropic_url,
            max_retries=0,
            timeout=settings.provider_http.seconds,
            http_client=bounded_client(httpx2, settings.provider_http),
        )

    async def reply(self, asked: ModelPrompt, told: Told) -> ModelReply:
        """Have a model answer."""
        more: dict[str, Any] = {} if asked.system is None else {"system": asked.system}
        notes: tuple[str, ...] = ()
        if any(fnmatchcase(asked.model, pattern) for pattern in self._tempered):
            more["extra_body"] = {"temperature": asked.temperature}  # the client knows the newer models' members alone
        else:
            notes = (f"The model {asked.model} takes no temperature: it was left out.",)
        stream = await self._client.messages.create(
            model=asked.model,
            max_tokens=asked.max_tokens or self._max_tokens,
            messages=[{"role": "user", "content": _content(asked)}],
            stream=True,
            **more,
        )
        pieces: list[str] = []
        read: int | None = None
        written: int | None = None
        stop: str | None = None
        async with stream:
            async for event in stream:
                if event.type == "message_start":
                    usage = event.message.usage
                    cached = (usage.cache_creation_input_tokens or 0) + (usage.cache_read_input_tokens or 0)
                    read = usage.input_tokens + cached
                elif event.type == "content_block_delta" and event.delta.type == "text_delta":
                    pieces.append(event.delta.text)
                    told(pieces)
                elif event.type == "message_delta":
                    stop = event.delta.stop_reason or stop
                    written = event.usage.output_tokens
        return ModelReply(
            text="".join(pieces),
            input_tokens=read,
            output_tokens=written,
            finish=stop,
            cut=stop in {"max_tokens", "model_context_window_exceeded"},
            refused=stop == "refusal",
            notes=notes,
        )

    async def close(self) -> None:
        """Close the client."""
        await self._client.close()

    def explain(self, error: Exception) -> ProviderError | None:
        """Return what Anthropic said by an error."""
        if not isinstance(error, anthropic.APIStatusError):
            return None
        body = error.body.get("error") if isinstance(error.body, Mapping) else None
        said: Mapping[str, Any] = body if isinstance(body, Mapping) else {}
        message = said.get("message") if isinstance(said.get("message"), str) else ""
        # Within a stream, which has begun with a 200, the kind alone tells.
        status = error.status_code if error.status_code >= 400 else None
        fault = Fault.DENIED if _NO_CREDITS in str(message) else _FAULTS.get(str(said.get("type")))
        if fault is None:
            fault = Fault.BROKEN if status is None else fault_of_status(status, paid=True)
        reason = str(message) if fault is Fault.INVALID else ""
        return ProviderError(fault, _NAME, reason, http_status=status)


def open_chat(settings: ModelSettings) -> AnthropicChat:
    """Return the client."""
    return AnthropicChat(settings)


def _content(asked: ModelPrompt) -> Any:
    if not asked.pictures:
        return asked.prompt
    return [*(_block(each) for each in asked.pictures), {"type": "text", "text": asked.prompt}]


def _block(picture: SentPicture) -> dict[str, Any]:
    data = base64.b64encode(picture.data).decode()
    return {"type": "image", "source": {"type": "base64", "media_type": picture.content_type, "data": data}}
