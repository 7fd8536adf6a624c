"""Tell others at once of what is committed already. A notice may be lost, and nothing depends on it."""

from __future__ import annotations

from collections.abc import Callable
from uuid import UUID

from meshkit.bus import Bus
from services.training.events import NOTICE_SUBJECT


class TrainingNotices:
    """Wakes watchers in all processes, and the relay in this one.

    Args:
        bus: Carries notices.
        on_commit: Called after a commit that wrote events.
    """

    def __init__(self, bus: Bus, on_commit: Callable[[], None]) -> None:
        self._bus = bus
        self._on_commit = on_commit

    def changed(self, training_id: UUID) -> None:
        """Tell that a training has changed."""
        self._on_commit()
        self._bus.notify(f"{NOTICE_SUBJECT}.{training_id}")
