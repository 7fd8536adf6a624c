"""AI_CORE: language models of OpenAI, Anthropic, Google and Ollama.

A task's settings name the provider and the model. A worker answers for those of which it has the key; Ollama needs
none.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from atelier.tasks.v1.enums_pb2 import PROVIDER_TYPE_AI_CORE, TASK_TYPE_LLM_INTERACTION, TaskType
from atelier.tasks.v1.providers_pb2 import AiCoreProviderConfig
from atelier.tasks.v1.task_pb2 import CreateTask, Task

from meshkit.validation import apply_defaults
from meshkit.worker.handlers import CallContext, CallHandler, InputRef, Output
from services.inference.providers.chats import ModelChat, ModelPrompt, open_chat
from services.inference.providers.errors import Fault, ProviderError
from services.inference.providers.language import answer_prompt, shown, shown_refs

if TYPE_CHECKING:
    from services.inference.providers.config import ProviderSettings
    from services.inference.providers.kit import ProviderKit

_NAMES = {"openai": "OpenAI", "anthropic": "Anthropic", "gemini": "Gemini", "ollama": "Ollama"}


class AiCoreHandler:
    """Answers LLM_INTERACTION tasks' prompts.

    Args:
        kit: What providers share.
    """

    def __init__(self, kit: ProviderKit) -> None:
        self._kit = kit

    def inputs(self, spec: CreateTask, task: Task) -> Sequence[InputRef]:
        """Name the pictures that the model is shown."""
        return shown_refs(spec, task)

    async def run(self, context: CallContext) -> Output:
        """Have the model that the task names answer."""
        config = _config(context.spec, context.task)
        if not _has_account(config.ai_provider, self._kit.settings):
            raise ProviderError(
                Fault.DENIED, _NAMES[config.ai_provider], "this worker has no credentials of it"
            ).failure()
        asked = context.spec.llm_interaction
        prompt = ModelPrompt(
            model=config.model,
            prompt=asked.prompt,
            system=asked.system_prompt if asked.HasField("system_prompt") else None,
            pictures=await shown(context.inputs),
            temperature=config.temperature,
            max_tokens=config.max_tokens if config.HasField("max_tokens") else None,
        )
        opened = functools.partial(self._chat, config.ai_provider)
        return await answer_prompt(self._kit, context, PROVIDER_TYPE_AI_CORE, opened, prompt)

    def _chat(self, ai_provider: str) -> ModelChat:
        settings = self._kit.settings
        return self._kit.shared(f"chat:{ai_provider}", lambda: open_chat(ai_provider, settings))


def handlers(kit: ProviderKit) -> Mapping[TaskType.ValueType, CallHandler]:
    """Return the handlers of the provider's task types."""
    return {TASK_TYPE_LLM_INTERACTION: AiCoreHandler(kit)}


def _config(spec: CreateTask, task: Task) -> AiCoreProviderConfig:
    config = AiCoreProviderConfig()
    config.CopyFrom((task if task.HasField("provider_config") else spec).provider_config.ai_core)
    apply_defaults(config)
    return config


def _has_account(ai_provider: str, settings: ProviderSettings) -> bool:
    keys = {
        "openai": settings.openai_key.get_secret_value(),
        "anthropic": settings.anthropic_key.get_secret_value(),
        "gemini": settings.gemini_key.get_secret_value() or settings.vertex_project,
        "ollama": settings.ollama_url,
    }
    return bool(keys[ai_provider])
