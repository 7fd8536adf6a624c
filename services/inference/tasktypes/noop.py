"""NOOP: exercises the mesh without a model, for tests and benchmarks.

It takes steps of a given length, fails the first attempts on demand, and misbehaves on the first one: it hangs, ends
the process, or allocates until it is stopped.
"""

from __future__ import annotations

import os
import time
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from atelier.tasks.v1.enums_pb2 import ERROR_CATEGORY_INTERNAL, ERROR_CATEGORY_RESOURCE, TASK_TYPE_NOOP, TaskType
from atelier.tasks.v1.noop_pb2 import CreateNoopTask, NoopTaskPublic
from atelier.tasks.v1.task_pb2 import CreateTask, Task, TaskResult

from meshkit.worker.handlers import (
    InputRef,
    Need,
    Output,
    OutputFile,
    TaskCancelled,
    TaskContext,
    TaskFailed,
)

_RESULT_NAME = "result.bin"
_POLL_SECONDS = 0.02  # a cancel is seen this fast inside a long step
_ALLOCATED_AT_ONCE = 16 << 20
_ALLOCATED_AT_MOST = 4 << 30  # no machine is brought down by a worker whose budget is above this


class NoopHandler:
    """Executes NOOP tasks."""

    task_type: TaskType.ValueType = TASK_TYPE_NOOP
    families: tuple[str, ...] = ()

    def inputs(self, spec: CreateTask, task: Task) -> Sequence[InputRef]:  # noqa: ARG002 -- the handlers' protocol
        """Name no inputs."""
        return ()

    def batch_key(self, spec: CreateTask, task: Task) -> Hashable | None:  # noqa: ARG002 -- the handlers' protocol
        """Never batch: each NOOP must cost what a task costs."""
        return None

    def needs(self, spec: CreateTask, task: Task) -> Sequence[Need]:  # noqa: ARG002 -- the handlers' protocol
        """Name no models."""
        return ()

    def run(
        self,
        batch: Sequence[TaskContext],
        lent: Mapping[str, Any],  # noqa: ARG002 -- the handlers' protocol
    ) -> Sequence[Output | Exception]:
        """Execute one after the other."""
        outcomes: list[Output | Exception] = []
        for context in batch:
            try:
                outcomes.append(_execute(context))
            except (TaskFailed, TaskCancelled) as outcome:
                outcomes.append(outcome)
        return outcomes


def handler() -> NoopHandler:
    """Return the handler of the type."""
    return NoopHandler()


def _execute(context: TaskContext) -> Output:
    noop, attempt = context.spec.noop, context.task.attempt
    started = time.monotonic()
    if noop.fault and attempt <= 1:
        _misbehave(noop.fault)
    for step in range(noop.steps):
        _step(context, noop.step_ms / 1000)
        context.progress(step + 1, noop.steps)
    if context.cancelled():
        raise TaskCancelled
    if attempt <= noop.failures:
        raise TaskFailed(f"Attempt {attempt} fails as asked.", ERROR_CATEGORY_INTERNAL, retryable=True)
    files: tuple[OutputFile, ...] = ()
    if noop.HasField("result_bytes"):
        (context.folder / _RESULT_NAME).write_bytes(bytes(noop.result_bytes))
        files = (OutputFile(_RESULT_NAME, "application/octet-stream", "result_path"),)
    return Output(TaskResult(noop=_public(noop)), files, time.monotonic() - started)


def _public(noop: CreateNoopTask) -> NoopTaskPublic:
    result = NoopTaskPublic()
    if noop.HasField("payload"):
        result.payload = noop.payload
    return result


def _step(context: TaskContext, seconds: float) -> None:
    end = time.monotonic() + seconds
    while True:
        if context.cancelled():
            raise TaskCancelled
        left = end - time.monotonic()
        if left <= 0:
            return
        time.sleep(min(left, _POLL_SECONDS))


def _misbehave(fault: str) -> None:
    if fault == "exit":
        os._exit(3)
    kept: list[bytearray] = []
    while fault == "allocate" and len(kept) * _ALLOCATED_AT_ONCE < _ALLOCATED_AT_MOST:
        block = bytearray(_ALLOCATED_AT_ONCE)
        block[::4096] = b"\1" * len(block[::4096])  # an untouched page takes no memory
        kept.append(block)
        time.sleep(0.01)
    while fault == "hang":
        time.sleep(3600)
    raise TaskFailed("The worker has more memory than the task allocates.", ERROR_CATEGORY_RESOURCE, retryable=True)
