"""HTTP connections that write an answer's head and its content at once.

uvicorn writes the two one after the other, and uvloop hands each to the kernel as it comes: twice the system calls, and
a caller that is woken by the head only to wait for the rest.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

# Content of this size is written by itself: joining would copy it for less than the saved call costs.
_ALONE_BYTES = 64 * 1024


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

    def close(self) -> None:
        """Close the connection once everything is written."""
        self._flush()
        self._inner.close()

    def __getattr__(self, name: str) -> Any:
        # What is read of a transport, and what only stops it from reading, does not touch what is held.
        return getattr(self._inner, name)


class CorkedHttp(HttpToolsProtocol):
    """uvicorn's protocol over such a transport."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as in uvicorn
        """Begin to serve a connection."""
        super().connection_made(cast("asyncio.Transport", CorkedTransport(transport, self.loop)))
