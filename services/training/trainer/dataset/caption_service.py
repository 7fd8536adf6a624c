"""Have a service describe pictures, in the protocol of OpenAI's chat completions, which many others speak.

A description costs money, so a request is repeated only where the service said that it did nothing: it was not reached,
or it has too much to do. A picture of which it does not say anything is described by the mesh's own describer.
"""

from __future__ import annotations

import asyncio
import base64
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Self

import httpx

from meshkit.logging import get_logger
from meshkit.retry_after import asked_pause
from services.training.trainer.dataset.config import CaptionSettings

_log = get_logger(__name__)

_ASKED: Final = (
    "Write a caption for training an image model. Describe in one plain sentence of at most 40 words what the picture "
    "shows: the garment or person, colours, pattern, material, cut, pose, view and background. Name no brand and no "
    "person. Answer with the sentence alone."
)
_TRIES: Final = 3
_PAUSE_SECONDS: Final = 1.0
_MOST_PAUSE_SECONDS: Final = 30.0
_MAX_ANSWER_BYTES: Final = 1 << 20
_MAX_CHARS: Final = 600
_BUSY: Final = frozenset({429, 503})


class CaptionService:
    """Asks the service.

    Args:
        settings: Its address, key and model.
    """

    def __init__(self, settings: CaptionSettings) -> None:
        self._url = f"{settings.caption_url}/chat/completions"
        self._model = settings.caption_model
        self._seconds = settings.caption_seconds
        key = settings.caption_key.get_secret_value()
        self._client = httpx.AsyncClient(
            headers={"authorization": f"Bearer {key}"} if key else {},
            timeout=settings.caption_seconds,
            follow_redirects=False,
            trust_env=False,
        )

    @classmethod
    def from_settings(cls, settings: CaptionSettings) -> Self | None:
        """Return the service that the settings name; None where they name none."""
        return cls(settings) if settings.caption_url else None

    @property
    def model(self) -> str:
        """Name of its model."""
        return self._model

    async def close(self) -> None:
        """Close its connections."""
        await self._client.aclose()

    async def describe(self, picture: Path) -> str | None:
        """Return what a PNG shows, in one sentence; None where the service does not say."""
        data = base64.b64encode(await asyncio.to_thread(picture.read_bytes)).decode()
        content = [
            {"type": "text", "text": _ASKED},
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}},
        ]
        body = json.dumps({"model": self._model, "messages": [{"role": "user", "content": content}]}).encode()
        cause = "busy"
        for tried in range(_TRIES):
            try:
                async with asyncio.timeout(self._seconds):
                    status, header, answer = await self._sent(body)
            except httpx.ConnectError:
                cause, header = "not_reached", ""
            except (httpx.HTTPError, OSError, TimeoutError) as error:
                cause = type(error).__name__
                break
            else:
                if status == httpx.codes.OK:
                    return _sentence(answer)
                cause = f"status_{status}"
                if status not in _BUSY:
                    break
            if tried < _TRIES - 1:
                await asyncio.sleep(_pause(header, tried))
        _log.warning("caption_not_written", cause=cause, model=self._model)
        return None

    async def _sent(self, body: bytes) -> tuple[int, str, bytes]:
        """Send the request; return status, `Retry-After` and the answer, none where it is too long."""
        async with self._client.stream(
            "POST", self._url, content=body, headers={"content-type": "application/json"}
        ) as response:
            answer = bytearray()
            async for piece in response.aiter_bytes():
                answer += piece
                if len(answer) > _MAX_ANSWER_BYTES:
                    return response.status_code, "", b""
            return response.status_code, response.headers.get("retry-after", ""), bytes(answer)


def _pause(header: str, tried: int) -> float:
    asked = asked_pause(header, datetime.now(UTC))
    return min(_PAUSE_SECONDS * 2.0**tried if asked is None else asked.total_seconds(), _MOST_PAUSE_SECONDS)


def _sentence(answer: bytes) -> str | None:
    """Return the sentence of an answer, on one line; None where it holds none."""
    try:
        document: Any = json.loads(answer)
        told = document["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        return None
    if not isinstance(told, str):
        return None
    return " ".join(told.split()).strip("\"'")[:_MAX_CHARS].strip() or None
