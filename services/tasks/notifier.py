"""Telling others at once what the database holds already. All of it may be lost: whoever needs to know looks again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from uuid import UUID

from meshkit.bus import Bus
from services.tasks.convert import to_ref
from services.tasks.domain import AttemptRef, TaskRecord
from services.tasks.events import CANCEL_SUBJECT, PROGRESS_SUBJECT, STEP_ENDED_SUBJECT, WAKE_SUBJECT, step_ended

# Between two wakes of one queue: whoever was woken a moment ago is about to look anyway.
WAKE_SECONDS = 0.005


class Notifier:
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
        self._on_ended: list[Callable[[TaskRecord], None]] = []
        # Queues that were told of just now, and whether there is more to tell.
        self._told: dict[str, bool] = {}

    def on_waiting(self, listener: Callable[[str], None]) -> None:
        """Has a listener called when a task begins to wait in a queue."""
        self._on_waiting.append(listener)

    def on_commit(self, listener: Callable[[], None]) -> None:
        """Has a listener called after a commit that wrote events."""
        self._on_commit.append(listener)

    def on_ended(self, listener: Callable[[TaskRecord], None]) -> None:
        """Has a listener called with each task whose attempt has ended, after the commit."""
        self._on_ended.append(listener)

    def waiting(self, queue: str) -> None:
        """Tell that a task waits in a queue."""
        for listener in self._on_waiting:
            listener(queue)
        if queue in self._told:
            self._told[queue] = True
        else:
            self._wake_others(queue)

    def committed(self) -> None:
        """Events were written."""
        for listener in self._on_commit:
            listener()

    def ended(self, records: Iterable[TaskRecord]) -> None:
        """Tell watchers and workflows of ended attempts, ahead of the relay."""
        for record in records:
            for listener in self._on_ended:
                listener(record)
            event = step_ended(record)
            if event is not None:
                self._bus.notify(STEP_ENDED_SUBJECT, event)

    def cancelled(self, session: UUID, ref: AttemptRef) -> None:
        """Tell a worker that its attempt was cancelled."""
        self._bus.notify(f"{CANCEL_SUBJECT}.{session}", to_ref(ref).SerializeToString())

    def progress(self, task_id: UUID, event: bytes) -> None:
        """Tell of an attempt's progress."""
        self._bus.notify(f"{PROGRESS_SUBJECT}.{task_id}", event)

    def _wake_others(self, queue: str) -> None:
        self._bus.notify(f"{WAKE_SUBJECT}.{queue}", self._origin)
        self._told[queue] = False
        asyncio.get_running_loop().call_later(WAKE_SECONDS, self._tell_rest, queue)

    def _tell_rest(self, queue: str) -> None:
        if self._told.pop(queue):
            self._wake_others(queue)

    def heard(self, queue: str, origin: bytes) -> None:
        """Another replica says that a task waits."""
        if origin != self._origin:
            for listener in self._on_waiting:
                listener(queue)
