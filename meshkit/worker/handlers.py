"""What a worker asks of a task type, and of a provider: a `TaskHandler` or a `CallHandler`.

`inputs` and `batch_key` run in the parent, so a task type's module imports neither torch nor anything that does at its
top. `needs` and `run` are called in the child, on one of its job threads. A handler says which models it needs; the
child lends it those for the time of the batch, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from atelier.inference.v1.child_pb2 import ChildMessage
from atelier.tasks.v1.enums_pb2 import ErrorCategory, TaskType
from atelier.tasks.v1.phase_pb2 import TaskPhase
from atelier.tasks.v1.service_requests_pb2 import ServiceRequest
from atelier.tasks.v1.task_pb2 import CreateTask, Task, TaskResult


@dataclass(frozen=True, slots=True)
class InputRef:
    """An input that the parent makes a local file of before the child sees the task.

    Attributes:
        name: Key under which the handler finds the file in `TaskContext.inputs`.
        source: A storage path, an http(s) URL, a data URL or base64.
        kind: `image` is judged as an untrusted image; `lora` must be a safetensors file.
        required: Whether the attempt fails where it cannot be had; else `TaskContext.refused_inputs` says why.
    """

    name: str
    source: str
    kind: Literal["image", "lora"]
    required: bool = True


def image_refs(name: str, sources: Sequence[str], *, required: bool = True) -> list[InputRef]:
    """Name the images of a list, one by one: `reference[0]`, `reference[1]`."""
    return [InputRef(f"{name}[{index}]", source, "image", required) for index, source in enumerate(sources)]


@dataclass(frozen=True, slots=True)
class OutputFile:
    """A file that a handler wrote into its attempt's folder.

    Attributes:
        name: Name inside the folder, and behind the attempt's result prefix.
        content_type: Media type.
        field: Field of the result's detail that is to hold the uploaded path; None where no field does.
        index: Place in the field where it is a list. A place that no file takes holds what the result has there, or "".
    """

    name: str
    content_type: str
    field: str | None
    index: int | None = None


@dataclass(frozen=True, slots=True)
class Output:
    """What an attempt made.

    Attributes:
        result: The result; fields that name files are set by the parent after the upload.
        files: Files to upload.
        device_seconds: Seconds the device worked for this task (a batch's share).
        errors: What went wrong with parts of the task, where the rest has succeeded: sentences for the caller.
    """

    result: TaskResult
    files: tuple[OutputFile, ...]
    device_seconds: float
    errors: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Need:
    """A model that a handler must have to execute a batch.

    Attributes:
        name: Key under which the handler finds the model in what it is lent.
        family: Family of the model (`flux`, `kontext`, `upscaler`, `vision`, `cutout`).
        model: Name of the model within the family; the worker's default where None.
        others: Families that a model which is named may be of instead.
    """

    name: str
    family: str
    model: str | None = None
    others: tuple[str, ...] = ()


class HeldModel(Protocol):
    """A model in memory, as a lender describes it."""

    @property
    def name(self) -> str:
        """Name of the model."""
        ...

    @property
    def family(self) -> str:
        """Family of the model."""
        ...

    @property
    def bytes(self) -> int:
        """Bytes that it holds."""
        ...

    @property
    def pins(self) -> int:
        """Number of batches that use it now."""
        ...

    @property
    def loras(self) -> tuple[str, ...]:
        """Labels of its loaded adapters."""
        ...


class Lender(Protocol):
    """Keeps models in memory and lends them to batches."""

    @property
    def device(self) -> str:
        """Device of the models (`cpu`, `cuda:0`)."""
        ...

    def lend(
        self, needs: Sequence[Need], on_loan: Callable[[str, bool], None] = ...
    ) -> AbstractContextManager[Mapping[str, Any]]:
        """Lend models by the names of the needs; they stay in memory until the block ends.

        Args:
            needs: What is needed.
            on_loan: Called for each model, in the order of the needs, with its name and whether it was in memory.
        """
        ...

    def resident(self) -> Sequence[HeldModel]:
        """List what is in memory."""
        ...

    def free(self) -> None:
        """Unload every model that no batch uses."""
        ...


class TaskFailed(Exception):  # noqa: N818 -- it states an outcome of a task, and is part of the handlers' protocol
    """An attempt failed in a way that its caller may read.

    Args:
        message: One sentence, free of paths and of libraries' own text.
        category: Class of the error.
        retryable: Whether another attempt could succeed.
        retry_after: Seconds that a provider asks to wait before another attempt; None where it asks for nothing.
    """

    def __init__(
        self,
        message: str,
        category: ErrorCategory.ValueType,
        retryable: bool,  # noqa: FBT001 -- a field
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.category = category
        self.retryable = retryable
        self.retry_after = retry_after


class TaskCancelled(Exception):  # noqa: N818 -- it states an outcome, not an error
    """The handler saw `TaskContext.cancelled()` and stopped."""


class WorkerUnfit(Exception):  # noqa: N818 -- it states an outcome, not an error
    """This worker cannot do work of this kind now, whatever the task: its attempt is handed back.

    Args:
        fault: Why, for operators.
    """

    def __init__(self, fault: str) -> None:
        super().__init__(fault)
        self.fault = fault


class TaskContext(Protocol):
    """One attempt, as its handler sees it."""

    job_id: str
    spec: CreateTask
    task: Task
    inputs: Mapping[str, Path]
    refused_inputs: Mapping[str, str]

    @property
    def folder(self) -> Path:
        """Folder of the attempt, for its files; it is there once it was asked for."""
        ...

    def progress(self, step: int, total: int, preview: bytes | None = None) -> None:
        """Report that `step` of `total` is done; `preview` is a small JPEG. Also feeds the step deadline."""
        ...

    def upscaling(self) -> None:
        """Report that the picture is drawn, and is being enlarged."""
        ...

    def cancelled(self) -> bool:
        """Tell whether the attempt is to stop; read between steps."""
        ...


class TextContext(TaskContext, Protocol):
    """One attempt whose result is text."""

    def progress(self, step: int, total: int, preview: bytes | None = None, *, text: str | None = None) -> None:
        """Report that `step` of `total` is done, and the text so far; who watches the task reads its beginning."""
        ...


class CallContext(TextContext, Protocol):
    """One attempt whose handler calls a provider.

    Never pay twice: a request that may cost money is noted as SENDING before it is sent, as ACCEPTED once the provider
    has named it and before it is waited for, and as DONE, FAILED or UNKNOWN at its end. A worker that dies in between
    leaves what the next attempt finds in `open_requests`.
    """

    @property
    def open_requests(self) -> Sequence[ServiceRequest]:
        """What earlier attempts of this task have asked the provider, and what has not failed, oldest first.

        An ACCEPTED one, or one that is DONE and whose result was lost with its worker, is gone on with by its
        `service_task_id` and `resume`. Of one that is SENDING nobody knows whether the provider has it: it is looked up
        there, or noted as UNKNOWN; it is never sent again.
        """
        ...

    async def note(self, request: ServiceRequest) -> None:
        """Write a request down as it stands; it is committed when this returns.

        Repeated while the tasks service is away. What a later note leaves out stays as it was.

        Raises:
            asyncio.CancelledError: The attempt is not this worker's any more; nothing may be sent.
        """
        ...

    def begins(self, phase: TaskPhase.ValueType, *, position: int | None = None) -> None:
        """Report what the attempt is at from now on.

        Args:
            phase: PROVIDER_QUEUED, RUNNING or FETCHING.
            position: Requests that the provider serves first, where it tells.
        """
        ...

    @property
    def called_off(self) -> bool:
        """Whether a cancelled handler is to tell the provider to stop: the task has ended, or its time has passed.

        False where another attempt will go on with the request: the worker drains, or has lost the attempt.
        """
        ...


class LongContext(TaskContext, Protocol):
    """One attempt that takes long, as its handler sees it in the child."""

    def paused(self) -> bool:
        """Tell whether the attempt is to stop where another one can go on; read between steps."""
        ...

    def say(self, kind: str, text: str) -> None:
        """Tell the parent something, as JSON; messages come in order, and before the end of the attempt."""
        ...

    def heard(self) -> Sequence[ChildMessage]:
        """Take what the parent has said since the last look."""
        ...


class PausableContext(CallContext, Protocol):
    """One attempt whose handler can stop where another attempt goes on."""

    def on_pause(self, callback: Callable[[], None]) -> None:
        """Have `callback` called once the attempt is asked to, at once if it has been; it then ends TaskCancelled."""
        ...


class TaskHandler(Protocol):
    """One task type.

    Attributes:
        task_type: The type.
        families: Families that `needs` may name; a child whose handlers name none keeps no models and imports no torch.
    """

    task_type: TaskType.ValueType
    families: tuple[str, ...]

    def inputs(self, spec: CreateTask, task: Task) -> Sequence[InputRef]:
        """Name the inputs to fetch. Runs in the parent, without torch."""
        ...

    def batch_key(self, spec: CreateTask, task: Task) -> Hashable | None:
        """Tasks with equal keys may run as one batch; None is never batched. Runs in the parent, without torch."""
        ...

    def needs(self, spec: CreateTask, task: Task) -> Sequence[Need]:
        """Name the models that the task needs; tasks with equal batch keys have equal needs.

        Raises:
            TaskFailed: The task cannot be executed as it is.
        """
        ...

    def run(self, batch: Sequence[TaskContext], lent: Mapping[str, Any]) -> Sequence[Output | Exception]:
        """Execute the batch in the child; one outcome for each member, in order.

        Args:
            batch: Tasks of equal batch keys.
            lent: The models that `needs` named, by their names.
        """
        ...


class CallHandler(Protocol):
    """One task type by one provider that is called over the network: a coroutine in the parent."""

    def inputs(self, spec: CreateTask, task: Task) -> Sequence[InputRef]:
        """Name the inputs to fetch."""
        ...

    async def run(self, context: CallContext) -> Output:
        """Have the provider do the task.

        It is cancelled where the task is, where its time limit has passed, or where the worker drains or has lost the
        attempt, and has a few seconds then: to call the provider off where `context.called_off` says so. It must not
        block: all calls of the worker share one thread.

        Args:
            context: The attempt; files of the result go into its folder.

        Raises:
            TaskFailed: The provider did not do it.
        """
        ...
