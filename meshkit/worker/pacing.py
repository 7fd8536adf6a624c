"""How soon a worker polls again: a poll costs the mesh nearly as much for one task as for thirty."""

from __future__ import annotations

_MANY = 8
_BUSY_SECONDS = 0.02
_GATHER_SECONDS = 0.015
_TURNOVER_SECONDS = 0.008


def pause(given: int, wanted: int, took_seconds: float) -> float:
    """Seconds to wait before the next poll.

    Args:
        given: Tasks that the last one was answered with.
        wanted: Tasks that it asked for.
        took_seconds: How long its answer took.
    """
    if given == wanted >= _MANY:
        # More waits there. A poll at once could ask for no more than is held beside what was just given, and small
        # tasks are over in a moment.
        return _TURNOVER_SECONDS
    if given >= _MANY or (0 < given < wanted and took_seconds < _BUSY_SECONDS):
        return _GATHER_SECONDS  # work keeps coming
    return 0.0
