"""A bridge from chunks that arrive on the event loop to a library that reads from a thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from concurrent.futures import CancelledError, Future


class ChunkReader:
    """Presents an async iterator of chunks as a file that a client reads in its thread.

    Args:
        loop: The loop that the chunks come from.
        chunks: The chunks.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, chunks: AsyncIterator[bytes]) -> None:
        self._loop = loop
        self._chunks = chunks
        self._rest = b""
        self._ended = False
        self._abandoned = False
        self._lock = threading.Lock()
        self._waiting: Future[bytes | None] | None = None
        self.count = 0
        self.failure: Exception | None = None

    def read(self, size: int = -1) -> bytes:
        """Read as files do; blocks, so call it from a thread.

        Args:
            size: Bytes to wait for, fewer only at the end; -1 for all.

        Raises:
            ConnectionAbortedError: The upload was given up.
        """
        parts: list[bytes] = []
        wanted = size
        while not self._ended and (size < 0 or wanted > 0):
            if not self._rest:
                self._rest = self._next()
                continue
            part = self._rest if size < 0 else self._rest[:wanted]
            self._rest = self._rest[len(part) :]
            wanted -= len(part)
            parts.append(part)
        data = b"".join(parts)
        self.count += len(data)
        return data

    def close(self) -> None:
        """Release the thread with an error: it must not take the chunks so far for the whole."""
        with self._lock:
            self._abandoned = True
            if self._waiting is not None:
                self._waiting.cancel()

    def _next(self) -> bytes:
        with self._lock:
            if self._abandoned:
                raise ConnectionAbortedError("the upload was given up")
            self._waiting = waiting = asyncio.run_coroutine_threadsafe(self._pull(), self._loop)
        try:
            chunk = waiting.result()
        except CancelledError:
            raise ConnectionAbortedError("the upload was given up") from None
        except Exception as error:
            self.failure = error
            self._ended = True
            raise
        if chunk is None:
            self._ended = True
            return b""
        return chunk

    async def _pull(self) -> bytes | None:
        async for chunk in self._chunks:
            if chunk:
                return chunk
        return None
