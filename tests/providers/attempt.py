"""An attempt as a provider's handler sees it, without a mesh: what it notes and reports is kept for the test."""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path

from atelier.tasks.v1.phase_pb2 import TaskPhase
from atelier.tasks.v1.service_requests_pb2 import (
    SERVICE_REQUEST_STATE_ACCEPTED,
    SERVICE_REQUEST_STATE_DONE,
    SERVICE_REQUEST_STATE_SENDING,
    ServiceRequest,
    ServiceRequestState,
)
from atelier.tasks.v1.task_pb2 import CreateTask, Task

_OPEN = (SERVICE_REQUEST_STATE_SENDING, SERVICE_REQUEST_STATE_ACCEPTED, SERVICE_REQUEST_STATE_DONE)


class FakeAttempt:
    """Satisfies `meshkit.worker.handlers.CallContext`.

    Attributes:
        notes: Every note, in order.
        rows: Each request as it was noted last.
        phases: What was begun, with the position at the provider.
        called_off: What a cancelled handler is told.
    """

    def __init__(
        self,
        folder: Path,
        spec: CreateTask | None = None,
        task: Task | None = None,
        inputs: Mapping[str, Path] | None = None,
        rows: Mapping[str, ServiceRequest] | None = None,
    ) -> None:
        self.job_id = "00000000-0000-4000-8000-000000000001"
        self.spec = spec or CreateTask()
        self.task = task or Task(id=self.job_id)
        self.inputs: Mapping[str, Path] = inputs or {}
        self.refused_inputs: Mapping[str, str] = {}
        self.rows: dict[str, ServiceRequest] = dict(rows or {})
        self._own: set[str] = set()  # requests of this attempt: a lease holds those of earlier ones alone
        self.notes: list[ServiceRequest] = []
        self.phases: list[tuple[int, int | None]] = []
        self.steps: list[float] = []
        self.texts: list[str] = []
        self.called_off = False
        self.lost = False
        self._folder = folder
        self._noted = asyncio.Condition()

    @property
    def folder(self) -> Path:
        return self._folder

    @property
    def open_requests(self) -> Sequence[ServiceRequest]:
        return [row for row in self.rows.values() if row.state in _OPEN and row.id not in self._own]

    @property
    def states(self) -> list[str]:
        """The states that were noted, in order."""
        return [ServiceRequestState.Name(note.state).removeprefix("SERVICE_REQUEST_STATE_") for note in self.notes]

    async def until(self, state: str) -> None:
        """Wait until a request was noted in this state."""
        async with self._noted:
            await self._noted.wait_for(lambda: state in self.states)

    async def note(self, request: ServiceRequest) -> None:
        if self.lost:
            raise asyncio.CancelledError
        await asyncio.sleep(0)
        kept = ServiceRequest()
        kept.CopyFrom(request)
        if kept.id not in self.rows:
            self._own.add(kept.id)
        self.rows[kept.id] = kept
        async with self._noted:
            self.notes.append(kept)
            self._noted.notify_all()

    def begins(self, phase: TaskPhase.ValueType, *, position: int | None = None) -> None:
        self.phases.append((phase, position))

    def progress(self, step: int, total: int, preview: bytes | None = None, *, text: str | None = None) -> None:
        self.steps.append(step / total)
        if text is not None:
            self.texts.append(text)

    def upscaling(self) -> None:
        pass

    def cancelled(self) -> bool:
        return False

    def again(self) -> "FakeAttempt":
        """Return the attempt that follows where this one's worker died."""
        return FakeAttempt(self._folder, self.spec, self.task, self.inputs, self.rows)
