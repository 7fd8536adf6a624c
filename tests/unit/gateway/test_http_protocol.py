"""Answers that are written at once."""

import asyncio
from typing import Any

from services.gateway.http_protocol import CorkedTransport


class Wire:
    """A transport that notes what is written to it."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        assert not self.closed
        self.writes.append(data)

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True


def corked() -> tuple[Any, Wire]:
    wire: Any = Wire()
    return CorkedTransport(wire, asyncio.get_running_loop()), wire


async def test_head_and_content_are_written_together() -> None:
    transport, wire = corked()
    transport.write(b"head ")
    transport.write(b"content")
    assert wire.writes == [b"head content"]
    await asyncio.sleep(0)
    assert wire.writes == [b"head content"]


async def test_a_head_without_content_is_written_as_soon_as_the_loop_turns() -> None:
    transport, wire = corked()
    transport.write(b"head")
    assert wire.writes == []
    await asyncio.sleep(0)
    assert wire.writes == [b"head"]


async def test_what_is_written_keeps_its_order_however_large() -> None:
    transport, wire = corked()
    pieces = [b"a", b"b" * 100_000, b"c", b"d", b"e", b"f" * 70_000, b"g" * 70_000, b"h"]
    for piece in pieces:
        transport.write(piece)
    await asyncio.sleep(0)
    assert b"".join(wire.writes) == b"".join(pieces)


async def test_closing_loses_nothing_and_writes_nothing_afterwards() -> None:
    transport, wire = corked()
    transport.write(b"last")
    transport.close()
    assert (wire.writes, wire.closed) == ([b"last"], True)
    await asyncio.sleep(0)
    assert wire.writes == [b"last"]


async def test_a_connection_that_was_lost_is_not_written_to() -> None:
    transport, wire = corked()
    transport.write(b"head")
    wire.closed = True
    await asyncio.sleep(0)
    assert wire.writes == []
    assert transport.is_closing()
