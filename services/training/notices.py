"""Tell others at once of what is committed already. A notice may be lost, and nothing depends on it."""

from __future__ import annotations

import time
from collections.abc import Callable
from uuid import UUID

from meshkit.bus import Bus
from services.training.domain import TrainingRecord
from services.training.events import NOTICE_SUBJECT, PROGRESS_SUBJECT, training_progressed

# Between two notices of how far a training is.
PROGRESS_SECONDS = 1.0


class TrainingNotices:
    """Wakes watchers in all processes, and the relay in this one.

    Args:
        bus: Carries notices.
        on_commit: Called after a commit that wrote events.
        clock: Monotonic seconds.
    """

    def __init__(self, bus: Bus, on_commit: Callable[[], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._bus = bus
        self._on_commit = on_commit
        self._clock = clock
        # When the trainings of the last moment were told of.
        self._told: dict[UUID, float] = {}

    def changed(self, training_id: UUID) -> None:
        """Tell that a training has changed."""
        self._on_commit()
        self._bus.notify(f"{NOTICE_SUBJECT}.{training_id}")

    def progressed(self, record: TrainingRecord) -> None:
        """Tell those who listen live how far a training is, at most once a second."""
        now = self._clock()
        self._told = {one: at for one, at in self._told.items() if now - at < PROGRESS_SECONDS}
        if record.id not in self._told:
            self._told[record.id] = now
            self._bus.notify(f"{PROGRESS_SUBJECT}.{record.id}", training_progressed(record).SerializeToString())
