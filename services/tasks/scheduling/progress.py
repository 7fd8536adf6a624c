"""Progress of attempts: over core NATS a few times a second, into the row once a second at most."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from uuid import UUID

from atelier.events.v1 import events_pb2
from atelier.tasks.v1 import worker_service_pb2

from services.tasks.convert import from_ref
from services.tasks.domain import JobKind
from services.tasks.notifier import Notifier
from services.tasks.owners import JobOwner
from services.tasks.store import ProgressNote, TaskStore

MIN_INTERVAL_SECONDS = 0.25
_REMEMBERED = 10_000


class ProgressRelay:
    """Passes progress on.

    Args:
        store: The database.
        notifier: The bus.
        clock: Monotonic seconds.
    """

    def __init__(self, store: TaskStore, notifier: Notifier, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._notifier = notifier
        self._clock = clock
        self._sent: OrderedDict[UUID, tuple[float, int]] = OrderedDict()
        self._notes: dict[UUID, ProgressNote] = {}

    def report(self, session: UUID, items: Iterable[tuple[worker_service_pb2.Progress, JobOwner]]) -> None:
        """Take progress of attempts that are the session's, each with whose job it is.

        How far a job of another service is, that service tells: it counts what comes before and after the attempt too.
        """
        now = self._clock()
        for item, owner in items:
            ref = from_ref(item.ref)
            self._notes[ref.job_id] = ProgressNote(ref, session, item.progress)
            if owner.kind is not JobKind.TASK:
                continue
            last, phase = self._sent.get(ref.job_id, (None, None))
            early = last is not None and now - last < MIN_INTERVAL_SECONDS
            if early and item.progress < 100 and item.phase == phase:
                continue
            self._sent[ref.job_id] = (now, item.phase)
            self._sent.move_to_end(ref.job_id)
            if len(self._sent) > _REMEMBERED:
                self._sent.popitem(last=False)
            self._notifier.progress(ref.job_id, _event(item, owner.tenant))

    async def flush(self) -> None:
        """Write the latest progress of each task into its row; body of a loop."""
        notes, self._notes = self._notes, {}
        if notes:
            await self._store.write_progress(list(notes.values()))


def _event(item: worker_service_pb2.Progress, tenant: str) -> bytes:
    event = events_pb2.TaskProgressEvent(
        task_id=item.ref.job_id,
        tenant=tenant,
        attempt=item.ref.attempt,
        progress=item.progress,
        preview=item.preview,
        text=item.text,
    )
    if item.HasField("step"):
        event.step = item.step
    if item.HasField("total_steps"):
        event.total_steps = item.total_steps
    if item.phase:
        event.phase = item.phase
    if item.HasField("queue_position"):
        event.queue_position = item.queue_position
    return event.SerializeToString()
