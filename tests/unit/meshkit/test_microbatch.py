"""How groups follow each other on the event loop, and how requests share a call."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from meshkit import tracing
from meshkit.microbatch import GroupCall, MicroBatcher

NEVER = 3600.0


async def rest() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


class Handler:
    """Handles groups of numbers; each waits until it is let go."""

    def __init__(self, *, open_: bool = True) -> None:
        self.groups: list[list[int]] = []
        self.traces: list[object] = []
        self.gates: list[asyncio.Event] = []
        self.open = open_
        self.error: Exception | None = None

    async def __call__(self, items: list[int]) -> None:
        self.groups.append(items)
        self.traces.append(tracing.current())
        if self.error is not None:
            raise self.error
        gate = asyncio.Event()
        self.gates.append(gate)
        if self.open:
            gate.set()
        await gate.wait()

    def batcher(self, **settings: Any) -> MicroBatcher[int]:
        return MicroBatcher(self, name="test", **{"linger": NEVER, "max_items": 4} | settings)


async def test_an_item_that_is_alone_goes_at_once_each_time() -> None:
    handler = Handler()
    batcher = handler.batcher()
    for number in range(3):
        batcher.put(number)
        await rest()
    assert handler.groups == [[0], [1], [2]]


async def test_items_that_are_ready_in_the_same_moment_go_together() -> None:
    handler = Handler()
    batcher = handler.batcher()

    async def put(number: int) -> None:
        batcher.put(number)

    await asyncio.gather(*(put(number) for number in range(3)))
    await rest()
    assert handler.groups == [[0, 1, 2]]


async def test_what_comes_while_a_group_is_under_way_goes_with_the_next() -> None:
    handler = Handler(open_=False)
    batcher = handler.batcher()
    batcher.put(0)
    await rest()
    for number in (1, 2, 3):
        batcher.put(number)
        await rest()
    assert handler.groups == [[0]]
    handler.gates[0].set()
    await rest()
    assert handler.groups == [[0], [1, 2, 3]]
    await batcher.close()


async def test_a_group_lingers_after_one_of_several_until_it_is_full() -> None:
    handler = Handler(open_=False)
    batcher = handler.batcher()
    for number in (0, 1):
        batcher.put(number)
    await rest()
    batcher.put(2)
    handler.gates[0].set()
    await rest()
    assert handler.groups == [[0, 1]], "those who had these are about to come again"
    for number in (3, 4, 5, 6):
        batcher.put(number)
        await rest()
    assert handler.groups == [[0, 1], [2, 3, 4, 5]]
    handler.gates[1].set()
    await rest()
    assert len(handler.groups) == 2
    assert await batcher.close() == [6]


async def test_a_lingering_group_goes_when_the_batcher_finishes() -> None:
    handler = Handler()
    batcher = handler.batcher(linger=3600, more=lambda _waiting, _last: True)
    batcher.put(0)
    await rest()
    assert handler.groups == []
    async with asyncio.timeout(60):
        await batcher.finish()
    assert handler.groups == [[0]]


async def test_a_group_that_has_lingered_goes() -> None:
    handler = Handler()
    batcher = handler.batcher(linger=0.001, more=lambda _waiting, _last: True)
    batcher.put(1)
    async with asyncio.timeout(60):
        while not handler.groups:  # noqa: ASYNC110 -- a timer has no event
            await asyncio.sleep(0.001)
    assert handler.groups == [[1]]


async def test_a_group_goes_once_no_more_are_expected() -> None:
    handler = Handler()
    asked: list[tuple[int, int]] = []

    def more(waiting: int, last: int) -> bool:
        asked.append((waiting, last))
        return waiting < 3

    batcher = handler.batcher(more=more)
    for number in range(3):
        assert handler.groups == []
        batcher.put(number)
        await rest()
    assert handler.groups == [[0, 1, 2]]
    assert asked == [(1, 0), (2, 0), (3, 0)]


async def test_items_of_different_keys_go_apart() -> None:
    handler = Handler()
    batcher = handler.batcher(linger=0.0)
    for number in range(4):
        batcher.put(number, key=number % 2)
    await rest()
    assert handler.groups == [[0, 2], [1, 3]]


async def test_a_group_has_no_more_items_than_it_may() -> None:
    handler = Handler()
    batcher = handler.batcher(linger=0.0)
    for number in range(10):
        batcher.put(number)
    await rest()
    assert handler.groups == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


async def test_groups_without_a_bound_do_not_wait_for_each_other() -> None:
    handler = Handler(open_=False)
    batcher = handler.batcher(at_once=None, more=lambda _waiting, _last: False)
    for number in range(3):
        batcher.put(number)
        await rest()
    assert handler.groups == [[0], [1], [2]]
    handler.gates[1].set()
    batcher.put(3)
    await rest()
    assert handler.groups[3:] == [[3]], "an end while another group starts changes nothing"
    await batcher.close()


async def test_a_group_sets_out_beside_one_that_takes_long_up_to_a_bound() -> None:
    handler = Handler(open_=False)
    batcher = handler.batcher(linger=0.0, at_once=2, patience=0.001)

    async def under_way(count: int) -> None:
        async with asyncio.timeout(60):
            while len(handler.groups) < count:  # noqa: ASYNC110 -- a timer has no event
                await asyncio.sleep(0.001)

    batcher.put(0)
    await under_way(1)
    batcher.put(1)
    await under_way(2)
    batcher.put(2)
    await asyncio.sleep(0.02)
    assert handler.groups == [[0], [1]]
    handler.gates[0].set()
    await under_way(3)
    assert handler.groups[2] == [2]
    await batcher.close()


async def test_a_group_waits_for_one_under_way_as_long_as_its_patience_lasts() -> None:
    handler = Handler(open_=False)
    batcher = handler.batcher(at_once=2, patience=NEVER)
    batcher.put(0)
    await rest()
    batcher.put(1)
    await rest()
    assert handler.groups == [[0]]
    handler.gates[0].set()
    await rest()
    assert handler.groups == [[0], [1]]
    await batcher.close()


async def test_a_handler_that_fails_does_not_stop_the_next_group() -> None:
    handler = Handler()
    batcher = handler.batcher()
    handler.error = RuntimeError("no")
    batcher.put(0)
    await rest()
    handler.error = None
    batcher.put(1)
    await rest()
    assert handler.groups == [[0], [1]]


async def test_finishing_handles_all_without_lingering() -> None:
    handler = Handler()
    batcher = handler.batcher(more=lambda _waiting, _last: True)
    for number in range(6):
        batcher.put(number)
    await batcher.finish()
    assert handler.groups == [[0, 1, 2, 3], [4, 5]]
    await batcher.finish()


@pytest.mark.parametrize("turns", range(6))
async def test_closing_at_any_moment_hands_back_or_cancels_each_item(turns: int) -> None:
    handler = Handler(open_=False)
    batcher = handler.batcher()
    batcher.put(0)
    for _ in range(turns):
        await asyncio.sleep(0)
    batcher.put(1)
    left = await batcher.close()
    assert sorted([*left, *(item for group in handler.groups for item in group)]) == [0, 1]
    handler.open = True
    batcher.put(2)
    await rest()
    assert handler.groups[-1] == [2], "what comes later is handled"


async def test_a_group_bears_the_trace_of_no_single_item() -> None:
    handler = Handler()
    batcher = handler.batcher(linger=0.001, more=lambda waiting, _last: waiting < 2)
    tracing.use(tracing.begin("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"))
    for count in (2, 1):
        for number in range(count):
            batcher.put(number)
        async with asyncio.timeout(60):
            await batcher.finish()
    assert handler.traces == [None, None]


def requests(call: Any) -> GroupCall[Any, Any]:
    return GroupCall(call, name="test", linger=0.001)


async def test_members_that_arrive_during_a_call_share_the_next() -> None:
    calls: list[list[int]] = []
    begun, gate = asyncio.Event(), asyncio.Event()

    async def call(items: Sequence[int]) -> list[int | Exception]:
        calls.append(list(items))
        begun.set()
        if len(calls) == 1:
            await gate.wait()
        return [item * 2 for item in items]

    group = requests(call)
    first = asyncio.create_task(group.submit(1))
    await begun.wait()
    others = [asyncio.create_task(group.submit(n)) for n in (2, 3, 4)]
    await asyncio.sleep(0)
    gate.set()
    assert await asyncio.gather(first, *others) == [2, 4, 6, 8]
    assert calls == [[1], [2, 3, 4]]


async def test_callers_who_come_again_at_once_do_not_wait_for_each_other() -> None:
    async def call(items: Sequence[int]) -> list[int | Exception]:
        await asyncio.sleep(0)
        return list(items)

    group: GroupCall[int, int] = GroupCall(call, name="test", linger=NEVER)

    async def caller() -> None:
        for number in range(5):
            assert await group.submit(number) == number

    async with asyncio.timeout(60):
        await asyncio.gather(*(caller() for _ in range(3)))


async def test_each_member_gets_its_own_answer_or_error() -> None:
    async def call(items: Sequence[int]) -> list[int | Exception]:
        return [ValueError("odd") if item % 2 else item for item in items]

    group = requests(call)
    results = await asyncio.gather(*(group.submit(n) for n in range(4)), return_exceptions=True)
    assert [isinstance(result, ValueError) for result in results] == [False, True, False, True]


async def test_a_call_that_raises_fails_its_group_only() -> None:
    async def call(items: Sequence[str]) -> list[str | Exception]:
        if "bad" in items:
            raise RuntimeError("no")
        return list(items)

    group = requests(call)
    with pytest.raises(RuntimeError):
        await group.submit("bad")
    assert await group.submit("good") == "good"


async def test_a_call_with_too_few_answers_leaves_nobody_waiting() -> None:
    async def call(_items: Sequence[int]) -> list[int | Exception]:
        return [1]

    group = requests(call)
    results = await asyncio.gather(group.submit(1), group.submit(2), return_exceptions=True)
    assert [type(result) for result in results] == [ValueError, ValueError]


async def test_a_member_whose_caller_left_does_not_disturb_the_others() -> None:
    gate = asyncio.Event()

    async def call(items: Sequence[int]) -> list[int | Exception]:
        await gate.wait()
        return list(items)

    group = requests(call)
    left, stays = asyncio.create_task(group.submit(1)), asyncio.create_task(group.submit(2))
    await asyncio.sleep(0)
    left.cancel()
    gate.set()
    assert await stays == 2
    await group.finish()
    with pytest.raises(asyncio.CancelledError):
        await left


async def test_finishing_answers_what_waits_and_closing_cancels_it() -> None:
    gate = asyncio.Event()

    async def call(items: Sequence[int]) -> list[int | Exception]:
        await gate.wait()
        return list(items)

    group = requests(call)
    under_way = group.enqueue(1)
    await rest()
    queued = group.enqueue(2)
    finishing = asyncio.create_task(group.finish())
    await rest()
    assert not finishing.done()
    gate.set()
    await finishing
    assert (under_way.result(), queued.result()) == (1, 2)
    gate.clear()
    under_way = group.enqueue(3)
    await rest()
    queued = group.enqueue(4)
    await group.close()
    assert under_way.cancelled()
    assert queued.cancelled()
