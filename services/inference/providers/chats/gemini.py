"""Gemini's text models."""

from __future__ import annotations

from typing import TYPE_CHECKING

from google.genai import types

from services.inference.providers import gemini
from services.inference.providers.chats import ModelPrompt, ModelReply, Told

if TYPE_CHECKING:
    from services.inference.providers.config import ModelSettings
    from services.inference.providers.errors import ProviderError


class GeminiChat:
    """Text models of Google.

    Args:
        client: Google's client.
    """

    provider = gemini.NAME
    free = False

    def __init__(self, client: gemini.GeminiClient) -> None:
        self._client = client

    async def reply(self, asked: ModelPrompt, told: Told) -> ModelReply:
        """Have a model answer."""
        parts = [types.Part.from_bytes(data=each.data, mime_type=each.content_type) for each in asked.pictures]
        parts.append(types.Part.from_text(text=asked.prompt))
        stream = await self._client.sdk.aio.models.generate_content_stream(
            model=gemini.model_name(asked.model),
            contents=types.Content(role="user", parts=parts),
            config=gemini.configured(
                system_instruction=asked.system,
                temperature=asked.temperature,
                top_p=asked.top_p,
                max_output_tokens=asked.max_tokens,
            ),
        )
        pieces: list[str] = []
        finish: str | None = None
        usage: types.GenerateContentResponseUsageMetadata | None = None
        async for chunk in stream:
            usage = chunk.usage_metadata or usage
            finish = gemini.reason_of(chunk) or finish
            content = chunk.candidates[0].content if chunk.candidates else None
            for part in (content.parts if content else None) or []:
                if part.text and not part.thought:
                    pieces.append(part.text)
                    told(pieces)
        thoughts = (usage.thoughts_token_count if usage else None) or 0
        written = usage.candidates_token_count if usage else None
        return ModelReply(
            text="".join(pieces),
            input_tokens=usage.prompt_token_count if usage else None,
            output_tokens=None if written is None else written + thoughts,
            finish=finish,
            cut=finish in gemini.CUT,
        )

    def explain(self, error: Exception) -> ProviderError | None:
        """Return what Google said by an error."""
        return gemini.explain(error)

    async def close(self) -> None:
        """Close the client."""
        await self._client.close()


def open_chat(settings: ModelSettings) -> GeminiChat:
    """Return the client."""
    return GeminiChat(gemini.GeminiClient(settings))
