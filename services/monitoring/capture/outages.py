"""What a loop does while something that it calls is away: it waits, and the log tells why, once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from meshkit.errors import TRANSIENT, ErrorKind, MeshError
from meshkit.logging import get_logger

_log = get_logger(__name__)

AWAY = frozenset({ErrorKind.UNAVAILABLE, ErrorKind.DEADLINE, ErrorKind.EXHAUSTED})
"""Errors that are of a service, whatever the photo."""
MOST_TRIES = 5
"""So often a photo is tried that a service fails at; then it gives way to the others."""

# So many turns in a row that had to wait are told by health checks; a single one is a restart, or a lost connection.
_TOLD_TURNS = 3


class Outage:
    """Times in which something is away.

    Args:
        waiting: What waits meanwhile, for the log.
    """

    def __init__(self, waiting: str) -> None:
        self._waiting = waiting
        self._reason = ""  # why it waits; empty where it does not
        self._turns = 0

    @property
    def lasts(self) -> bool:
        """Whether it has waited for several turns in a row."""
        return self._turns >= _TOLD_TURNS

    async def bridge(self, work: Callable[[], Awaitable[bool]]) -> bool:
        """Do some work, or find that it has to wait.

        Returns:
            Whether there is more to do at once; False where something is away.

        Raises:
            MeshError: The work failed for a reason that does not pass by itself.
        """
        try:
            more = await work()
        except MeshError as error:
            if error.kind not in TRANSIENT:
                raise
            if self._reason != error.reason:
                _log.warning("outage_began", waiting=self._waiting, reason=error.reason, cause=error.message)
            self._reason = error.reason
            self._turns += 1
            return False
        if self._reason:
            _log.info("outage_ended", waiting=self._waiting)
        self._reason, self._turns = "", 0
        return more
