"""HTTP connections that are bounded, and that write an answer's head and its content at once.

uvicorn bounds neither the bytes of a request's head nor the time that a head or a content takes, nor does it tell a
peer that reads nothing; and it does not hold a request to its one `Host`.

It writes an answer's head and its content one after the other, and uvloop hands each to the kernel as it comes: twice
the system calls, and a caller that is woken by the head only to wait for the rest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import orjson
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from meshkit import tracing
from services.gateway.connections import ConnectionGate, note_closed
from services.gateway.live.protocol import GuardedSocket
from services.gateway.refusals import RefusalLog

# Content of this size is written by itself: joining would copy it for less than the saved call costs.
_ALONE_BYTES = 64 * 1024
# How long a connection stays after its last answer, for the peer to read it.
_LINGER_SECONDS = 2.0


class CorkedTransport:
    """A transport that holds a write until the next one, or until the loop has nothing else to do at once.

    Args:
        inner: The transport that writes.
        loop: Its event loop.
    """

    def __init__(self, inner: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._inner = inner
        self._loop = loop
        self._held = b""

    def write(self, data: bytes) -> None:
        """Write bytes, those of two calls in a row together."""
        if self._held:
            held, self._held = self._held, b""
            if len(data) < _ALONE_BYTES:
                self._inner.write(held + data)
                return
            self._inner.write(held)
            self._inner.write(data)
        elif len(data) < _ALONE_BYTES:
            self._held = data
            self._loop.call_soon(self._flush)
        else:
            self._inner.write(data)

    def _flush(self) -> None:
        if self._held:
            held, self._held = self._held, b""
            if not self._inner.is_closing():
                self._inner.write(held)

    def is_closing(self) -> bool:
        """Whether the connection is closed or about to be; asked once an answer, so not through `__getattr__`."""
        return self._inner.is_closing()

    def write_eof(self) -> None:
        """Tell the peer, once everything is written, that nothing follows."""
        self._flush()
        self._inner.write_eof()

    def close(self) -> None:
        """Close the connection once everything is written."""
        self._flush()
        self._inner.close()

    def __getattr__(self, name: str) -> Any:
        # What is read of a transport, and what only stops it from reading, does not touch what is held.
        return getattr(self._inner, name)


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """What a connection is given.

    Attributes:
        head_bytes: Most bytes of a request's line and headers.
        head_seconds: How long they may take to arrive.
        content_seconds: How long a request's content may take to arrive.
        write_seconds: How long a peer may take nothing of an answer.
    """

    head_bytes: int
    head_seconds: float
    content_seconds: float
    write_seconds: float


class _RefusedError(Exception):
    """Ends the parser's work: what it read will not be served."""


class GuardedHttp(HttpToolsProtocol):
    """uvicorn's protocol over a corked transport, bounded in bytes, time and number of connections.

    Args:
        limits: What a connection is given.
        gate: Counts connections.
        refusals: Logs what is refused here.
        options: Arguments of uvicorn's own.
    """

    def __init__(self, limits: HttpLimits, gate: ConnectionGate, refusals: RefusalLog, **options: Any) -> None:
        super().__init__(**options)
        # What takes the connection over where a request upgrades it; the gate counts it as this one.
        self.ws_protocol_class = cast(
            "Any", partial(GuardedSocket, limits.write_seconds, partial(gate.gone, self), note_closed)
        )
        self._limits = limits
        self._gate = gate
        self._refusals = refusals
        # Where the parser is: in a request's head, in its content, or in neither.
        self._in_head = False
        self._in_content = False
        # Bytes taken since a head began or since the last piece of content.
        self._unread = 0
        self._refusal: tuple[int, str] | None = None
        # Nothing that still comes is looked at.
        self._deaf = False
        self._head_timer = _Timer(self.loop, limits.head_seconds, self._head_late)
        self._content_timer = _Timer(self.loop, limits.content_seconds, self._content_late)
        self._write_timer = _Timer(self.loop, limits.write_seconds, self._write_late)
        self._linger_timer = _Timer(self.loop, _LINGER_SECONDS, self._leave)

    # -- the connection ------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as in uvicorn
        """Begin to serve a connection, or turn it away."""
        super().connection_made(cast("asyncio.Transport", CorkedTransport(transport, self.loop)))
        if not self._gate.admit(self, self.client[0] if self.client else ""):
            self._answer(503, "The gateway holds as many connections as it can", b"retry-after: 1\r\n")
            return
        self._head_timer.start()

    def connection_lost(self, exc: Exception | None) -> None:
        """End what belongs to the connection."""
        self._gate.gone(self)
        for timer in (self._head_timer, self._content_timer, self._write_timer, self._linger_timer):
            timer.stop()
        super().connection_lost(exc)

    def make_room(self) -> None:
        """Close a connection at rest; see `ConnectionGate`."""
        self.transport.close()

    def data_received(self, data: bytes) -> None:
        """Take what came."""
        if self._deaf:
            return
        self._unread += len(data)
        super().data_received(data)
        if self._deaf or self.transport.is_closing():
            return
        if self._unread > self._limits.head_bytes and (self._in_head or self._in_content):
            # Within content, this is the head of a chunk, or trailers.
            self._refuse(431, f"The request's head is larger than {self._limits.head_bytes} bytes", "head_size")
        elif self._in_content:
            self._content_timer.start()
        elif self._in_head or self.cycle is None or self.cycle.response_complete:
            # Also for line breaks before a request: they end the time at rest.
            self._head_timer.start()

    # -- the parser ----------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Begin a request."""
        self._in_head = True
        self._unread = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Check a request's head and serve it."""
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > self._limits.head_bytes:
            self._refusal = (431, f"The request's head is larger than {self._limits.head_bytes} bytes")
            note_closed("head_size")
            raise _RefusedError
        hosts = sum(name == b"host" for name, _ in self.headers)
        # RFC 9112, 3.2.
        if hosts > 1 or (not hosts and self.parser.get_http_version() == "1.1"):
            self._refusal = (400, "A request needs one Host header" if not hosts else "A request has one Host header")
            note_closed("host")
            raise _RefusedError
        self._in_head, self._in_content = False, True
        self._unread = 0
        self._head_timer.stop()
        self._gate.busy(self)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Take a piece of a request's content."""
        self._unread = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """End a request's content."""
        self._in_content = False
        self._content_timer.stop()
        super().on_message_complete()

    def handle_websocket_upgrade(self) -> None:
        """Give the connection to the protocol of WebSockets."""
        self._deaf = True
        for timer in (self._head_timer, self._content_timer, self._write_timer):
            timer.stop()
        super().handle_websocket_upgrade()

    def on_response_complete(self) -> None:
        """Let the connection rest, or go on with the next request that is there already."""
        super().on_response_complete()
        if not self.pipeline and (self.cycle is None or self.cycle.response_complete):
            self._gate.rest(self)

    # -- what is refused -----------------------------------------------------------------------------------------

    def send_400_response(self, msg: str) -> None:
        """Answer what is no request, or what a check of its head refused."""
        status, text = self._refusal or (400, msg)
        if self._refusal is None:
            note_closed("malformed")
        self._refuse(status, text)

    def _refuse(self, status: int, text: str, cause: str = "") -> None:
        if cause:
            note_closed(cause)
        answering = self.cycle is not None and not self.cycle.response_complete
        if not answering:
            self._answer(status, text)
        elif self.pipeline and self._in_content:
            # It is not the turn of the request that is refused: there is no place for an answer.
            self.transport.close()
        elif self._in_content and not self.cycle.response_started:
            # The request at hand is the one that is refused: nobody will answer it any more.
            self.cycle.response_started = self.cycle.response_complete = True
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            self._answer(status, text)
        elif self._in_content:
            self.transport.close()
        else:
            # An earlier request is being answered; its answer is the last one.
            self._deaf = True
            self.cycle.keep_alive = False

    def _answer(self, status: int, text: str, more: bytes = b"") -> None:
        """Answer outside of any request, then close; what the peer still sends is dropped meanwhile.

        To close while something is unread resets the connection, and the peer may never see the answer.
        """
        self._deaf = True
        content = orjson.dumps({"detail": text})
        ident = self._request_id()
        self._refusals.note(status, text, self.client[0] if self.client else None, ident)
        head = STATUS_LINE[status] + b"content-type: application/json\r\ncontent-length: %d\r\n" % len(content)
        head += b"x-request-id: %s\r\n" % ident.encode("ascii")
        self.transport.write(head + more + b"connection: close\r\n\r\n" + content)
        self.transport.write_eof()
        self._head_timer.stop()
        self._content_timer.stop()
        if self._gate.may_linger(self):
            self._linger_timer.start()
        else:
            self.transport.close()

    def _request_id(self) -> str:
        # Of the request at hand, as far as its head came; those of the one before it are another's.
        given = dict(self.headers) if self._in_head or self._in_content else {}
        named = (given.get(name, b"").decode("latin-1") for name in (b"traceparent", b"x-request-id"))
        return tracing.begin(*named).request_id

    # -- what takes too long -------------------------------------------------------------------------------------

    def _head_late(self) -> None:
        if self.transport.is_closing():
            return
        if self._in_head:
            self._refuse(408, f"The request's head did not arrive within {self._limits.head_seconds:g} seconds", "head")
        else:
            note_closed("silent")
            self.transport.close()

    def _content_late(self) -> None:
        if self.transport.is_closing() or not self._in_content:
            return
        if self.flow.read_paused:
            # The peer waits for the gateway.
            self._content_timer.start()
            return
        seconds = self._limits.content_seconds
        if self.cycle.response_complete:
            note_closed("content")
            self.transport.close()
        else:
            self._refuse(408, f"The request's content did not arrive within {seconds:g} seconds", "content")

    def pause_writing(self) -> None:
        """Wait for the peer to take what was written, for a while."""
        super().pause_writing()
        self._write_timer.start()

    def resume_writing(self) -> None:
        """Go on: the peer took something."""
        super().resume_writing()
        self._write_timer.stop()

    def _write_late(self) -> None:
        note_closed("write")
        self.transport.abort()

    def _leave(self) -> None:
        self.transport.abort()


class _Timer:
    """Calls back after a time, unless it is stopped before; to start it while it runs changes nothing."""

    __slots__ = ("_callback", "_handle", "_loop", "_seconds")

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float, callback: Callable[[], None]) -> None:
        self._loop = loop
        self._seconds = seconds
        self._callback = callback
        self._handle: asyncio.TimerHandle | None = None

    def start(self) -> None:
        if self._handle is None:
            self._handle = self._loop.call_later(self._seconds, self._run)

    def stop(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _run(self) -> None:
        self._handle = None
        self._callback()
