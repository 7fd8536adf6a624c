"""Notify others at once of what is committed already.

A notice may be lost, and nothing depends on it: whoever needs to know reads the database again after a while.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from uuid import UUID

from meshkit.bus import Bus
from services.tasks.convert import to_ref
from services.tasks.domain import AttemptRef, TaskRecord
from services.tasks.events import CANCEL_SUBJECT, PROGRESS_SUBJECT, STEP_ENDED_SUBJECT, WAKE_SUBJECT, step_ended

# Between two notices of one queue: a replica that was woken just now is about to read the queue anyway.
WAKE_SECONDS = 0.005


class Notifier:
    """Notifies this process and the others.

    Args:
        bus: Carries notices to the others.
        origin: Marks this process, so that it passes over its own notices.
        on_waiting: Called when a task begins to wait in a queue, in whatever process.
        on_commit: Called after a commit that wrote events.
        on_ended: Called with each task whose attempt has ended, after the commit.
    """

    def __init__(
        self,
        bus: Bus,
        origin: bytes,
        *,
        on_waiting: Callable[[str], None],
        on_commit: Callable[[], None],
        on_ended: Callable[[TaskRecord], None],
    ) -> None:
        self._bus = bus
        self._origin = origin
        self._on_waiting = on_waiting
        self._on_commit = on_commit
        self._on_ended = on_ended
        # Queues whose notice was just sent, and whether another one is due.
        self._told: dict[str, bool] = {}

    def waiting(self, queue: str) -> None:
        """Tell that a task waits in a queue."""
        self._on_waiting(queue)
        if queue in self._told:
            self._told[queue] = True
        else:
            self._wake_others(queue)

    def committed(self) -> None:
        """Tell that events were committed."""
        self._on_commit()

    def ended(self, records: Iterable[TaskRecord]) -> None:
        """Tell watchers and workflows of ended attempts, ahead of the relay."""
        for record in records:
            self._on_ended(record)
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
        """Take the notice of another replica that a task waits."""
        if origin != self._origin:
            self._on_waiting(queue)
