"""`InferenceService`: decode, call, encode."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
from atelier.inference.v1.child_pb2 import ChildDone, ChildProgress
from atelier.inference.v1.inference_service_pb2 import (
    DescribeRequest,
    DescribeResponse,
    RunFile,
    RunRequest,
    RunResponse,
)
from atelier.inference.v1.inference_service_pb2_grpc import InferenceServiceServicer
from atelier.tasks.v1.enums_pb2 import (
    ERROR_CATEGORY_RESOURCE,
    ERROR_CATEGORY_TIMEOUT,
    ERROR_CATEGORY_VALIDATION,
)
from atelier.tasks.v1.task_pb2 import Task

from meshkit import auth, tracing
from meshkit.errors import ErrorKind, MeshError
from meshkit.worker import child_spans, metrics
from meshkit.worker.handlers import TaskFailed
from meshkit.worker.host import DevicePool
from meshkit.worker.pairs import Pair, pair_of
from meshkit.worker.runner import Job, JobLost
from meshkit.worker.uploads import name_files, result_file

Context = grpc.aio.ServicerContext[Any, Any]

_KINDS = {
    ERROR_CATEGORY_VALIDATION: ErrorKind.INVALID,
    ERROR_CATEGORY_TIMEOUT: ErrorKind.DEADLINE,
    ERROR_CATEGORY_RESOURCE: ErrorKind.UNAVAILABLE,
}


class _LatestProgress:
    """The newest progress that a caller has not read. A slow caller misses older reports."""

    def __init__(self) -> None:
        self._report: ChildProgress | None = None
        self._ended = False
        self._changed = asyncio.Event()

    def put(self, report: ChildProgress) -> None:
        if self._report is not None:  # previews are rare: the last one is kept, and the last text
            report.preview = report.preview or self._report.preview
            report.text = report.text or self._report.text
        self._report = report
        self._changed.set()

    def end(self) -> None:
        self._ended = True
        self._changed.set()

    async def get(self) -> ChildProgress | None:
        """Return the newest report once there is one; None once all are read and no more will come."""
        while self._report is None and not self._ended:
            self._changed.clear()
            await self._changed.wait()
        report, self._report = self._report, None
        return report


class InferenceServicer(InferenceServiceServicer):
    """Direct execution and a description of the worker.

    Args:
        name: The worker's name.
        queues: Queues it serves.
        pairs: What it runs on its device.
        device: The pool of its device.
    """

    def __init__(self, *, name: str, queues: Sequence[str], pairs: Sequence[Pair], device: DevicePool) -> None:
        self._name = name
        self._queues = tuple(queues)
        self._types = tuple(pair.label for pair in pairs)
        self._preparer = device.pool.preparer
        self._runner = device.runner
        self._supervisor = device.supervisor

    async def Run(self, request: RunRequest, context: Context) -> AsyncIterator[RunResponse]:  # noqa: ARG002 -- an RPC
        """Execute a task at once, in a slot of its own."""
        tenant = auth.acting_tenant()
        newest = _LatestProgress()
        task = Task(id=str(uuid.uuid4()), attempt=1, origin_tenant_id=tenant)
        outcome = "aborted"
        pair = pair_of(request.task, task)
        try:
            async with (
                self._runner.claim(),
                self._preparer.prepared(pair, request.task, task, tenant, newest.put) as job,
            ):
                run = asyncio.ensure_future(self._runner.execute_claimed(job))
                run.add_done_callback(lambda _: newest.end())
                try:
                    while (report := await newest.get()) is not None:
                        yield _progress(report, previews=request.previews)
                    done = await run
                    child_spans.record(tracing.current(), done.spans)
                    last = await asyncio.to_thread(_last, job, done)
                finally:
                    if not run.done():  # the client is gone: its slot is free once the child has stopped
                        run.cancel()
                        await asyncio.gather(run, return_exceptions=True)
                outcome = "completed"
                yield last
        except TaskFailed as failure:
            outcome = "failed"
            raise _refused(failure) from failure
        except JobLost as lost:
            outcome = "failed"
            raise _refused(TaskFailed(lost.message, lost.category, retryable=True)) from lost
        finally:
            metrics.attempts(pair.label, f"direct_{outcome}").inc()

    async def Describe(self, request: DescribeRequest, context: Context) -> DescribeResponse:  # noqa: ARG002 -- an RPC
        """Tell what the worker serves and what it holds."""
        hello = self._supervisor.hello
        return DescribeResponse(
            name=self._name,
            task_types=self._types,
            queues=self._queues,
            slots=self._runner.slots,
            busy_slots=self._runner.busy,
            models=self._supervisor.resident.models,
            device="" if hello is None else hello.device,
            fault=self._runner.fault,
        )


def _progress(report: ChildProgress, *, previews: bool) -> RunResponse:
    return RunResponse(
        progress=100.0 * report.step / report.total if report.total > 0 else 0.0,
        step=report.step,
        total_steps=report.total,
        preview=report.preview if previews else b"",
        text=report.text,
    )


def _last(job: Job, done: ChildDone) -> RunResponse:
    """Return the last message: the result with its files, whose fields hold their names."""
    if done.HasField("failure"):
        raise TaskFailed(done.failure.message, done.failure.category, retryable=done.failure.retryable)
    if not done.HasField("output"):
        raise MeshError(ErrorKind.ABORTED, "The task was stopped.", reason="STOPPED")
    files = [
        RunFile(
            name=file.name,
            content_type=file.content_type,
            data=result_file(job.payload.folder, file).read_bytes(),
        )
        for file in done.output.files
    ]
    return RunResponse(progress=100.0, result=name_files(done.output, ""), files=files, errors=done.output.errors)


def _refused(failure: TaskFailed) -> MeshError:
    return MeshError(_KINDS.get(failure.category, ErrorKind.INTERNAL), failure.message, reason="TASK_FAILED")
