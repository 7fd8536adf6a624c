import asyncio
from collections.abc import Sequence

import pytest

from services.tasks.batching import Batcher


async def test_members_that_arrive_during_a_commit_share_the_next() -> None:
    groups: list[list[int]] = []
    begun, gate = asyncio.Event(), asyncio.Event()

    async def commit(items: Sequence[int]) -> list[int | Exception]:
        groups.append(list(items))
        begun.set()
        if len(groups) == 1:
            await gate.wait()
        return [item * 2 for item in items]

    batcher: Batcher[int, int] = Batcher("test", commit)
    first = asyncio.create_task(batcher.submit(1))
    await begun.wait()
    others = [asyncio.create_task(batcher.submit(n)) for n in (2, 3, 4)]
    await asyncio.sleep(0)
    gate.set()
    assert await asyncio.gather(first, *others) == [2, 4, 6, 8]
    assert groups == [[1], [2, 3, 4]]


async def test_each_member_gets_its_own_answer_or_error() -> None:
    async def commit(items: Sequence[int]) -> list[int | Exception]:
        return [ValueError("odd") if item % 2 else item for item in items]

    batcher: Batcher[int, int] = Batcher("test", commit)
    results = await asyncio.gather(*(batcher.submit(n) for n in range(4)), return_exceptions=True)
    assert [isinstance(result, ValueError) for result in results] == [False, True, False, True]


async def test_commit_that_raises_fails_its_group_only() -> None:
    async def commit(items: Sequence[str]) -> list[str | Exception]:
        if "bad" in items:
            raise RuntimeError("no")
        return list(items)

    batcher: Batcher[str, str] = Batcher("test", commit)
    with pytest.raises(RuntimeError):
        await batcher.submit("bad")
    assert await batcher.submit("good") == "good"


async def test_member_whose_caller_left_does_not_disturb_the_others() -> None:
    gate = asyncio.Event()

    async def commit(items: Sequence[int]) -> list[int | Exception]:
        await gate.wait()
        return list(items)

    batcher: Batcher[int, int] = Batcher("test", commit)
    left, stays = asyncio.create_task(batcher.submit(1)), asyncio.create_task(batcher.submit(2))
    await asyncio.sleep(0)
    left.cancel()
    gate.set()
    assert await stays == 2
    await batcher.close()
    with pytest.raises(asyncio.CancelledError):
        await left
