"""Tasks as requests to applications of fal: what every handler of fal's providers does the same way.

Applications agree on few names. What is sent are those that most of them read (`prompt`, `image_url`, `image_urls`,
`seed`, `image_size`, ...), and `additional_static_params` of the task for the rest; these cannot override what the task
itself says. What is read are the places where most of them put what they made.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any, TypeVar

from atelier.tasks.v1.enums_pb2 import ProviderType, TaskType
from atelier.tasks.v1.providers_pb2 import FalStandardConfig, ProviderConfig
from atelier.tasks.v1.service_requests_pb2 import ServiceRequest
from atelier.tasks.v1.task_pb2 import CreateTask, Task

from meshkit.worker.handlers import CallContext
from services.inference.providers.errors import Fault, ProviderError
from services.inference.providers.fal_queue import NAME, WEBHOOK_PATH, FalQueue, open_queue
from services.inference.providers.fal_storage import open_storage
from services.inference.providers.kit import ProviderKit
from services.inference.providers.paid import AcceptedRequest, Order, ProviderAnswer, Standing, queued
from services.inference.providers.plain_json import members_of

R = TypeVar("R")

# Where fal would send results, and who would be told: the mesh alone says so.
OURS = frozenset({"fal_webhook", "webhook_url"})
_MEDIA = ("images", "image", "video", "videos", "audio", "output", "outputs", "result", "results", "files", "file")


class FalJobs:
    """Has applications do what tasks of one provider ask.

    Args:
        kit: What handlers are given.
        provider_type: The provider.
    """

    def __init__(self, kit: ProviderKit, provider_type: ProviderType.ValueType) -> None:
        self.kit = kit
        self._queue = open_queue(kit)
        self._storage = open_storage(kit)
        self._provider_type = provider_type

    async def ask(
        self,
        context: CallContext,
        task_type: TaskType.ValueType,
        application: str,
        arguments: Mapping[str, Any],
        finish: Callable[[dict[str, Any]], Awaitable[R]],
        *,
        operation: str = "submit",
    ) -> R:
        """Have an application do something.

        Args:
            context: The attempt.
            task_type: The task's type.
            application: The application.
            arguments: What it is given.
            finish: Makes the result of what it answers.
            operation: Name of the request, where the task makes several.

        Raises:
            TaskFailed: It was not done.
        """
        seconds = self.kit.seconds(task_type)
        order = Order(self._provider_type, NAME, application, operation, seconds, self.kit.pacing)
        door = self.kit.settings.fal_webhook_url
        webhook = f"{door}{WEBHOOK_PATH}{context.job_id}" if door else ""
        if not _is_there(context, self._provider_type, operation):
            # Before anything is written down: an attempt that is lost meanwhile has sent nothing that may be paid.
            try:
                arguments = await self._storage.placed(arguments)
            except ProviderError as error:
                raise error.failure() from error
        call = _FalCall(self._queue, application, arguments, webhook, seconds)

        async def made(answer: ProviderAnswer[dict[str, Any]]) -> R:
            refuse_hidden(answer.value)
            return await finish(answer.value)

        return await queued(context, call, order, made, self.kit.wakes)


def _is_there(context: CallContext, provider_type: ProviderType.ValueType, operation: str) -> bool:
    return any(
        request.provider_type == provider_type and request.operation == operation for request in context.open_requests
    )


class _FalCall:
    """One request; see `QueuedApi`."""

    def __init__(
        self, queue: FalQueue, application: str, arguments: Mapping[str, Any], webhook: str, seconds: float
    ) -> None:
        self._queue = queue
        self._application = application
        self._arguments = arguments
        self._webhook = webhook
        self._seconds = seconds

    async def submit(self) -> AcceptedRequest:
        """Send it."""
        return await self._queue.submit(
            self._application, self._arguments, webhook=self._webhook, seconds=self._seconds
        )

    async def look(self, request: ServiceRequest) -> Standing:
        """Tell where it stands."""
        return await self._queue.look(request)

    async def fetch(self, request: ServiceRequest) -> ProviderAnswer[dict[str, Any]]:
        """Return what the application answered."""
        return await self._queue.fetch(request)

    async def call_off(self, request: ServiceRequest) -> bool:
        """Have fal stop it."""
        return await self._queue.call_off(request)


def settings_of(spec: CreateTask, task: Task) -> ProviderConfig:
    """Return the settings of the provider that executes a task."""
    return task.provider_config if task.HasField("provider_config") else spec.provider_config


def static_arguments(settings: FalStandardConfig) -> dict[str, Any]:
    """Return what a task passes on to its application as it is."""
    return members_of(settings.additional_static_params, without=OURS)


def refuse_hidden(answer: Mapping[str, Any]) -> None:
    """Refuse an answer whose pictures were made black because of their content.

    Raises:
        ProviderError: `REFUSED`.
    """
    flags = answer.get("has_nsfw_concepts")
    if flags is True or (isinstance(flags, list) and flags and all(flag is True for flag in flags)):
        raise ProviderError(Fault.REFUSED, NAME)


def media_urls(answer: Mapping[str, Any]) -> list[str]:
    """Return the addresses of what an application made, the first of which is its result."""
    found: list[str] = []
    for name in _MEDIA:
        found += [url for url in _urls(answer.get(name)) if url not in found]
    for name in ("image_url", "video_url", "audio_url", "url"):
        found += [url for url in _urls(answer.get(name)) if url not in found]
    return found


def first_url(answer: Mapping[str, Any]) -> str:
    """Return the address of what an application made.

    Raises:
        ProviderError: `EMPTY`.
    """
    urls = media_urls(answer)
    if not urls:
        raise ProviderError(Fault.EMPTY, NAME)
    return urls[0]


def _urls(value: object) -> Iterator[str]:
    if isinstance(value, str):
        if value.startswith(("http://", "https://", "data:")):
            yield value
    elif isinstance(value, list):
        for item in value:
            yield from _urls(item)
    elif isinstance(value, dict):
        yield from _urls(value.get("url"))
