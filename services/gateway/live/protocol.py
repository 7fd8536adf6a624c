"""WebSocket connections: uvicorn's protocol, bounded as those of HTTP are.

uvicorn waits for ever for a peer that takes nothing, also once the connection is to be closed. Here such a peer is
dropped after a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

if TYPE_CHECKING:
    from uvicorn._types import ASGISendEvent

# How long a connection stays after its last message, for the peer to read it.
_LINGER_SECONDS = 2.0


class GuardedSocket(WebSocketsSansIOProtocol):
    """One WebSocket connection.

    Args:
        write_seconds: How long a peer may take nothing.
        gone: Told of the connection's end.
        note_closed: Told why it was dropped.
        options: Arguments of uvicorn's own.
    """

    def __init__(
        self, write_seconds: float, gone: Callable[[], None], note_closed: Callable[[str], None], **options: Any
    ) -> None:
        super().__init__(**options)
        self._write_seconds = write_seconds
        self._gone = gone
        self._note_closed = note_closed
        self._late: asyncio.TimerHandle | None = None

    def connection_lost(self, exc: Exception | None) -> None:
        """End what belongs to the connection."""
        self._stop_timer()
        self._gone()
        super().connection_lost(exc)

    async def send(self, message: ASGISendEvent) -> None:
        """Send what the application says."""
        await super().send(message)
        if message["type"] == "websocket.http.response.body" and not message.get("more_body", False):
            # Else uvicorn takes the answer for one that is missing, and logs it as an error.
            self.handshake_complete = True

    def pause_writing(self) -> None:
        """Wait for the peer to take what was written, for a while."""
        super().pause_writing()
        self._drop_in(self._write_seconds)

    def resume_writing(self) -> None:
        """Go on: the peer took something."""
        super().resume_writing()
        if not self.close_sent:
            self._stop_timer()

    def on_task_complete(self, task: asyncio.Task[None]) -> None:
        """Close, whether or not the peer takes what is left."""
        super().on_task_complete(task)
        self._stop_timer()
        self._drop_in(_LINGER_SECONDS)

    def _drop_in(self, seconds: float) -> None:
        if self._late is None and not self.disconnected:
            self._late = self.loop.call_later(seconds, self._drop)

    def _stop_timer(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _drop(self) -> None:
        self._late = None
        self._note_closed("write")
        self.transport.abort()
