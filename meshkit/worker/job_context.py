"""One attempt, as its handler sees it."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from atelier.inference.v1.child_pb2 import ChildJob, ChildMessage, ChildProgress
from atelier.tasks.v1.phase_pb2 import TASK_PHASE_RUNNING, TASK_PHASE_UPSCALING, TaskPhase
from atelier.tasks.v1.service_requests_pb2 import ServiceRequest
from atelier.tasks.v1.task_pb2 import CreateTask, Task
from atelier.tasks.v1.worker_service_pb2 import JOB_KIND_TASK

from meshkit.worker.runner import ServiceCalls

_PROGRESS_INTERVAL_SECONDS = 0.05
_MAX_TEXT = 32_768  # characters; bound of Progress.text


def _to_nobody(message: ChildMessage) -> None:
    raise RuntimeError(f"nobody takes the message {message.kind} of this job")


class JobContext:
    """One attempt; what a task's handler is given, in the child and in the parent.

    Attributes:
        job_id: Identifier of the task.
        spec: The task as accepted.
        task: The task as it stands; `task.attempt` is the number of this attempt.
        inputs: Local files of the inputs, by name.
        refused_inputs: Why inputs that are not required could not be had, by name.
        kind: Kind of the job.
        traceparent: W3C trace context.
        traced: Whether its trace is recorded.

    Args:
        job: The attempt.
        report: Takes its progress.
        calls: What it asks of its provider; a job of a device asks nobody.
        say: Takes its messages.
    """

    __slots__ = (
        "_calls",
        "_cancelled",
        "_folder",
        "_heard",
        "_number",
        "_on_pause",
        "_paused",
        "_phase",
        "_report",
        "_reported",
        "_say",
        "_step",
        "_total",
        "inputs",
        "job_id",
        "kind",
        "refused_inputs",
        "spec",
        "task",
        "traced",
        "traceparent",
    )

    def __init__(
        self,
        job: ChildJob,
        report: Callable[[ChildProgress], None],
        calls: ServiceCalls | None = None,
        say: Callable[[ChildMessage], None] = _to_nobody,
    ) -> None:
        self.job_id: str = job.job_id
        self.spec: CreateTask = job.spec
        self.task: Task = job.task
        self._folder: str = job.folder
        self.inputs: Mapping[str, Path] = {name: Path(path) for name, path in job.inputs.items()}
        self.refused_inputs: Mapping[str, str] = dict(job.refused_inputs)
        self.kind = job.kind or JOB_KIND_TASK
        self.traceparent = job.traceparent
        self.traced = job.traced
        self._number = job.number
        self._report = report
        self._say = say
        self._heard: queue.SimpleQueue[ChildMessage] = queue.SimpleQueue()
        self._cancelled = self._paused = False
        self._on_pause: Callable[[], None] | None = None
        self._calls = calls or ServiceCalls()
        self._reported = -1.0
        self._step = self._total = 0
        self._phase: TaskPhase.ValueType = TASK_PHASE_RUNNING

    @property
    def folder(self) -> Path:
        """Folder of the attempt, made when it is asked for: many small tasks need none."""
        folder = Path(self._folder)
        folder.mkdir(exist_ok=True)
        return folder

    @property
    def number(self) -> int:
        """Number that names the attempt to the supervisor."""
        return self._number

    def progress(self, step: int, total: int, preview: bytes | None = None, *, text: str | None = None) -> None:
        """Report that `step` of `total` is done; also feeds the step deadline of a child.

        Steps that come faster than twenty a second are thinned out, with their texts; the last one and previews are
        always told.
        """
        now = time.monotonic()
        if preview is None and step < total and now - self._reported < _PROGRESS_INTERVAL_SECONDS:
            return
        self._reported = now
        self._step, self._total = step, total
        self._report(
            ChildProgress(
                number=self._number,
                step=step,
                total=total,
                preview=preview or b"",
                phase=self._phase,
                text=(text or "")[:_MAX_TEXT],
            )
        )

    def begins(self, phase: TaskPhase.ValueType, *, position: int | None = None) -> None:
        """Report what the attempt is at from now on; `position` counts the requests that its provider serves first."""
        self._phase = phase
        self._report(
            ChildProgress(number=self._number, step=self._step, total=self._total, phase=phase, queue_position=position)
        )

    @property
    def open_requests(self) -> Sequence[ServiceRequest]:
        """What earlier attempts have asked the provider, and what has not ended."""
        return self._calls.open

    async def note(self, request: ServiceRequest) -> None:
        """Write a request to the provider down as it stands; see `CallContext.note`."""
        await self._calls.note(request)

    @property
    def called_off(self) -> bool:
        """Whether nobody goes on with its requests once it is cancelled."""
        return self._calls.called_off

    def upscaling(self) -> None:
        """Report that the picture is drawn, and is being enlarged."""
        if self._phase != TASK_PHASE_UPSCALING:
            self.begins(TASK_PHASE_UPSCALING)

    def cancelled(self) -> bool:
        """Tell whether the attempt is to stop; read between steps."""
        return self._cancelled

    def cancel(self) -> None:
        """Ask the attempt to stop; called by another thread than the one that runs it."""
        self._cancelled = True

    def paused(self) -> bool:
        """Tell whether the attempt is to stop where another one can go on; read between steps."""
        return self._paused

    def pause(self) -> None:
        """Ask the attempt to stop where another one can go on; called by another thread in a child."""
        self._paused = True
        if self._on_pause is not None:
            self._on_pause()

    def on_pause(self, callback: Callable[[], None]) -> None:
        """Have `callback` called once the attempt is asked to pause, at once if it has been."""
        self._on_pause = callback
        if self._paused:
            callback()

    def say(self, kind: str, text: str) -> None:
        """Tell who waits for the job something before its end."""
        self._say(ChildMessage(number=self._number, kind=kind, text=text))

    def hear(self, message: ChildMessage) -> None:
        """Keep what was said to the job until it looks; called by another thread than the one that runs it."""
        self._heard.put(message)

    def heard(self) -> Sequence[ChildMessage]:
        """Take what was said to the job since the last look."""
        messages = []
        while not self._heard.empty():  # one thread takes
            messages.append(self._heard.get())
        return messages
