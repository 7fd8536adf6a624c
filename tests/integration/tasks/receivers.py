"""Receivers of webhooks over real sockets, which do as a test tells them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson

from atelier_cli.embedded.process import free_ports


@dataclass
class Receiver:
    """One receiver.

    Attributes:
        port: Where it listens.
        statuses: Answers of the next requests; `otherwise` answers those after them.
        retry_after: What it answers in the header of that name to requests that fail.
        hangs: Whether it takes requests and never answers.
        requests: Headers and body of each request, as they came.
    """

    port: int
    otherwise: int = 200
    statuses: list[int] = field(default_factory=list)
    location: str = ""
    retry_after: str = ""
    hangs: bool = False
    requests: list[tuple[dict[str, str], bytes]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    @property
    def ids(self) -> list[str]:
        return [headers["webhook-id"] for headers, _ in self.requests]

    @property
    def bodies(self) -> list[dict[str, Any]]:
        return [orjson.loads(body) for _, body in self.requests]

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
            self.requests.append((headers, await reader.readexactly(int(headers["content-length"]))))
            if self.hangs:
                await reader.read()
                return
            status = self.statuses.pop(0) if self.statuses else self.otherwise
            more = f"location: {self.location}\r\n" if self.location else ""
            if self.retry_after and status >= 400:
                more += f"retry-after: {self.retry_after}\r\n"
            writer.write(f"HTTP/1.1 {status} X\r\n{more}content-length: 2\r\nconnection: close\r\n\r\nok".encode())
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


def free_port() -> int:
    return free_ports(1)[0]


@asynccontextmanager
async def receiving(port: int = 0, **how: Any) -> AsyncIterator[Receiver]:
    """A receiver that is up."""
    receiver = Receiver(port or free_port(), **how)
    server = await asyncio.start_server(receiver.answer, "127.0.0.1", receiver.port)
    try:
        yield receiver
    finally:
        server.close()
