"""Gemini by Google's official client: over Vertex, or over the Gemini API where a key is all there is.

Beside its retries, what the client would send by itself is switched off: calls of functions, and the continuation of an
answer that it reports as unfinished.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import google.auth.exceptions
import httpx2
from atelier.tasks.v1.enums_pb2 import ERROR_CATEGORY_RESOURCE
from google import genai
from google.genai import errors, types
from google.oauth2 import service_account

from meshkit.logging import get_logger
from meshkit.worker.handlers import TaskFailed
from services.inference.providers.encoded import SentPicture
from services.inference.providers.errors import Fault, ProviderError, fault_of_status
from services.inference.providers.sdk import bounded_client, sent_once

if TYPE_CHECKING:
    from services.inference.providers.config import ModelSettings

_log = get_logger(__name__)

NAME = "Gemini"
# Answers with pictures that are in memory at once: each takes some five times its picture while it is read.
_ANSWERS = 16
_SCOPE = "https://www.googleapis.com/auth/cloud-platform"
_FINISHED = "STOP"
CUT = frozenset({"MAX_TOKENS", "CONTINUATION"})
# A refusal comes as a success with one of these reasons.
_REFUSED = frozenset(
    {
        "SAFETY",
        "PROHIBITED_CONTENT",
        "IMAGE_SAFETY",
        "IMAGE_PROHIBITED_CONTENT",
        "BLOCKLIST",
        "SPII",
        "RECITATION",
        "IMAGE_RECITATION",
        "MODEL_ARMOR",
    }
)
# A model's name becomes a part of an address.
_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,255}")
_DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)s")


@dataclass(frozen=True, slots=True)
class PictureRequest:
    """What a model is asked to draw.

    Attributes:
        model: Name of the model.
        prompt: What it is told.
        pictures: What it is shown, before the prompt.
        system: System instructions.
        aspect_ratio: Aspect of the picture, one of the API's own.
        image_size: `1K`, `2K` or `4K`.
        temperature: Sampling temperature.
        top_p: Share of probability that is sampled from.
    """

    model: str
    prompt: str
    pictures: Sequence[SentPicture]
    system: str
    aspect_ratio: str
    image_size: str
    temperature: float
    top_p: float


class GeminiClient:
    """Google's client, for one worker.

    Args:
        settings: Whose account: Vertex where a project is named, else the API key's.
    """

    def __init__(self, settings: ModelSettings) -> None:
        self._limits = settings.provider_http
        self._room = asyncio.Semaphore(_ANSWERS)
        self._http = bounded_client(httpx2, self._limits)
        options = types.HttpOptions(
            httpx_async_client=self._http,
            timeout=int(self._limits.seconds * 1000),
            # Without one, the client would make one more, which is never used.
            httpx_client=httpx2.Client(verify=False),
        )
        if settings.vertex_project:
            credentials = None
            if settings.vertex_credentials_file is not None:
                credentials = service_account.Credentials.from_service_account_file(  # type: ignore[no-untyped-call] # has no types
                    str(settings.vertex_credentials_file), scopes=[_SCOPE]
                )
            options.base_url = settings.vertex_url or None
            self.sdk = genai.Client(
                enterprise=True,
                project=settings.vertex_project,
                location=settings.vertex_location,
                credentials=credentials,
                http_options=options,
            )
        else:
            options.base_url = settings.gemini_url
            self.sdk = genai.Client(
                enterprise=False, api_key=settings.gemini_key.get_secret_value(), http_options=options
            )

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def draw(self, asked: PictureRequest, into: Path) -> None:
        """Have a model draw: one request.

        Args:
            asked: The request.
            into: Where the picture's file is written, as it came.

        Raises:
            ProviderError: It did not.
            TaskFailed: The file cannot be written.
        """
        parts = [types.Part.from_bytes(data=each.data, mime_type=each.content_type) for each in asked.pictures]
        parts.append(types.Part.from_text(text=asked.prompt))
        model, contents = model_name(asked.model), types.Content(role="user", parts=parts)

        async def work() -> None:
            answer = await self.sdk.aio.models.generate_content(
                model=model,
                contents=contents,
                config=configured(
                    system_instruction=asked.system,
                    temperature=asked.temperature,
                    top_p=asked.top_p,
                    response_modalities=["TEXT", "IMAGE"],
                    image_config=types.ImageConfig(
                        aspect_ratio=asked.aspect_ratio,
                        # Models that draw one size alone refuse its name.
                        image_size=None if asked.image_size == "1K" else asked.image_size,
                    ),
                ),
            )
            picture = picture_of(answer)
            try:
                await asyncio.to_thread(into.write_bytes, picture)
            except OSError:
                _log.exception("drawing_not_kept")
                raise TaskFailed(
                    "This worker has no room for the picture.", ERROR_CATEGORY_RESOURCE, retryable=True
                ) from None

        await sent_once(NAME, work, explain, self._limits, self._room)


def configured(**members: Any) -> types.GenerateContentConfig:
    """Return a request's settings, by which the client sends nothing beside it."""
    return types.GenerateContentConfig(
        automatic_continuation=False,
        automatic_function_calling=types.AutomaticFunctionCallingConfig(disable=True),
        **members,
    )


def model_name(name: str) -> str:
    """Return a model's name that may stand in an address.

    Raises:
        ProviderError: It may not.
    """
    if _MODEL.fullmatch(name) is None:
        raise ProviderError(Fault.INVALID, NAME, f"there is no model of the name {name!r}")
    return name


def reason_of(answer: types.GenerateContentResponse) -> str | None:
    """Return why an answer ended; None where it does not tell.

    Raises:
        ProviderError: The request or the answer was refused.
    """
    if answer.prompt_feedback is not None and answer.prompt_feedback.block_reason is not None:
        raise ProviderError(Fault.REFUSED, NAME, http_status=200)
    finish = answer.candidates[0].finish_reason if answer.candidates else None
    if finish is not None and finish.value in _REFUSED:
        raise ProviderError(Fault.REFUSED, NAME, http_status=200)
    return None if finish is None else str(finish.value)


def picture_of(answer: types.GenerateContentResponse) -> bytes:
    """Return the picture of an answer: its last one, for those of the model's thoughts come before it.

    Raises:
        ProviderError: It was refused, or there is none.
    """
    finish = reason_of(answer)
    content = answer.candidates[0].content if answer.candidates else None
    for part in reversed((content.parts if content else None) or []):
        if part.inline_data is not None and part.inline_data.data:
            return part.inline_data.data
    said = "" if finish in (None, _FINISHED) else f"it ended with {finish}, and without a picture"
    raise ProviderError(Fault.EMPTY, NAME, said, http_status=200)


def explain(error: Exception) -> ProviderError | None:
    """Return what Google said by an error; None where it is no answer."""
    if isinstance(error, google.auth.exceptions.GoogleAuthError):
        return None if error.retryable else ProviderError(Fault.DENIED, NAME)
    if not isinstance(error, errors.APIError):
        return None
    status = error.code if isinstance(error.code, int) and 400 <= error.code <= 599 else None
    if status is None:  # a success of another kind than the client reads, or what is no JSON
        return ProviderError(Fault.EMPTY, NAME)
    details = _details(error.details)
    fault = fault_of_status(status, paid=True)
    if any(str(each.get("reason", "")).startswith("API_KEY_") for each in details):
        fault = Fault.DENIED  # by a 400
    asked = next((wait for each in details if (wait := _delay(each.get("retryDelay"))) is not None), None)
    return ProviderError(
        fault,
        NAME,
        str(error.message or "") if fault is Fault.INVALID else "",
        retry_after=asked,
        http_status=status,
    )


def _details(body: Any) -> list[Mapping[str, Any]]:
    error = body.get("error", body) if isinstance(body, Mapping) else None
    details = error.get("details") if isinstance(error, Mapping) else None
    return [each for each in details if isinstance(each, Mapping)] if isinstance(details, list) else []


def _delay(text: object) -> float | None:
    """Read a duration as JSON has it: `7s`, `1.5s`."""
    found = _DURATION.fullmatch(text) if isinstance(text, str) else None
    return None if found is None else float(found[1])
