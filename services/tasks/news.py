"""Telling others at once what the database holds already. All of it may be lost: whoever needs to know looks again."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from uuid import UUID

from meshkit.bus import Bus
from services.tasks.convert import to_ref
from services.tasks.domain import Ref, TaskRecord
from services.tasks.events import CANCEL_SUBJECT, PROGRESS_SUBJECT, STEP_ENDED_SUBJECT, WAKE_SUBJECT, step_ended


class News:
    """What happened, for this process and the others.

    Args:
        bus: The bus.
        origin: Marks this process, which has heard its own news already.
    """

    def __init__(self, bus: Bus, origin: bytes) -> None:
        self._bus = bus
        self._origin = origin
        self._on_waiting: list[Callable[[str], None]] = []
        self._on_commit: list[Callable[[], None]] = []

    def on_waiting(self, listener: Callable[[str], None]) -> None:
        """Has a listener called when a task begins to wait in a queue."""
        self._on_waiting.append(listener)

    def on_commit(self, listener: Callable[[], None]) -> None:
        """Has a listener called after a commit that wrote events."""
        self._on_commit.append(listener)

    def waiting(self, queue: str) -> None:
        """A task waits in a queue."""
        for listener in self._on_waiting:
            listener(queue)
        self._bus.notify(f"{WAKE_SUBJECT}.{queue}", self._origin)

    def committed(self) -> None:
        """Events were written."""
        for listener in self._on_commit:
            listener()

    def ended(self, records: Iterable[TaskRecord]) -> None:
        """Tasks changed their state: workflows hear of the ends of their steps without waiting for the relay."""
        for record in records:
            event = step_ended(record)
            if event is not None:
                self._bus.notify(STEP_ENDED_SUBJECT, event)

    def cancelled(self, session: UUID, ref: Ref) -> None:
        """A worker's attempt was cancelled."""
        self._bus.notify(f"{CANCEL_SUBJECT}.{session}", to_ref(ref).SerializeToString())

    def progress(self, task_id: UUID, event: bytes) -> None:
        """An attempt progressed."""
        self._bus.notify(f"{PROGRESS_SUBJECT}.{task_id}", event)

    def heard(self, queue: str, origin: bytes) -> None:
        """Another replica says that a task waits."""
        if origin != self._origin:
            for listener in self._on_waiting:
                listener(queue)
