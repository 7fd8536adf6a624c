"""A provider's server for tests: real sockets, one handler, counters, and misbehaviour on demand.

A subclass speaks one provider's protocol in `answer`. What it is asked is counted before any misbehaviour acts, so that
`paid` is the number of requests that a real provider would have charged.
"""

import asyncio
import contextlib
import io
import json
import re
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self
from urllib.parse import parse_qsl, unquote, urlsplit

from PIL import Image

_REASONS = {200: "OK", 202: "Accepted", 302: "Found", 400: "Bad Request", 429: "Too Many Requests", 500: "Error"}


@dataclass(frozen=True)
class Asked:
    """A request as it came."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body) if self.body else None


@dataclass(frozen=True)
class Reply:
    """An answer; one of pieces is sent piece by piece, with a pause after each."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    pieces: tuple[bytes, ...] = ()
    pause: float = 0.0

    @classmethod
    def of(cls, document: object, status: int = 200, **headers: str) -> "Reply":
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return cls(status, json.dumps(document).encode(), {"content-type": "application/json", **named})


@dataclass(frozen=True)
class Misbehaviour:
    """What a server does instead of answering as it should.

    `unread` closes the connection before it reads the request; `read` does what it was asked, and closes the
    connection before it answers; `half` sends half of the answer. `slow` waits so many seconds first. A reply is sent
    as it is, and nothing is done that was asked.
    """

    name: str
    cut: Literal["unread", "read", "half"] | None = None
    slow: float = 0.0
    reply: Reply | None = None

    def __str__(self) -> str:
        return self.name


CUT_UNREAD = Misbehaviour("cut_before_read", cut="unread")
CUT_READ = Misbehaviour("cut_after_read", cut="read")
CUT_HALF = Misbehaviour("cut_in_answer", cut="half")
SLOW = Misbehaviour("slow", slow=60.0)
TOO_MANY = Misbehaviour("too_many_by_header", reply=Reply.of({"detail": "slow down"}, 429, retry_after="7"))
NO_CREDITS = Misbehaviour("no_credits", reply=Reply.of({"detail": "no credits"}, 402))
FORBIDDEN = Misbehaviour("forbidden", reply=Reply.of({"detail": "forbidden"}, 403))
UNAUTHORISED = Misbehaviour("unauthorised", reply=Reply.of({"detail": "who are you?"}, 401))
BROKEN = Misbehaviour("broken", reply=Reply.of({"detail": "oops"}, 500))
BAD_GATEWAY = Misbehaviour("bad_gateway", reply=Reply(502, b"<html>bad gateway</html>", {"content-type": "text/html"}))
NO_JSON = Misbehaviour("malformed_json", reply=Reply(200, b'{"a": [1,', {"content-type": "application/json"}))
HTML = Misbehaviour("html", reply=Reply(200, b"<html>hello</html>", {"content-type": "text/html"}))
REDIRECT = Misbehaviour("redirect", reply=Reply(302, b"", {"location": "http://127.0.0.1:9/elsewhere"}))


@dataclass
class _Planned:
    misbehaviour: Misbehaviour
    method: str
    path: re.Pattern[str]
    times: int


class ProviderServer(ABC):
    """A server on a port of its own.

    Use it as an asynchronous context manager, or `start_in_thread` it where the test itself is not asynchronous.

    Attributes:
        asked: Requests that were read, in their order.
        paid: How many of them a provider would charge; `charges` tells which.
        connections: Connections that were made.
    """

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.paid = 0
        self.connections = 0
        self.files: dict[str, Reply] = {}
        self._planned: deque[_Planned] = deque()
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self._port = 0

    # What a subclass says.

    @abstractmethod
    async def answer(self, asked: Asked) -> Reply:
        """Do what is asked, and answer."""

    def charges(self, asked: Asked) -> bool:
        """Whether the provider takes money for such a request."""
        return asked.method == "POST"

    # What a test says.

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def host(self) -> str:
        """As `ATELIER_FETCH_ALLOW_PRIVATE` takes it."""
        return f"127.0.0.1:{self._port}"

    def serve_file(self, name: str, data: bytes, content_type: str = "image/png", status: int = 200) -> str:
        """Have a file at an address, and return that."""
        self.files[f"/files/{name}"] = Reply(status, data, {"content-type": content_type})
        return f"{self.url}/files/{name}"

    def misbehave(self, how: Misbehaviour, *, method: str = "", path: str = "", times: int = 1) -> None:
        """Misbehave at the next requests that fit; `unread` at the next connection, whatever it brings."""
        self._planned.append(_Planned(how, method, re.compile(path), times))

    def count(self, method: str, path: str = "") -> int:
        """How many requests of this kind were read."""
        return sum(1 for asked in self.asked if asked.method == method and re.search(path, asked.path))

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self._port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for writer in list(self._open):
            writer.transport.abort()
        await self._server.wait_closed()

    @contextlib.contextmanager
    def in_thread(self) -> Any:
        """Serve from a thread of its own, for tests that are not asynchronous."""
        loop = asyncio.new_event_loop()
        ready = threading.Event()

        async def main() -> None:
            async with self:
                ready.set()
                await stop.wait()

        stop = asyncio.Event()
        thread = threading.Thread(target=lambda: loop.run_until_complete(main()), daemon=True)
        thread.start()
        ready.wait(60)
        try:
            yield self
        finally:
            loop.call_soon_threadsafe(stop.set)
            thread.join(10)
            loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._open.add(writer)
        try:
            if (planned := self._next_unread()) is not None:
                self._use(planned)
                writer.transport.abort()
                return
            while await self._exchange(reader, writer):
                pass
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._open.discard(writer)
            writer.transport.abort()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        asked = await _read(reader)
        if asked is None:
            return False
        self.asked.append(asked)
        planned = self._next(asked)
        how = None if planned is None else planned.misbehaviour
        if planned is not None:
            self._use(planned)
        if how is not None and how.slow:
            await asyncio.sleep(how.slow)
        if how is not None and how.reply is not None:
            reply = how.reply
        else:
            if self.charges(asked):
                self.paid += 1
            found = self.files.get(asked.path) if asked.method == "GET" else None
            reply = await self.answer(asked) if found is None else found
        if how is not None and how.cut == "read":
            return False
        data = _encoded(reply, head=asked.method == "HEAD")
        if how is not None and how.cut == "half":
            writer.write(data[: len(data) - max(1, len(reply.body) // 2)])
            await writer.drain()
            writer.write_eof()
            return False
        if reply.pieces:
            await _send_pieces(writer, reply)
        else:
            writer.write(data)
            await writer.drain()
        return asked.headers.get("connection", "").lower() != "close"

    def _next_unread(self) -> _Planned | None:
        return next((planned for planned in self._planned if planned.misbehaviour.cut == "unread"), None)

    def _next(self, asked: Asked) -> _Planned | None:
        for planned in self._planned:
            if planned.method in ("", asked.method) and planned.path.search(asked.path):
                return planned
        return None

    def _use(self, planned: _Planned) -> None:
        planned.times -= 1
        if planned.times <= 0:
            self._planned.remove(planned)


async def _read(reader: asyncio.StreamReader) -> Asked | None:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.split("\r\n")
    method, target, _ = first.split(" ", 2)
    headers = {
        name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)
    }
    if headers.get("transfer-encoding", "").lower() == "chunked":
        body = b""
        while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readuntil(b"\r\n")
    else:
        body = await reader.readexactly(int(headers.get("content-length", "0")))
    parts = urlsplit(target)
    return Asked(method, unquote(parts.path), dict(parse_qsl(parts.query)), headers, body)


def _encoded(reply: Reply, *, head: bool = False) -> bytes:
    lines = [f"HTTP/1.1 {reply.status} {_REASONS.get(reply.status, 'Status')}"]
    lines += [f"{name}: {value}" for name, value in reply.headers.items()]
    lines.append(f"content-length: {len(reply.body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + (b"" if head else reply.body)


async def _send_pieces(writer: asyncio.StreamWriter, reply: Reply) -> None:
    lines = [f"{name}: {value}" for name, value in reply.headers.items()]
    head = [f"HTTP/1.1 {reply.status} {_REASONS[reply.status]}", *lines, "transfer-encoding: chunked", "", ""]
    writer.write("\r\n".join(head).encode("latin-1"))
    for piece in (*reply.pieces, b""):
        writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        await writer.drain()
        await asyncio.sleep(reply.pause if piece else 0)


def png(width: int = 64, height: int = 48, colour: str | tuple[int, ...] = "teal", mode: str = "RGB") -> bytes:
    """Return a picture of one colour as a PNG."""
    buffer = io.BytesIO()
    Image.new(mode, (width, height), colour).save(buffer, "PNG")
    return buffer.getvalue()


def jpeg(width: int = 64, height: int = 48, colour: str = "teal") -> bytes:
    """Return a picture of one colour as a JPEG."""
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(buffer, "JPEG")
    return buffer.getvalue()


Answering = Callable[[Asked], Reply]


class PlainServer(ProviderServer):
    """A server of one function, for tests of what all providers share."""

    def __init__(self, answering: Answering) -> None:
        super().__init__()
        self._answering = answering

    async def answer(self, asked: Asked) -> Reply:
        return self._answering(asked)
