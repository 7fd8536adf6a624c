"""Streams of messages as server-sent events.

An event's `id` is the version of what it shows, so that a browser which reconnects with `Last-Event-ID` goes on after
the last one it saw. Its name is that of the response's first message-typed member (`task`). Comments keep proxies from
closing a silent stream. Where the service behind a stream stops or dies, the stream goes on at another replica, or at
the same one once it is back, after the last version that was sent: its caller notices a pause at most.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import orjson
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from starlette.types import Receive, Send

from meshkit.errors import ErrorKind, MeshError
from meshkit.transcoding.errors import HttpError
from meshkit.transcoding.options import nested

HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    # Proxies that buffer would hold every event back.
    (b"x-accel-buffering", b"no"),
]
KEEP_ALIVE = b": keep-alive\n\n"
# How long a browser waits before it comes again after a lost connection.
RETRY = b"retry: 2000\n\n"

AFTER_VERSION = "after_version"

# How long a stream whose service is gone is tried again, and the pauses between.
_RESUME_SECONDS = 30.0
_FIRST_PAUSE_SECONDS = 0.1
_LAST_PAUSE_SECONDS = 2.0


class Messages(Protocol):
    """The stream of a service."""

    async def __anext__(self) -> Message:
        """Return the next message."""
        ...

    def cancel(self) -> None:
        """End the call."""
        ...


@dataclass(frozen=True, slots=True)
class EventShape:
    """How the messages of one stream become events.

    Attributes:
        name: The event's name.
        version: Reads the version of a message, 0 where it has none.
    """

    name: str
    version: Callable[[Any], int]


def event_shape(descriptor: Descriptor) -> EventShape:
    """Return the shape of a stream's events, by its message type."""
    inner = next((one for one in descriptor.fields if one.message_type is not None and not one.is_repeated), None)
    if _versioned(descriptor):
        return EventShape(inner.name if inner is not None else "message", lambda message: int(message.version))
    if inner is not None and _versioned(nested(inner)):
        name = inner.name
        return EventShape(name, lambda message: int(getattr(message, name).version))
    return EventShape(inner.name if inner is not None else "message", lambda _: 0)


def _versioned(descriptor: Descriptor) -> bool:
    one = descriptor.fields_by_name.get("version")
    return one is not None and one.cpp_type in {FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_UINT64}


def event(name: str, data: bytes, version: int = 0) -> bytes:
    """Render one event; JSON has no line breaks of its own, so that one data line holds it."""
    ident = b"id: %d\n" % version if version else b""
    return b"event: %s\n%sdata: %s\n\n" % (name.encode("ascii"), ident, data)


async def until_gone(receive: Receive) -> None:
    """Wait until the caller leaves."""
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream:
    """One stream on its way to one caller.

    Args:
        begin: Begins the stream of a service, after a version where one is given.
        shape: How its messages become events.
        encode: Renders a message as JSON.
        error: Renders a domain error.
        stopping: Set when the process ends; the caller is then let go, to come again elsewhere.
        keep_alive_seconds: Longest silence.
        resumes: Whether the stream can begin after a version.
    """

    def __init__(
        self,
        begin: Callable[[int | None], Messages],
        *,
        shape: EventShape,
        encode: Callable[[Message], bytes],
        error: Callable[[MeshError], HttpError],
        stopping: asyncio.Event,
        keep_alive_seconds: float,
        resumes: bool,
    ) -> None:
        self._begin = begin
        self._resumes = resumes
        self._version: int | None = None
        self._shape = shape
        self._encode = encode
        self._error = error
        self._stopping = stopping
        self._keep_alive = keep_alive_seconds

    async def serve(self, receive: Receive, send: Send) -> None:
        """Send the stream until it ends, the caller leaves or the process stops.

        Raises:
            MeshError: the service refused before the first event; nothing was sent yet.
        """
        self._messages = self._begin(None)
        gone = asyncio.ensure_future(until_gone(receive))
        stop = asyncio.ensure_future(self._stopping.wait())
        read = asyncio.ensure_future(self._next())
        started = False
        try:
            while True:
                done, _ = await asyncio.wait(
                    {gone, stop, read}, timeout=self._keep_alive, return_when=asyncio.FIRST_COMPLETED
                )
                if gone in done:
                    return
                if read in done and not started:
                    read.result()  # an error before the first event is an ordinary answer
                if not started:
                    await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
                    await self._send(send, RETRY)
                    started = True
                if read in done:
                    if not await self._forward(read, send):
                        break
                    read = asyncio.ensure_future(self._next())
                elif stop in done:
                    break
                else:
                    await self._send(send, KEEP_ALIVE)
            await send({"type": "http.response.body", "body": b""})
        finally:
            for future in (gone, stop, read):
                future.cancel()
            await asyncio.gather(gone, stop, read, return_exceptions=True)
            self._messages.cancel()

    async def _next(self) -> Message | None:
        """Return the next message, None at the end; begin the stream again where its service is gone."""
        pause, until = _FIRST_PAUSE_SECONDS, 0.0
        while True:
            try:
                return await anext(self._messages)
            except StopAsyncIteration:
                return None
            except MeshError as error:
                # What was refused before its first event is an ordinary answer.
                if not self._resumes or not self._version or error.kind is not ErrorKind.UNAVAILABLE:
                    raise
                until = until or time.monotonic() + _RESUME_SECONDS
                if time.monotonic() + pause > until:
                    raise
            self._messages.cancel()
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 -- jitter, not a secret
            pause = min(2 * pause, _LAST_PAUSE_SECONDS)
            self._messages = self._begin(self._version)

    async def _forward(self, read: asyncio.Future[Message | None], send: Send) -> bool:
        try:
            message = read.result()
        except MeshError as error:
            answer = self._error(error)
            await self._send(send, event("error", orjson.dumps({"status": answer.status, **answer.body})))
            return False
        if message is None:
            return False
        version = self._shape.version(message)
        self._version = version or self._version
        await self._send(send, event(self._shape.name, self._encode(message), version))
        return True

    @staticmethod
    async def _send(send: Send, chunk: bytes) -> None:
        await send({"type": "http.response.body", "body": chunk, "more_body": True})
