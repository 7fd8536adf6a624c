"""The log of requests that never reach the application: malformed, too slow, too large a head, no room.

Whoever sends them needs no token, so that their lines are bounded; `http_connections_closed_total` counts them all.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from meshkit.logging import get_logger

_log = get_logger(__name__)

_SPAN_SECONDS = 60.0
_MOST_LINES = 60


class RefusalLog:
    """Writes at most so many lines a minute.

    Args:
        clock: Seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # What `get_logger` gives looks for its settings at every line.
        self._log = _log.bind()
        self._began = clock()
        self._lines = 0
        self._left_out = 0

    def note(self, status: int, reason: str, client: str | None, request_id: str) -> None:
        """Write a line about a request that was refused, or count it for the next line.

        Args:
            status: What it was answered.
            reason: The answer's text.
            client: Its address.
            request_id: The identifier in the answer.
        """
        now = self._clock()
        if now - self._began >= _SPAN_SECONDS:
            self._began, self._lines = now, 0
        if self._lines >= _MOST_LINES:
            self._left_out += 1
            return
        self._lines += 1
        left_out, self._left_out = self._left_out, 0
        more = {"left_out_before": left_out} if left_out else {}
        self._log.warning("request_refused", status=status, reason=reason, client=client, request_id=request_id, **more)
