"""The tasks service as judgement needs it: a language model puts facts into other words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from atelier.tasks.v1 import enums_pb2, llm_interaction_pb2, task_pb2, tasks_service_pb2
from atelier.tasks.v1.tasks_service_pb2_grpc import TasksServiceStub
from google.protobuf import json_format

from meshkit.catalog import PROVIDERS, TASK_TYPES
from meshkit.channel import MeshChannel, call_metadata
from meshkit.errors import ErrorKind, MeshError

_SECONDS = 5.0
_MOST_TOKENS = 90
_LOCAL = "LOCAL"
[_TYPE] = [name for name, spec in TASK_TYPES.items() if spec.number == enums_pb2.TASK_TYPE_LLM_INTERACTION]
_ENDED = {enums_pb2.TASK_STATUS_COMPLETED, enums_pb2.TASK_STATUS_FAILED, enums_pb2.TASK_STATUS_CANCELLED}


@dataclass(frozen=True, slots=True)
class TextSource:
    """Who is asked for summaries.

    Attributes:
        provider: The provider.
        config: Its settings; of a local worker, members of the task's `config`.
    """

    provider: str
    config: Mapping[str, Any]

    def check(self) -> None:
        """Refuse what no task can be made of.

        Raises:
            ValueError: There is no such provider, it answers no prompts, or the settings are not its own.
        """
        spec = PROVIDERS.get(self.provider)
        if spec is None or _TYPE not in spec.tasks:
            able = ", ".join(sorted(name for name, one in PROVIDERS.items() if _TYPE in one.tasks))
            raise ValueError(f"ATELIER_CAPTURE_SUMMARY must be NONE or one of {able}")
        try:
            self.write(task_pb2.CreateTask())
        except json_format.ParseError:
            raise ValueError(
                f"ATELIER_CAPTURE_SUMMARY_CONFIG must be an object with settings of {self.provider}"
            ) from None

    def write(self, task: task_pb2.CreateTask) -> None:
        """Write into a task who is to execute it, and how."""
        spec = PROVIDERS[self.provider]
        config: dict[str, Any] = {"max_tokens": _MOST_TOKENS, "temperature": 0.0}
        if self.provider == _LOCAL:
            config |= self.config
        else:
            task.provider_type = spec.number
            if self.config:
                json_format.ParseDict(dict(self.config), getattr(task.provider_config, spec.config))
        task.config.update(config)


@dataclass(frozen=True, slots=True)
class ModelAnswer:
    """What came of a task.

    Attributes:
        text: What the model said; empty where it said nothing.
        problem: Why it did not.
    """

    text: str
    problem: str = ""


class TextCalls:
    """Asks for summaries, in the name of capture's tenant.

    Args:
        channel: Channel to the tasks service.
        source: Who is asked.
        tenant: Tenant of the tasks.
        instance: `origin_instance` of the tasks.
        zone: `origin_zone` of the tasks.
    """

    def __init__(self, channel: MeshChannel, source: TextSource, *, tenant: str, instance: str, zone: str) -> None:
        self._tasks = channel.stub(TasksServiceStub)
        self._source = source
        self._metadata = call_metadata(tenant=tenant)
        self._instance = instance
        self._zone = zone

    async def ask(self, task_id: UUID, system: str, prompt: str, reference: str) -> None:
        """Make the task, or find that it exists.

        Raises:
            MeshError: The service does not answer, or takes no such task.
        """
        task = task_pb2.CreateTask(
            origin_instance=self._instance,
            origin_zone=self._zone or None,
            origin_reference=reference,
            llm_interaction=llm_interaction_pb2.CreateLLMInteractionTask(prompt=prompt, system_prompt=system),
        )
        self._source.write(task)
        request = tasks_service_pb2.CreateTaskRequest(task=task, task_id=str(task_id))
        await self._tasks.CreateTask(request, timeout=_SECONDS, metadata=self._metadata)

    async def look(self, task_id: UUID) -> ModelAnswer | None:
        """Return what came of a task; None where it has not ended.

        Raises:
            MeshError: The service does not answer; `NOT_FOUND` where there is no such task.
        """
        request = tasks_service_pb2.GetTaskRequest(task_id=str(task_id))
        task = (await self._tasks.GetTask(request, timeout=_SECONDS, metadata=self._metadata)).task
        if task.status not in _ENDED:
            return None
        if task.status == enums_pb2.TASK_STATUS_COMPLETED:
            return ModelAnswer(task.llm_interaction.result_text)
        return ModelAnswer("", "the task of the language model failed")

    async def give_up(self, task_id: UUID) -> None:
        """Cancel a task that nobody waits for any more.

        Raises:
            MeshError: The service does not answer.
        """
        try:
            request = tasks_service_pb2.CancelTaskRequest(task_id=str(task_id))
            await self._tasks.CancelTask(request, timeout=_SECONDS, metadata=self._metadata)
        except MeshError as error:
            if error.kind not in (ErrorKind.NOT_FOUND, ErrorKind.CONFLICT):
                raise
