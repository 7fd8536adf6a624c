"""LLM_INTERACTION: a language model answers a prompt, in text.

Beside the documented fields, a caller may set these members of `config`; other members of it are ignored:

| member | value |
|---|---|
| `model` | name of a language model that the worker serves |
| `temperature` | 0 to 2; 0.2 where absent; 0 takes the likeliest token each time |
| `top_p` | above 0, to 1; 0.9 where absent |
| `max_tokens` | whole number from 1 to 8192; 512 where absent |
| `frequency_penalty` | 0 to 2: by how much a token's score falls each time it came up; the model's own where absent |
| `seed` | whole number from 0 to 2^53; where absent it follows from the task's id |
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from atelier.tasks.v1.enums_pb2 import TaskType
from atelier.tasks.v1.llm_interaction_pb2 import LLMInteractionTaskPublic
from atelier.tasks.v1.providers_pb2 import LocalLanguageConfig
from atelier.tasks.v1.task_pb2 import CreateTask, Task, TaskResult

from meshkit.worker.handlers import InputRef, Need, Output, TaskCancelled, TextContext
from modelkit.chat import Answer, ChatRequest
from services.inference.tasktypes.failures import one_by_one
from services.inference.tasktypes.members import invalid, steered
from services.inference.tasktypes.seeds import seed_of

if TYPE_CHECKING:
    from modelkit.llama import LlamaChat

_MODEL = "model"
# SmolLM2's template has a system prompt of its own, under which the model does not know the capital of France.
_SYSTEM = "You are a helpful assistant."
_CUT = {
    "max_tokens": "The answer was cut at {tokens} tokens (config.max_tokens).",
    "context": "The answer was cut after {tokens} tokens: with the prompt they fill what the model can hold.",
}


class LlmInteractionHandler:
    """Answers LLM_INTERACTION tasks' prompts."""

    task_type: TaskType.ValueType = TaskType.TASK_TYPE_LLM_INTERACTION
    families: tuple[str, ...] = ("language",)

    def inputs(self, spec: CreateTask, task: Task) -> Sequence[InputRef]:  # noqa: ARG002 -- the protocol's signature
        """Name no inputs: no language model here sees pictures."""
        return ()

    def batch_key(self, spec: CreateTask, task: Task) -> Hashable | None:  # noqa: ARG002 -- the protocol's signature
        """Answer prompts one by one: in a batch, the other prompts would change an answer's last digits."""
        return None

    def needs(self, spec: CreateTask, task: Task) -> Sequence[Need]:
        """Name the model."""
        return (Need(_MODEL, "language", _config(spec, task).model or None),)

    def run(self, batch: Sequence[TextContext], lent: Mapping[str, Any]) -> Sequence[Output | Exception]:
        """Answer each prompt."""
        return one_by_one(batch, lambda context: _answer(context, lent[_MODEL]))


def handler() -> LlmInteractionHandler:
    """Return the handler of the type."""
    return LlmInteractionHandler()


def _answer(context: TextContext, model: LlamaChat) -> Output:
    request = _request(context.spec, context.task)
    began = time.monotonic()
    answer = model.answer(request, context)
    if answer is None:
        raise TaskCancelled
    public = LLMInteractionTaskPublic(
        result_text=answer.text, input_tokens=answer.input_tokens, output_tokens=answer.output_tokens
    )
    return Output(TaskResult(llm_interaction=public, warnings=_warnings(answer)), (), time.monotonic() - began)


def _warnings(answer: Answer) -> list[str]:
    return [] if answer.cut is None else [_CUT[answer.cut].format(tokens=answer.output_tokens)]


def _request(spec: CreateTask, task: Task) -> ChatRequest:
    asked, config = spec.llm_interaction, _config(spec, task)
    if asked.input_images:
        raise invalid("input_images: no language model of this worker sees pictures.")
    return ChatRequest(
        prompt=asked.prompt,
        system=asked.system_prompt if asked.HasField("system_prompt") else _SYSTEM,
        max_tokens=config.max_tokens,
        temperature=config.temperature,
        top_p=config.top_p,
        seed=config.seed if config.HasField("seed") else seed_of(task.id),
        frequency_penalty=config.frequency_penalty if config.HasField("frequency_penalty") else None,
    )


def _config(spec: CreateTask, task: Task) -> LocalLanguageConfig:
    config: LocalLanguageConfig = steered(spec, task, LocalLanguageConfig.DESCRIPTOR)
    return config
