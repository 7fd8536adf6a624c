"""One lease, and no other; none only where the scheduler has said so for long enough."""

import asyncio
from typing import cast

import pytest

from meshkit.worker.held import HeldLease
from meshkit.worker.one_lease import OneLease

LEASE = cast("HeldLease", None)  # it is passed on alone


class Carried:
    """What carries attempts, each until it is told to end."""

    def __init__(self) -> None:
        self.room, self.taken = 4, 0
        self.refuses = False
        self.ended = asyncio.Event()

    def capacity(self) -> int:
        return self.room

    def accept(self, held: HeldLease) -> None:
        if self.refuses:
            raise RuntimeError("no disk")
        self.taken += 1

    async def idle(self) -> None:
        if self.taken:
            await self.ended.wait()


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


async def is_over(one: OneLease) -> bool:
    try:
        async with asyncio.timeout(0.01):
            await one.over()
    except TimeoutError:
        return False
    return True


async def test_one_lease_is_asked_for_and_it_is_over_once_its_attempt_has_ended() -> None:
    carried = Carried()
    one = OneLease(carried, 10.0)
    assert one.capacity() == 1
    one.accept(LEASE)
    assert (one.capacity(), carried.taken) == (0, 1)
    assert not await is_over(one)
    carried.ended.set()
    assert await is_over(one)


async def test_a_lease_that_could_not_be_accepted_does_not_count() -> None:
    carried = Carried()
    carried.refuses = True
    one = OneLease(carried, 10.0)
    with pytest.raises(RuntimeError):
        one.accept(LEASE)
    assert one.capacity() == 1
    assert not await is_over(one)


async def test_it_is_over_without_a_lease_once_the_scheduler_has_said_so_after_the_wait() -> None:
    clock = Clock()
    one = OneLease(Carried(), 10.0, clock)
    clock.now += 50.0  # nobody could be asked meanwhile
    one.empty()
    assert one.capacity() == 1
    clock.now += 9.0
    one.empty()
    assert not await is_over(one)
    clock.now += 1.0
    assert not await is_over(one)
    one.empty()
    assert await is_over(one)
    assert one.capacity() == 0
