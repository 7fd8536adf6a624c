"""Changes of something, reported at once to its subscribers."""

from __future__ import annotations

from collections.abc import Callable


class Changes:
    """Passed to the one who calls it and to those who want to know; says that something may have changed, not what."""

    def __init__(self) -> None:
        self._subscribers: list[Callable[[], None]] = []

    def subscribe(self, callback: Callable[[], None]) -> None:
        """Have `callback` called at each change; it must not block."""
        self._subscribers.append(callback)

    def __call__(self) -> None:
        """Tell everyone, in the order they subscribed."""
        for callback in self._subscribers:
            callback()
