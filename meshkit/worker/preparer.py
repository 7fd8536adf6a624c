"""From a task to a job of the child: its folder, its inputs as local files, and what of it fits into a frame."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Hashable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from atelier.inference.v1.child_pb2 import ChildJob, ChildProgress
from atelier.tasks.v1.enums_pb2 import (
    ERROR_CATEGORY_INTERNAL,
    ERROR_CATEGORY_RESOURCE,
    ERROR_CATEGORY_VALIDATION,
    TaskType,
)
from atelier.tasks.v1.task_pb2 import CreateTask, Task

from meshkit import tracing
from meshkit.catalog import type_of_detail
from meshkit.errors import ErrorKind, MeshError
from meshkit.worker.device_runner import Job
from meshkit.worker.handlers import InputRef, TaskFailed, TaskHandler
from meshkit.worker.inputs import AttemptFolders, Inputs
from meshkit.worker.wire import MAX_FRAME_BYTES

_CALLERS_FAULT = frozenset({ErrorKind.INVALID, ErrorKind.NOT_FOUND, ErrorKind.FORBIDDEN, ErrorKind.TOO_LARGE})
_MAX_JOB_BYTES = MAX_FRAME_BYTES - 1024
_MAX_SHARED_BYTES = MAX_FRAME_BYTES // 64  # the largest batch of jobs of this size fits into a frame
_LONG_CHARS = 4096


class JobPreparer:
    """Turns tasks into jobs.

    Args:
        handlers: One handler a type.
        inputs: Fetches inputs.
        folders: Folders of attempts.
    """

    def __init__(
        self, handlers: Mapping[TaskType.ValueType, TaskHandler], inputs: Inputs, folders: AttemptFolders
    ) -> None:
        self._handlers = handlers
        self._inputs = inputs
        self._folders = folders

    @asynccontextmanager
    async def prepared(
        self, spec: CreateTask, task: Task, tenant: str, on_progress: Callable[[ChildProgress], None]
    ) -> AsyncIterator[Job]:
        """Yield a job that is prepared and, at the end of the context, released; raises as `prepare` does."""
        job = await self.prepare(spec, task, tenant, on_progress)
        try:
            yield job
        finally:
            await self.release(job)

    async def prepare(
        self, spec: CreateTask, task: Task, tenant: str, on_progress: Callable[[ChildProgress], None]
    ) -> Job:
        """Make a job, whose folder and inputs last until it is released.

        Raises:
            TaskFailed: the task cannot be executed.
        """
        kind = type_of_detail(spec.WhichOneof("detail"))
        handler = None if kind is None else self._handlers.get(kind.number)
        if kind is None or handler is None:
            raise TaskFailed("This worker does not execute the type.", ERROR_CATEGORY_INTERNAL, retryable=True)
        refs = handler.inputs(spec, task)
        payload = ChildJob(job_id=task.id, spec=without_data(spec, refs), task=task, folder=self._folders.name())
        if (trace := tracing.current()) is not None:
            payload.traceparent = trace.traceparent
        if not refs:
            key = _batch_key(payload, handler.batch_key(spec, task), kind.name, ())
            return Job(kind.name, key, payload, on_progress)
        async with AsyncExitStack() as held:
            held.callback(self._folders.remove, payload.folder)
            files = await self._fetched(held, tenant, refs, self._folders.make(payload.folder))
            payload.inputs.update({name: str(path) for name, path in files.items()})
            # A batch is made with its first member's LoRAs. Tasks name them within their tenant, so that two may mean
            # different files by one path: what is compared are the files.
            loras = tuple((ref.name, files[ref.name]) for ref in refs if ref.kind == "lora")
            key = _batch_key(payload, handler.batch_key(spec, task), kind.name, loras)
            return Job(kind.name, key, payload, on_progress, held=held.pop_all())

    async def release(self, job: Job) -> None:
        """Remove a job's folder and give its inputs back."""
        if job.held is not None:
            await job.held.aclose()
        else:
            self._folders.remove(job.payload.folder)

    async def _fetched(
        self, held: AsyncExitStack, tenant: str, refs: Sequence[InputRef], folder: Path
    ) -> Mapping[str, Path]:
        try:
            return await held.enter_async_context(self._inputs.fetched(tenant, refs, folder))
        except MeshError as error:
            raise failed_input(error) from error


def _batch_key(payload: ChildJob, key: Hashable | None, *kind: Hashable) -> Hashable | None:
    """Return what is equal for jobs that may run together.

    Raises:
        TaskFailed: no frame carries the job.
    """
    size = payload.ByteSize()
    if size > _MAX_JOB_BYTES:
        raise TaskFailed("The task is too large to be executed.", ERROR_CATEGORY_VALIDATION, retryable=False)
    return None if key is None or size > _MAX_SHARED_BYTES else (*kind, key)


def without_data(spec: CreateTask, refs: Sequence[InputRef]) -> CreateTask:
    """Return the task with the names of its inputs in place of the bytes that came in it.

    The files lie in the attempt's folder; a frame to the child is small.
    """
    long = {ref.source: ref.name for ref in refs if len(ref.source) > _LONG_CHARS} if refs else None
    detail = spec.WhichOneof("detail")
    if not long or detail is None:
        return spec
    short = CreateTask()
    short.CopyFrom(spec)
    fields = getattr(short, detail)
    for field, value in fields.ListFields():
        if isinstance(value, str) and value in long:
            setattr(fields, field.name, long[value])
    return short


def failed_input(error: MeshError) -> TaskFailed:
    """Say why an input could not be had as a task's failure."""
    if error.kind in _CALLERS_FAULT:
        where = f"{error.violations[0].path}: " if error.violations else ""
        return TaskFailed(f"{where}{error.message}", ERROR_CATEGORY_VALIDATION, retryable=False)
    return TaskFailed(f"An input could not be fetched: {error.message}", ERROR_CATEGORY_RESOURCE, retryable=True)
