"""Connections of `meshkit.pipeline`, kept between transactions."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import psycopg
from psycopg_pool import PoolClosed, PoolTimeout

from meshkit.pipeline import Pipeline, connect

_FIRST_PAUSE_SECONDS = 0.05
_LAST_PAUSE_SECONDS = 1.0


class PipelinePool:
    """Connections for transactions on a pipeline, opened when they are needed.

    Args:
        dsn: `postgresql://` address.
        options: Arguments of a connection.
        size: Connections at most.
        timeout_seconds: How long to wait for a free one, or for the server.
    """

    def __init__(self, dsn: str, options: Mapping[str, Any], *, size: int, timeout_seconds: float) -> None:
        self._dsn = dsn
        self._options = options
        self._timeout = timeout_seconds
        self._idle: list[Pipeline] = []
        self._free = asyncio.Semaphore(size)
        self._closed = False

    @asynccontextmanager
    async def acquire(self) -> AsyncIterator[Pipeline]:
        """Yield a connection for one transaction.

        Raises:
            psycopg.OperationalError: None was free in time, or the server did not answer.
        """
        if self._closed:
            message = "the pool is closed"
            raise PoolClosed(message)
        try:
            async with asyncio.timeout(self._timeout):
                await self._free.acquire()
        except TimeoutError:
            message = f"no connection was free within {self._timeout:g} s"
            raise PoolTimeout(message) from None
        try:
            pipeline = await self._idle_one() or await self._connect()
            try:
                yield pipeline
            finally:
                if pipeline.usable and not pipeline.aged and not self._closed:
                    self._idle.append(pipeline)
                else:
                    await pipeline.close()
        finally:
            self._free.release()

    async def discard(self) -> None:
        """Close the connections that are not in use: the next ones are new."""
        idle, self._idle = self._idle, []
        for pipeline in idle:
            await pipeline.close()

    async def close(self) -> None:
        """Close the connections; one that is in use is closed when it is given back."""
        self._closed = True
        await self.discard()

    async def _idle_one(self) -> Pipeline | None:
        while self._idle:
            pipeline = self._idle.pop()
            if pipeline.usable and not pipeline.aged:
                return pipeline
            await pipeline.close()
        return None

    async def _connect(self) -> Pipeline:
        pause, until = _FIRST_PAUSE_SECONDS, time.monotonic() + self._timeout
        while True:
            try:
                return await connect(self._dsn, self._options)
            except psycopg.OperationalError as error:
                # A server that restarts is back soon.
                if self._closed:
                    raise
                if time.monotonic() + pause > until:
                    message = f"the server did not answer within {self._timeout:g} s"
                    raise PoolTimeout(message) from error
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LAST_PAUSE_SECONDS)
