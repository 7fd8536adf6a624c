"""LLM_INTERACTION by a provider: what the model is shown, the answer as it grows, and what became of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from atelier.tasks.v1.enums_pb2 import TASK_TYPE_LLM_INTERACTION, ProviderType
from atelier.tasks.v1.llm_interaction_pb2 import LLMInteractionTaskPublic
from atelier.tasks.v1.task_pb2 import CreateTask, Task, TaskResult

from meshkit.worker.handlers import CallContext, InputRef, Output, image_refs
from modelkit.pictures import open_picture, over_white
from services.inference.providers.chats import ModelChat, ModelPrompt, ModelReply, checked
from services.inference.providers.encoded import SentPicture, encoded
from services.inference.providers.errors import Fault, ProviderError
from services.inference.providers.paid import Order, ProviderAnswer, answered
from services.inference.providers.sdk import sent_once

if TYPE_CHECKING:
    from services.inference.providers.kit import ProviderKit

_PICTURE = "input"
# What all of them take and look at; larger pictures are reduced by the provider, and charged before.
_MAX_SIDE = 1568
_STEPS = 100
_BEGUN, _WRITTEN = 10, 90
_TYPICAL_PIECES = 200  # of an answer; a longer one nears the end ever more slowly
_PAUSE_SECONDS = 0.05
_CUT = "The answer was cut at the most tokens that it may have."


def shown_refs(spec: CreateTask, task: Task) -> Sequence[InputRef]:
    """Name the pictures of a task."""
    return image_refs(_PICTURE, task.llm_interaction.input_images or spec.llm_interaction.input_images)


async def shown(inputs: Mapping[str, Path]) -> tuple[SentPicture, ...]:
    """Return the pictures of a task as a request carries them."""
    names = [f"{_PICTURE}[{index}]" for index in range(len(inputs))]
    return tuple([await asyncio.to_thread(_encoded, inputs[name]) for name in names if name in inputs])


def _encoded(path: Path) -> SentPicture:
    return encoded(over_white(open_picture(path)), _MAX_SIDE)


async def answer_prompt(
    kit: ProviderKit,
    context: CallContext,
    provider: ProviderType.ValueType,
    open_model: Callable[[], ModelChat],
    asked: ModelPrompt,
) -> Output:
    """Have a provider's model answer a task's prompt, in one request.

    Args:
        kit: What providers share.
        context: The attempt.
        provider: The provider, as tasks name it.
        open_model: Returns the client; its import may take a second.
        asked: What the model is told.

    Raises:
        TaskFailed: It did not.
    """
    chat = await asyncio.to_thread(open_model)
    grown = _Grown(context)

    async def call() -> ProviderAnswer[ModelReply]:
        try:
            reply = await sent_once(
                chat.provider, lambda: chat.reply(asked, grown.told), chat.explain, kit.settings.provider_http
            )
            return ProviderAnswer(
                checked(chat.provider, reply), 200, reply.cost, "USD" if reply.cost is not None else ""
            )
        except ProviderError as error:
            if chat.free and error.fault is Fault.UNKNOWN:  # nothing was paid: another attempt may ask again
                raise ProviderError(Fault.BROKEN, chat.provider, http_status=error.http_status) from None
            raise

    async def finish(answer: ProviderAnswer[ModelReply]) -> Output:
        reply = answer.value
        public = LLMInteractionTaskPublic(
            result_text=reply.text, input_tokens=reply.input_tokens, output_tokens=reply.output_tokens
        )
        warnings = [*reply.notes, *([_CUT] if reply.cut else [])]
        return Output(TaskResult(llm_interaction=public, warnings=warnings), (), 0.0)

    order = Order(provider, chat.provider, asked.model, "answer", kit.seconds(TASK_TYPE_LLM_INTERACTION))
    return await answered(context, call, order, finish)


class _Grown:
    """Reports an answer as it grows, a few times a second."""

    def __init__(self, context: CallContext) -> None:
        self._context = context
        self._told = 0.0

    def told(self, pieces: Sequence[str]) -> None:
        """Take the pieces so far."""
        now = time.monotonic()
        if now - self._told < _PAUSE_SECONDS:
            return
        self._told = now
        share = len(pieces) / (len(pieces) + _TYPICAL_PIECES)
        step = _BEGUN + int((_WRITTEN - _BEGUN) * share)
        self._context.progress(step, _STEPS, text="".join(pieces))
