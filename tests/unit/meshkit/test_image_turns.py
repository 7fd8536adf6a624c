"""Whose image is decoded next."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from meshkit.images.turns import FairTurns


class Door:
    """Images that come to their turns, and stay until they are let go."""

    def __init__(self, places: int = 2, room: int = 100) -> None:
        self.turns = FairTurns(places, room)
        self.order: list[str] = []
        self.places: dict[str, int] = {}
        self._go: dict[str, asyncio.Event] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def come(self, name: str, tenant: str, needed: int = 10, *, large: bool = True) -> None:
        async def stay() -> None:
            async with self.turns.turn(tenant, needed, large=large) as place:
                self.order.append(name)
                self.places[name] = place
                await self._go[name].wait()

        self._go[name] = asyncio.Event()
        self.tasks[name] = asyncio.create_task(stay())
        await self.settle()

    async def go(self, name: str) -> None:
        self._go[name].set()
        await self.tasks[name]
        await self.settle()

    async def settle(self) -> None:
        for _ in range(5):
            await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def door(places: int = 2, room: int = 100) -> AsyncIterator[Door]:
    one = Door(places, room)
    yield one
    for task in one.tasks.values():
        task.cancel()
    await asyncio.gather(*one.tasks.values(), return_exceptions=True)


async def test_tenants_take_turns_however_many_images_one_of_them_has() -> None:
    async with door() as here:
        for number in range(4):
            await here.come(f"a{number}", "a")
        for number in range(2):
            await here.come(f"b{number}", "b")
        for _ in range(6):
            await here.go(here.order[-1])
        assert here.order == ["a0", "a1", "b0", "a2", "b1", "a3"]


async def test_who_takes_more_memory_waits_longer() -> None:
    async with door() as here:
        await here.come("first", "c")
        for number in range(2):
            await here.come(f"a{number}", "a", 90)
        for number in range(3):
            await here.come(f"b{number}", "b", 30)
        for _ in range(6):
            await here.go(here.order[-1])
        assert here.order == ["first", "a0", "b0", "b1", "b2", "a1"]


async def test_one_place_takes_small_images_alone() -> None:
    async with door() as here:
        for number in range(3):
            await here.come(f"large{number}", "a")
        await here.come("small", "a", large=False)
        assert here.order == ["large0", "small"]
        assert here.places == {"large0": 1, "small": 0}


async def test_large_images_share_the_memory_and_small_ones_pass() -> None:
    async with door(places=4) as here:
        await here.come("a", "a", 60)
        await here.come("b", "b", 60)
        await here.come("c", "c", 60)
        assert here.order == ["a"]
        for number in range(3):
            await here.come(f"small{number}", "d", large=False)
        assert here.order == ["a", "small0", "small1", "small2"]
        await here.go("a")
        assert here.order[-1] == "b"


async def test_who_leaves_frees_its_place_in_the_line_and_its_room() -> None:
    async with door() as here:
        await here.come("a", "a", 100)
        await here.come("b", "b", 100)
        await here.come("c", "c", 100)
        here.tasks["b"].cancel()
        await here.settle()
        assert here.turns.waiting == 1
        await here.go("a")
        assert here.order == ["a", "c"]
        here.tasks["c"].cancel()
        await here.settle()
        await here.come("d", "d", 100)
        assert here.order == ["a", "c", "d"]


async def test_a_turn_that_comes_while_its_owner_leaves_goes_to_the_next() -> None:
    async with door() as here:
        for name in ("a", "b", "c"):
            await here.come(name, name)
        here.tasks["a"].cancel()
        here.tasks["b"].cancel()
        await here.settle()
        assert here.order == ["a", "c"]
        with pytest.raises(asyncio.CancelledError):
            await here.tasks["b"]


async def test_who_was_away_has_no_claim_on_the_past() -> None:
    async with door() as here:
        await here.come("first", "z")
        for number in range(3):
            await here.come(f"a{number}", "a")
        for _ in range(3):
            await here.go(here.order[-1])
        for number in range(3):
            await here.come(f"b{number}", "b")
        await here.come("a3", "a")
        for _ in range(5):
            await here.go(here.order[-1])
        assert here.order.index("a3") <= here.order.index("b1")
