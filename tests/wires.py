"""A wire before a server that can be cut: nothing passes then, and nobody is told, as where a network drops packets."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator

from meshkit.loops import cancel


class Wire:
    """Carries connections to a server; everything but `cut` and `mend` belongs to one event loop.

    Args:
        host: Of the server.
        port: Of the server.
    """

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._passes = asyncio.Event()
        self._passes.set()
        self._carrying: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    @property
    def address(self) -> str:
        """Where to connect to in place of the server."""
        assert self._server is not None
        return f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def open(self) -> None:
        """Take connections."""
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)

    def cut(self) -> None:
        """Let nothing pass; what is sent is taken, as by the kernel of a machine that hangs."""
        self._passes.clear()

    def mend(self) -> None:
        """Let pass what came meanwhile, and what comes."""
        self._passes.set()

    async def close(self) -> None:
        """Take no more connections, and drop those that are open."""
        assert self._server is not None
        self.mend()
        self._server.close()
        await cancel(self._carrying)
        await asyncio.sleep(0.05)  # sockets that were aborted are closed in the loop's next round

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._passes.wait()
        try:
            inner_reader, inner_writer = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            return
        for one, other in ((reader, inner_writer), (inner_reader, writer)):
            task = asyncio.create_task(self._carry(one, other))
            self._carrying.add(task)
            task.add_done_callback(self._carrying.discard)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                await self._passes.wait()
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.transport.abort()


class CutWire:
    """A wire whose loop runs in a thread of its own, for tests that have none."""

    def __init__(self, wire: Wire, loop: asyncio.AbstractEventLoop) -> None:
        self._wire = wire
        self._loop = loop
        self.address = wire.address

    def cut(self) -> None:
        """Let nothing pass."""
        self._loop.call_soon_threadsafe(self._wire.cut)

    def mend(self) -> None:
        """Let all pass again."""
        self._loop.call_soon_threadsafe(self._wire.mend)


@contextlib.contextmanager
def wired(host: str, port: int) -> Iterator[CutWire]:
    """Run a wire in a thread."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def made() -> Wire:
        wire = Wire(host, port)
        await wire.open()
        return wire

    try:
        wire = asyncio.run_coroutine_threadsafe(made(), loop).result()
        yield CutWire(wire, loop)
        asyncio.run_coroutine_threadsafe(wire.close(), loop).result()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
