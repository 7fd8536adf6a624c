"""OpenAI's chat completions, and every server of its protocol."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import httpx2
import openai

from services.inference.providers.chats import ModelPrompt, ModelReply, Told
from services.inference.providers.errors import Fault, ProviderError, fault_of_status
from services.inference.providers.sdk import bounded_client

if TYPE_CHECKING:
    from services.inference.providers.config import ModelSettings
    from services.inference.providers.encoded import SentPicture

_NAME = "OpenAI"
# Codes of errors whose status says less, or something else.
_DENIED = frozenset({"insufficient_quota", "billing_hard_limit_reached", "account_deactivated", "invalid_api_key"})
_REFUSED = frozenset({"content_policy_violation", "content_filter", "moderation_blocked"})
# What is no number, or no price, must not spoil the sum of a tenant.
_MAX_COST = 1e9


class OpenAiChat:
    """Models of OpenAI.

    Args:
        settings: Key, address, and the models that take no temperature.
    """

    provider = _NAME
    free = False

    def __init__(self, settings: ModelSettings) -> None:
        self._fixed = settings.openai_fixed_temperature
        self._client = openai.AsyncOpenAI(
            api_key=settings.openai_key.get_secret_value(),
            base_url=settings.openai_url,
            max_retries=0,
            timeout=settings.provider_http.seconds,
            http_client=bounded_client(httpx2, settings.provider_http),
        )

    async def reply(self, asked: ModelPrompt, told: Told) -> ModelReply:
        """Have a model answer."""
        more: dict[str, Any] = {}
        notes: tuple[str, ...] = ()
        if any(fnmatchcase(asked.model, pattern) for pattern in self._fixed):
            notes = (f"The model {asked.model} takes no temperature: it was left out.",)
        else:
            more["temperature"] = asked.temperature
        if asked.max_tokens is not None:
            # Models that reason refuse `max_tokens`, its former name.
            more["max_completion_tokens"] = asked.max_tokens
        messages: list[Any] = []
        if asked.system is not None:
            messages.append({"role": "system", "content": asked.system})
        messages.append({"role": "user", "content": _content(asked)})
        stream = await self._client.chat.completions.create(
            model=asked.model,
            messages=messages,
            stream=True,
            stream_options={"include_usage": True},
            **more,
        )
        pieces: list[str] = []
        finish, refused, usage = None, False, None
        async with stream:
            async for chunk in stream:
                usage = chunk.usage or usage
                for choice in chunk.choices:
                    finish = choice.finish_reason or finish
                    refused = refused or bool(choice.delta.refusal)
                    if choice.delta.content:
                        pieces.append(choice.delta.content)
                        told(pieces)
        return ModelReply(
            text="".join(pieces),
            input_tokens=usage.prompt_tokens if usage else None,
            output_tokens=usage.completion_tokens if usage else None,
            finish=finish,
            cut=finish == "length",
            refused=refused or finish == "content_filter",
            cost=_cost(usage),
            notes=notes,
        )

    async def close(self) -> None:
        """Close the client."""
        await self._client.close()

    def explain(self, error: Exception) -> ProviderError | None:
        """Return what OpenAI said by an error."""
        if isinstance(error, (openai.APIConnectionError, openai.APIResponseValidationError)) or not isinstance(
            error, openai.APIError
        ):
            return None
        codes = {error.code, error.type}
        status = error.status_code if isinstance(error, openai.APIStatusError) else None
        if codes & _DENIED:
            fault = Fault.DENIED
        elif codes & _REFUSED:
            fault = Fault.REFUSED
        else:  # an error within a stream has no status, and is the provider's own
            fault = Fault.BROKEN if status is None else fault_of_status(status, paid=True)
        reason = _said(error.body) if fault is Fault.INVALID else ""
        return ProviderError(fault, _NAME, reason, http_status=status)


def open_chat(settings: ModelSettings) -> OpenAiChat:
    """Return the client."""
    return OpenAiChat(settings)


def _content(asked: ModelPrompt) -> str | list[dict[str, Any]]:
    if not asked.pictures:
        return asked.prompt
    pictures = [{"type": "image_url", "image_url": {"url": _data_url(each)}} for each in asked.pictures]
    return [*pictures, {"type": "text", "text": asked.prompt}]


def _data_url(picture: SentPicture) -> str:
    return f"data:{picture.content_type};base64,{base64.b64encode(picture.data).decode()}"


def _said(body: object) -> str:
    message = body.get("message") if isinstance(body, Mapping) else None
    return message if isinstance(message, str) else ""


def _cost(usage: Any) -> float | None:
    """Return what an answer cost; OpenAI does not tell, servers of its protocol that resell do (`usage.cost`)."""
    cost = getattr(usage, "cost", None)
    if not isinstance(cost, (int, float)) or isinstance(cost, bool):
        return None
    return float(cost) if 0 <= cost < _MAX_COST else None
