"""The evaluators of providers: a language model is shown the picture, in one request that is never repeated."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from atelier.tasks.v1.service_requests_pb2 import SERVICE_REQUEST_EFFECT_FATAL, SERVICE_REQUEST_EFFECT_IGNORED

from meshkit.logging import get_logger
from services.inference.evaluation.domain import EvaluatorFailedError, Findings, WantedShot
from services.inference.evaluation.questions import SYSTEM, findings_of, prompt_of
from services.inference.providers.chats import ModelChat, ModelPrompt, ModelReply, checked
from services.inference.providers.encoded import encoded
from services.inference.providers.errors import Fault, ProviderError
from services.inference.providers.sdk import sent_once

if TYPE_CHECKING:
    from PIL import Image

    from services.inference.providers.http import ExchangeLimits

_log = get_logger(__name__)

# What all models take and look at; larger pictures are reduced by the provider, and charged before.
_MAX_SIDE = 1568


class ModelEvaluator:
    """Has a model of a provider judge pictures.

    Args:
        opens: Returns the provider's client; its import may take a second.
        model: Name of the model.
        limits: What one exchange may take.
        seconds: How long an answer may take.
    """

    def __init__(self, opens: Callable[[], ModelChat], model: str, limits: ExchangeLimits, seconds: float) -> None:
        self._opens = opens
        self._model = model
        self._limits = limits
        self._seconds = seconds
        self._chat: ModelChat | None = None
        self._opening = asyncio.Lock()

    async def judge(self, picture: Image.Image, wanted: WantedShot) -> Findings:
        """Judge a picture."""
        chat = await self._opened()
        shown = await asyncio.to_thread(encoded, picture, _MAX_SIDE)
        prompt = ModelPrompt(self._model, prompt_of(wanted), SYSTEM, (shown,), temperature=0.0)
        try:
            reply = await self._answered(chat, prompt)
        except ProviderError as error:
            effect = error.rule.effect
            raise EvaluatorFailedError(
                error.message,
                counts=effect != SERVICE_REQUEST_EFFECT_IGNORED,
                fatal=effect == SERVICE_REQUEST_EFFECT_FATAL,
            ) from None
        _log.info(
            "picture_judged",
            provider=chat.provider,
            model=self._model,
            input_tokens=reply.input_tokens,
            output_tokens=reply.output_tokens,
            cost=reply.cost,
        )
        found = findings_of(reply.text, wanted)
        if found is None:
            raise EvaluatorFailedError(f"{chat.provider} answered without a judgement that can be read.")
        return found

    async def close(self) -> None:
        """Close the client."""
        if self._chat is not None:
            await self._chat.close()

    async def _answered(self, chat: ModelChat, prompt: ModelPrompt) -> ModelReply:
        try:
            async with asyncio.timeout(self._seconds):
                reply = await sent_once(chat.provider, lambda: chat.reply(prompt, _told), chat.explain, self._limits)
        except TimeoutError:
            raise ProviderError(Fault.LATE, chat.provider) from None
        return checked(chat.provider, reply)

    async def _opened(self) -> ModelChat:
        async with self._opening:
            if self._chat is None:
                self._chat = await asyncio.to_thread(self._opens)
            return self._chat


def _told(_pieces: Sequence[str]) -> None:
    """Take the pieces of an answer as it grows: nobody watches."""
