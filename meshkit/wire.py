"""Frames between a process and its child: a 4-byte big-endian length, then one serialised protobuf message.

Nothing here is ever unpickled, and bulk data travels as files in the attempt's folder, so a frame is small.
"""

from __future__ import annotations

import socket
import struct
from typing import Generic, TypeVar

from google.protobuf.message import DecodeError, Message

MAX_FRAME_BYTES = 32 << 20
"""No frame is larger: a task's text fields and a preview are far below it, and a broken length is seen at once."""

_LENGTH = struct.Struct(">I")
_READ_BYTES = 256 << 10

FrameT = TypeVar("FrameT", bound=Message)


class WireError(Exception):
    """The other side sent no valid frame; the connection cannot be used any more."""


def pack(message: Message) -> bytes:
    """Serialise `message` as one frame.

    Raises:
        WireError: it is larger than a frame may be.
    """
    body = message.SerializeToString()
    if len(body) > MAX_FRAME_BYTES:
        raise WireError(f"a frame of {len(body)} bytes is above the limit of {MAX_FRAME_BYTES}")
    return _LENGTH.pack(len(body)) + body


class FrameDecoder(Generic[FrameT]):
    """Cuts a stream of bytes into messages of one type, however the bytes arrive."""

    def __init__(self, message_type: type[FrameT]) -> None:
        self._type = message_type
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[FrameT]:
        """Take `data` and return every message that is complete now.

        Raises:
            WireError: a length is above the limit, or a body is no such message.
        """
        buffer = self._buffer
        buffer += data
        frames: list[FrameT] = []
        start, end = 0, len(buffer)
        while end - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(buffer, start)
            if length > MAX_FRAME_BYTES:
                raise WireError(f"a frame announces {length} bytes")
            stop = start + _LENGTH.size + length
            if stop > end:
                break
            try:
                frames.append(self._type.FromString(bytes(buffer[start + _LENGTH.size : stop])))
            except DecodeError as error:
                raise WireError("a frame's body is no message") from error
            start = stop
        if start:
            del buffer[:start]
        return frames


class BlockingPipe(Generic[FrameT]):
    """The child's end: one thread receives, one sends."""

    def __init__(self, sock: socket.socket, receives: type[FrameT]) -> None:
        self._socket = sock
        self._socket.settimeout(None)
        self._decoder = FrameDecoder(receives)

    def receive(self) -> list[FrameT] | None:
        """Block for frames; None once the other side has closed."""
        while True:
            try:
                data = self._socket.recv(_READ_BYTES)
            except ConnectionError:
                return None
            if not data:
                return None
            if frames := self._decoder.feed(data):
                return frames

    def send(self, frames: bytes) -> None:
        """Send packed frames.

        Raises:
            OSError: the other side has closed.
        """
        self._socket.sendall(frames)
