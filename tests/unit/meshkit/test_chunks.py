import asyncio
from collections.abc import AsyncIterator

import pytest

from meshkit.chunks import ChunkReader


async def pieces(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


def reader(chunks: AsyncIterator[bytes]) -> ChunkReader:
    return ChunkReader(asyncio.get_running_loop(), chunks)


async def test_chunks_are_read_in_the_sizes_asked_for() -> None:
    chunks = reader(pieces(b"abc", b"", b"d", b"efgh"))
    assert [await asyncio.to_thread(chunks.read, 3) for _ in range(4)] == [b"abc", b"def", b"gh", b""]
    assert chunks.count == 8


async def test_all_is_read_without_a_size() -> None:
    chunks = reader(pieces(b"abc", b"def"))
    assert await asyncio.to_thread(chunks.read, 2) == b"ab"
    assert await asyncio.to_thread(chunks.read) == b"cdef"


async def test_what_the_chunks_raise_is_kept() -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"a"
        raise ValueError("broken")

    chunks = reader(broken())
    with pytest.raises(ValueError, match="broken"):
        await asyncio.to_thread(chunks.read, 10)
    assert isinstance(chunks.failure, ValueError)


async def test_a_reader_that_was_let_go_takes_nothing_for_the_whole() -> None:
    waiting = asyncio.Event()

    async def stalled() -> AsyncIterator[bytes]:
        yield b"a"
        waiting.set()
        await asyncio.Event().wait()

    chunks = reader(stalled())
    reading = asyncio.create_task(asyncio.to_thread(chunks.read, 10))
    await waiting.wait()
    chunks.close()
    with pytest.raises(ConnectionAbortedError):
        await reading
    with pytest.raises(ConnectionAbortedError):
        await asyncio.to_thread(chunks.read, 1)
