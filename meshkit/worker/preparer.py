"""From a task to a job: its folder, its inputs as local files, and what of it fits into a frame."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Hashable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Protocol

from atelier.inference.v1.child_pb2 import ChildJob, ChildProgress
from atelier.tasks.v1.enums_pb2 import (
    ERROR_CATEGORY_INTERNAL,
    ERROR_CATEGORY_RESOURCE,
    ERROR_CATEGORY_VALIDATION,
)
from atelier.tasks.v1.task_pb2 import CreateTask, Task
from google.protobuf.descriptor import FieldDescriptor

from meshkit import spans, tracing
from meshkit.errors import MeshError
from meshkit.wire import MAX_FRAME_BYTES
from meshkit.worker.folders import AttemptFolders
from meshkit.worker.handlers import InputRef, TaskFailed
from meshkit.worker.inputs import CALLERS_FAULT, Inputs, is_remote
from meshkit.worker.pairs import Pair
from meshkit.worker.runner import Job

_MAX_JOB_BYTES = MAX_FRAME_BYTES - 1024
_MAX_SHARED_BYTES = MAX_FRAME_BYTES // 64  # the largest batch of jobs of this size fits into a frame
_LONG_CHARS = 4096


class InputNames(Protocol):
    """The part of a handler that is asked before its task runs."""

    def inputs(self, spec: CreateTask, task: Task) -> Sequence[InputRef]:
        """Name the inputs to fetch."""
        ...


BatchKey = Callable[[CreateTask, Task], Hashable | None]
"""Gives equal keys to tasks that may run as one batch; None to one that runs alone."""


class JobPreparer:
    """Turns tasks into jobs.

    Args:
        handlers: What names the inputs of each pair.
        inputs: Fetches inputs.
        folders: Folders of attempts.
        batch_keys: For pairs whose tasks run in batches.
    """

    def __init__(
        self,
        handlers: Mapping[Pair, InputNames],
        inputs: Inputs,
        folders: AttemptFolders,
        batch_keys: Mapping[Pair, BatchKey] | None = None,
    ) -> None:
        self._handlers = handlers
        self._inputs = inputs
        self._folders = folders
        self._batch_keys = batch_keys or {}

    def fetches(self, pair: Pair, spec: CreateTask, task: Task) -> bool:
        """Tell whether an input of the task comes from a server that is not the mesh's own."""
        handler = self._handlers.get(pair)
        if handler is None:
            return False
        try:
            return any(is_remote(ref) for ref in handler.inputs(spec, task))
        except Exception:  # `prepare` raises it again, where it ends the attempt
            return False

    @asynccontextmanager
    async def prepared(
        self, pair: Pair, spec: CreateTask, task: Task, tenant: str, on_progress: Callable[[ChildProgress], None]
    ) -> AsyncIterator[Job]:
        """Yield a job that is prepared and, at the end of the context, released; raises as `prepare` does."""
        job = await self.prepare(pair, spec, task, tenant, on_progress)
        try:
            yield job
        finally:
            await self.release(job)

    async def prepare(
        self, pair: Pair, spec: CreateTask, task: Task, tenant: str, on_progress: Callable[[ChildProgress], None]
    ) -> Job:
        """Make a job, whose folder and inputs last until it is released.

        Raises:
            TaskFailed: the task cannot be executed.
        """
        handler = self._handlers.get(pair)
        if handler is None:
            raise TaskFailed("This worker does not execute the type.", ERROR_CATEGORY_INTERNAL, retryable=True)
        refs = handler.inputs(spec, task)
        payload = ChildJob(
            job_id=task.id, kind=pair.kind, spec=without_data(spec, refs), task=task, folder=self._folders.name()
        )
        if (trace := tracing.current()) is not None:
            payload.traceparent = trace.traceparent
            payload.traced = spans.recording(trace)
        keyed = self._batch_keys.get(pair)
        if not refs:
            key = _batch_key(payload, None if keyed is None else keyed(spec, task), pair, ())
            return Job(pair, key, payload, on_progress)
        async with AsyncExitStack() as held:
            held.callback(self._folders.remove, payload.folder)
            refused: dict[str, MeshError] = {}
            files = await self._fetched(held, tenant, refs, self._folders.make(payload.folder), refused)
            payload.inputs.update({name: str(path) for name, path in files.items()})
            payload.refused_inputs.update({name: reason_of(name, error) for name, error in refused.items()})
            # A batch is made with its first member's LoRAs. Tasks name them within their tenant, so that two may mean
            # different files by one path: the files are compared.
            loras = tuple((ref.name, files[ref.name]) for ref in refs if ref.kind == "lora")
            key = _batch_key(payload, None if keyed is None else keyed(spec, task), pair, loras)
            return Job(pair, key, payload, on_progress, held=held.pop_all())

    async def release(self, job: Job) -> None:
        """Remove a job's folder and give its inputs back."""
        if job.held is not None:
            await job.held.aclose()
        else:
            self._folders.remove(job.payload.folder)

    async def _fetched(
        self,
        held: AsyncExitStack,
        tenant: str,
        refs: Sequence[InputRef],
        folder: Path,
        refused: dict[str, MeshError],
    ) -> Mapping[str, Path]:
        try:
            files = await held.enter_async_context(self._inputs.fetched(tenant, refs, folder, refused))
            passing = [error for error in refused.values() if error.kind not in CALLERS_FAULT]
            if passing and not files:
                raise passing[0]
        except MeshError as error:
            raise failed_input(error) from error
        return files


def _batch_key(payload: ChildJob, key: Hashable | None, *more: Hashable) -> Hashable | None:
    """Return what is equal for jobs that may run together.

    Raises:
        TaskFailed: no frame carries the job.
    """
    size = payload.ByteSize()
    if size > _MAX_JOB_BYTES:
        raise TaskFailed("The task is too large to be executed.", ERROR_CATEGORY_VALIDATION, retryable=False)
    return None if key is None or size > _MAX_SHARED_BYTES else (*more, key)


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
        if field.type != FieldDescriptor.TYPE_STRING:
            continue
        if field.is_repeated:
            value[:] = [long.get(item, item) for item in value]
        elif value in long:
            setattr(fields, field.name, long[value])
    return short


def reason_of(name: str, error: MeshError) -> str:
    """Return why an input could not be had, in a sentence that names it."""
    return error.message if error.message.startswith(name) else f"{name}: {error.message}"


def failed_input(error: MeshError) -> TaskFailed:
    """Return the failure of a task whose input could not be fetched."""
    if error.kind in CALLERS_FAULT:
        where = f"{error.violations[0].path}: " if error.violations else ""
        return TaskFailed(f"{where}{error.message}", ERROR_CATEGORY_VALIDATION, retryable=False)
    return TaskFailed(f"An input could not be fetched: {error.message}", ERROR_CATEGORY_RESOURCE, retryable=True)
