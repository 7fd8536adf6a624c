"""Room for large bodies."""

import asyncio
from typing import Any

import pytest

from meshkit.errors import ErrorKind, MeshError
from services.gateway.asgi import ClientGoneError
from services.gateway.bodies import FREE_BYTES, BodyBudget, SlowRequestError

MIB = 1024 * 1024


def room(total: int = 4 * MIB, *, wait: float = 5, read: float = 5) -> BodyBudget:
    return BodyBudget(total, wait_seconds=wait, read_seconds=read, max_body_bytes=2 * MIB)


def scope(**headers: Any) -> dict[str, Any]:
    return {"headers": [(key.replace("_", "-").encode(), str(value).encode()) for key, value in headers.items()]}


def receiving(*pieces: bytes) -> Any:
    left = list(pieces)

    async def receive() -> dict[str, Any]:
        piece = left.pop(0)
        return {"type": "http.request", "body": piece, "more_body": bool(left)}

    return receive


async def silent() -> dict[str, Any]:
    await asyncio.Event().wait()
    return {}


@pytest.mark.parametrize(
    ("headers", "free"),
    [
        ({}, True),
        ({"content_length": 10}, True),
        ({"content_length": FREE_BYTES}, True),
        ({"content_length": FREE_BYTES + 1}, False),
        ({"transfer_encoding": "chunked"}, False),
    ],
)
def test_small_bodies_pass_freely(headers: dict[str, Any], free: bool) -> None:
    assert BodyBudget.is_free(scope(**headers)) is free


async def test_room_is_held_until_the_request_is_answered() -> None:
    here = room()
    async with here.content(scope(content_length=3 * MIB), receiving(b"a" * MIB, b"b" * 2 * MIB)) as content:
        assert len(content) == 3 * MIB
        assert here.taken == 3 * MIB
    assert here.taken == 0


async def test_large_bodies_wait_their_turn_in_the_order_they_came() -> None:
    here = room()
    order: list[str] = []
    go = asyncio.Event()

    async def one(name: str, size: int) -> None:
        async with here.content(scope(content_length=size), receiving(b"x")):
            order.append(name)
            await go.wait()

    tasks = [asyncio.create_task(one("first", 3 * MIB))]
    await asyncio.sleep(0)
    tasks += [asyncio.create_task(one("large", 3 * MIB)), asyncio.create_task(one("small", MIB))]
    for _ in range(5):
        await asyncio.sleep(0)
    assert order == ["first"], "a small one that fits may not overtake for ever"
    go.set()
    await asyncio.gather(*tasks)
    assert order == ["first", "large", "small"]
    assert here.taken == 0


async def test_a_body_larger_than_all_room_is_served_alone() -> None:
    here = room(total=MIB)
    async with here.content(scope(content_length=2 * MIB), receiving(b"x")):
        assert here.taken == MIB
    assert here.taken == 0


async def test_who_waits_too_long_is_told_to_come_again_and_holds_up_nobody() -> None:
    here = room(wait=0.02)
    async with here.content(scope(content_length=3 * MIB), receiving(b"x")):
        with pytest.raises(MeshError) as caught:
            async with here.content(scope(content_length=3 * MIB), receiving(b"x")):
                raise AssertionError("there was room")
        assert caught.value.kind is ErrorKind.UNAVAILABLE
        async with here.content(scope(content_length=MIB), receiving(b"x")):
            assert here.taken == 4 * MIB
    assert here.taken == 0


async def test_who_leaves_while_waiting_lets_the_next_one_in() -> None:
    here = room()
    served = asyncio.Event()

    async def small() -> None:
        async with here.content(scope(content_length=MIB), receiving(b"x")):
            served.set()

    async def large() -> None:
        async with here.content(scope(content_length=4 * MIB), receiving(b"x")):
            raise AssertionError("there was room")

    async with here.content(scope(content_length=3 * MIB), receiving(b"x")):
        leaving = asyncio.create_task(large())
        await asyncio.sleep(0)
        waiting = asyncio.create_task(small())
        await asyncio.sleep(0)
        assert not served.is_set()
        leaving.cancel()
        await asyncio.wait_for(waiting, 60)
    with pytest.raises(asyncio.CancelledError):
        await leaving
    assert here.taken == 0


async def test_who_sends_nothing_does_not_keep_the_room() -> None:
    here = room(read=0.02)
    for headers in ({"content_length": MIB}, {"transfer_encoding": "chunked"}):
        with pytest.raises(SlowRequestError):
            async with here.content(scope(**headers), silent):
                raise AssertionError("there is no content")
        assert here.taken == 0


async def test_a_body_of_unknown_length_takes_room_only_once_it_is_large() -> None:
    here = room()
    chunked = scope(transfer_encoding="chunked")
    async with here.content(chunked, receiving(b"{", b"}")) as content:
        assert (content, here.taken) == (b"{}", 0)
    pieces = [b"a" * FREE_BYTES, b"b", b"c" * 10]
    async with here.content(chunked, receiving(*pieces)) as content:
        assert (content, here.taken) == (b"".join(pieces), 2 * MIB)
    assert here.taken == 0


async def test_a_caller_who_leaves_gives_its_room_back() -> None:
    async def gone() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    here = room()
    for headers in ({"content_length": MIB}, {"transfer_encoding": "chunked"}):
        with pytest.raises(ClientGoneError):
            async with here.content(scope(**headers), gone):
                raise AssertionError("there is no content")
    assert here.taken == 0
