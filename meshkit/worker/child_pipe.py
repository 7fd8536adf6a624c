"""The parent's end of the socketpair between a worker and its child."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

from atelier.inference.v1.child_pb2 import FromChild

from meshkit.logging import get_logger
from meshkit.wire import FrameDecoder, WireError

_log = get_logger(__name__)


class ChildPipe(asyncio.Protocol):
    """Takes the child's frames, and sends frames to it.

    Args:
        on_frame: Takes each frame of the child.
    """

    def __init__(self, on_frame: Callable[[FromChild], None]) -> None:
        self._decoder = FrameDecoder(FromChild)
        self._on_frame = on_frame
        self._unsent: list[bytes] = []
        self.transport: asyncio.Transport | None = None
        self.closed = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Note the connection."""
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is one, though it does not inherit from it

    def data_received(self, data: bytes) -> None:
        """Pass whole frames on."""
        try:
            for frame in self._decoder.feed(data):
                self._on_frame(frame)
        except WireError:
            _log.exception("child_frame_invalid")
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 -- asyncio's signature
        """Note that it is over."""
        self.closed.set()

    def send(self, frame: bytes) -> None:
        """Send a frame. Frames of one turn of the event loop are written together, so that the child wakes once."""
        if not self._unsent:
            asyncio.get_running_loop().call_soon(self._flush)
        self._unsent.append(frame)

    def _flush(self) -> None:
        frames, self._unsent = self._unsent, []
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write(b"".join(frames))

    def close(self) -> None:
        """End the connection now."""
        if self.transport is not None:
            self.transport.abort()
        self.closed.set()
