"""From a task to a job of the child: its folder, its inputs as local files, and what of it fits into a frame."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
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
from meshkit.errors import Kind, MeshError
from meshkit.worker.wire import MAX_FRAME_BYTES
from services.inference.executor import Job
from services.inference.inputs import AttemptFolders, Inputs
from services.inference.tasktypes import type_name, type_of_detail
from services.inference.tasktypes.base import InputRef, TaskFailed, TaskHandler

_CALLERS_FAULT = frozenset({Kind.INVALID, Kind.NOT_FOUND, Kind.FORBIDDEN, Kind.TOO_LARGE})
_MAX_JOB_BYTES = MAX_FRAME_BYTES - 1024
_MAX_SHARED_BYTES = MAX_FRAME_BYTES // 64  # the largest batch of jobs of this size fits into a frame
_LONG_CHARS = 4096
_NO_FILES: contextlib.nullcontext[Mapping[str, Path]] = contextlib.nullcontext({})


class Preparer:
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
        """A job with its folder and inputs, which last as long as the context.

        Raises:
            TaskFailed: the task cannot be executed.
        """
        kind = type_of_detail(spec.WhichOneof("detail"))
        handler = None if kind is None else self._handlers.get(kind)
        if kind is None or handler is None:
            raise TaskFailed("This worker does not execute the type.", ERROR_CATEGORY_INTERNAL, retryable=True)
        with self._folders.attempt() as folder:
            refs = handler.inputs(spec, task)
            async with self._files(tenant, refs, folder) if refs else _NO_FILES as files:
                trace = tracing.current()
                payload = ChildJob(
                    job_id=task.id,
                    spec=without_data(spec, refs),
                    task=task,
                    folder=str(folder),
                    inputs={name: str(path) for name, path in files.items()},
                    traceparent=trace.traceparent if trace else "",
                )
                size = payload.ByteSize()
                if size > _MAX_JOB_BYTES:
                    raise TaskFailed(
                        "The task is too large to be executed.", ERROR_CATEGORY_VALIDATION, retryable=False
                    )
                key = None if size > _MAX_SHARED_BYTES else handler.batch_key(spec, task)
                if key is not None:
                    # A batch is made with its first member's LoRAs. Tasks name them within their tenant, so that two
                    # may mean different files by one path: what is compared are the files.
                    key = (kind, key, tuple((ref.name, files[ref.name]) for ref in refs if ref.kind == "lora"))
                yield Job(type_name(kind), key, payload, on_progress)

    @asynccontextmanager
    async def _files(self, tenant: str, refs: Sequence[InputRef], folder: Path) -> AsyncIterator[Mapping[str, Path]]:
        async with contextlib.AsyncExitStack() as stack:
            try:
                files = await stack.enter_async_context(self._inputs.fetched(tenant, refs, folder))
            except MeshError as error:
                raise failed_input(error) from error
            yield files


def without_data(spec: CreateTask, refs: Sequence[InputRef]) -> CreateTask:
    """The task with the names of its inputs in place of the bytes that came in it.

    The files lie in the attempt's folder; a frame to the child is small.
    """
    long = {ref.source: ref.name for ref in refs if len(ref.source) > _LONG_CHARS}
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
