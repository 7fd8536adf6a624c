"""Pipelines whose server is gone, behind a proxy that can leave without a word."""

import asyncio
import contextlib
import os
import socket
import struct
import threading
from collections.abc import Iterator
from typing import Self
from urllib.parse import urlsplit

import psycopg
import pytest
import uvloop

from meshkit.db import Database, DatabaseUnavailableError, connection_options
from meshkit.pipeline import Pipeline, connect


async def backend(conn: Pipeline) -> int:
    row = await (await conn.execute("SELECT pg_backend_pid()")).fetchone()
    assert row is not None
    return int(row[0])


class Proxy:
    """Stands between a client and the server, and can leave without a word."""

    def __init__(self, dsn: str) -> None:
        self._to = urlsplit(dsn)
        self._writers: list[asyncio.StreamWriter] = []

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        netloc = self._to.netloc.rpartition(":")[0]
        self.dsn = self._to._replace(netloc=f"{netloc}:{self._server.sockets[0].getsockname()[1]}").geturl()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.drop()
        self._server.close()

    def drop(self) -> None:
        """Ends all connections on both sides."""
        writers, self._writers = self._writers, []
        for writer in writers:
            writer.transport.abort()

    async def reset(self, last: bytes) -> None:
        """Send all clients a last message and reset their connections."""
        clients = self._writers[::2]
        for writer in clients:
            own = writer.get_extra_info("socket")
            own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            os.write(own.fileno(), last)
        self.drop()
        for writer in clients:
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, forth = await asyncio.open_connection(self._to.hostname, self._to.port)
        self._writers += [writer, forth]
        await asyncio.gather(self._pass(reader, forth), self._pass(back, writer))

    @staticmethod
    async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()


async def sleepers(dsn: str) -> int:
    async with await psycopg.AsyncConnection.connect(dsn) as conn:
        cursor = await conn.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'"
        )
        row = await cursor.fetchone()
        assert row is not None
        return int(row[0])


async def gone(*pipelines: Pipeline) -> None:
    async with asyncio.timeout(60):
        while any(one.usable for one in pipelines):  # noqa: ASYNC110 -- what is waited for has no event
            await asyncio.sleep(0.01)


async def test_a_server_that_leaves_without_a_word_is_said_to_be_unavailable(fresh_postgres_dsn: str) -> None:
    async with Proxy(fresh_postgres_dsn) as proxy:
        database = Database(proxy.dsn, schema="public")
        await database.open()

        async def wait() -> None:
            async with database.pipeline() as conn:
                await (await conn.execute("SELECT pg_sleep(300)")).fetchall()

        waiting = [asyncio.create_task(wait()) for _ in range(3)]
        async with asyncio.timeout(60):
            while await sleepers(fresh_postgres_dsn) < 3:  # noqa: ASYNC110 -- what is waited for has no event
                await asyncio.sleep(0.05)
        proxy.drop()
        async with asyncio.timeout(60):
            outcomes = await asyncio.gather(*waiting, return_exceptions=True)
            assert [type(one) for one in outcomes] == [DatabaseUnavailableError] * 3
            async with database.pipeline() as conn:
                assert await backend(conn) > 0
        await database.close()


@contextlib.contextmanager
def loop_of_its_own() -> Iterator[asyncio.AbstractEventLoop]:
    """Run an event loop in a thread."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def test_a_reset_that_comes_with_the_last_answer_is_heard(fresh_postgres_dsn: str) -> None:
    told = b"SFATAL\0VFATAL\0C57P01\0Mthe server was killed\0\0"

    async def story(proxy: Proxy, elsewhere: asyncio.AbstractEventLoop) -> None:
        database = Database(proxy.dsn, schema="public")

        async def wait() -> None:
            async with database.pipeline() as conn:
                await conn.execute("SELECT pg_sleep(300)")  # all is sent, and the answer to the commit awaited

        waiting = asyncio.create_task(wait())
        async with asyncio.timeout(60):
            while await sleepers(fresh_postgres_dsn) < 1:  # noqa: ASYNC110 -- what is waited for has no event
                await asyncio.sleep(0.05)
            # This loop stands meanwhile, so that it sees the message and the reset at once.
            last = proxy.reset(b"E" + struct.pack("!I", len(told) + 4) + told)
            asyncio.run_coroutine_threadsafe(last, elsewhere).result(60)
            with pytest.raises(DatabaseUnavailableError):
                await waiting
            async with database.pipeline() as conn:
                assert await backend(conn) > 0
        await database.close()

    with loop_of_its_own() as elsewhere:
        proxy = asyncio.run_coroutine_threadsafe(Proxy(fresh_postgres_dsn).__aenter__(), elsewhere).result(60)
        # The services' event loop, which calls a reader but once when its connection is reset.
        uvloop.run(story(proxy, elsewhere))
        asyncio.run_coroutine_threadsafe(proxy.__aexit__(), elsewhere).result(60)


async def test_a_connection_that_takes_the_number_of_one_that_died_hears_the_server(fresh_postgres_dsn: str) -> None:
    async with Proxy(fresh_postgres_dsn) as proxy:
        options = connection_options("public", 30, "test")
        dead = [await connect(proxy.dsn, options) for _ in range(3)]
        proxy.drop()
        await gone(*dead)
        alive = [await connect(proxy.dsn, options) for _ in range(3)]
        assert {one._socket for one in alive} & {one._socket for one in dead}, "the numbers are used again"
        for one in dead:
            await one.close()
        async with asyncio.timeout(60):
            for one in alive:
                async with one.transaction():
                    assert await backend(one) > 0
        proxy.drop()
        await gone(*alive)
        for one in alive:
            await one.close()
