"""Servers on loopback that callers name in their tasks: some hang, one trickles, one takes webhooks."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time

from atelier_cli.embedded.process import free_ports

_HANGING_PORTS = 80


class Peers(threading.Thread):
    """The servers, in a thread of their own.

    Attributes:
        hanging: Ports that take a request and never answer.
        trickling: The port that sends a picture, one byte a second.
        hook: The port that takes webhooks.
        arrived: When the end of each task was told.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.arrived: dict[str, float] = {}
        *self.hanging, self.trickling, self.hook = free_ports(_HANGING_PORTS + 2)
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()

    @property
    def allowed(self) -> str:
        """What a mesh has to be told, to speak to them."""
        return ",".join(f"127.0.0.1:{port}" for port in (*self.hanging, self.trickling, self.hook))

    def run(self) -> None:
        """Serve until the process ends."""
        self._loop.run_until_complete(self._start())
        self._ready.set()
        self._loop.run_forever()

    def started(self) -> Peers:
        """Start and wait until all listen."""
        self.start()
        self._ready.wait(30)
        return self

    async def _start(self) -> None:
        for port in self.hanging:
            await asyncio.start_server(self._hang, "127.0.0.1", port)
        await asyncio.start_server(self._trickle, "127.0.0.1", self.trickling)
        await asyncio.start_server(self._take, "127.0.0.1", self.hook)

    async def _hang(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while await reader.read(65_536):
                pass
        writer.close()

    async def _trickle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(
                b"HTTP/1.1 200 OK\r\ncontent-type: image/png\r\ncontent-length: 100000\r\n\r\n\x89PNG\r\n\x1a\n"
            )
            for _ in range(70):
                await writer.drain()
                await asyncio.sleep(1)
                writer.write(b"\0")
        writer.close()

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            length = int(head.split("content-length:")[1].split("\r\n")[0])
            event = json.loads(await reader.readexactly(length))
            if event.get("status") == "COMPLETED":
                self.arrived[event["task_id"]] = time.monotonic()
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            await writer.drain()
        writer.close()
