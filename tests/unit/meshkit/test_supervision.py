"""A process's reports of its loops, and how it follows wishes."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from atelier.monitoring.v1 import loops_pb2 as pb

from meshkit.bus import BusMessage
from meshkit.loops import Loop, Loops, LoopState
from meshkit.supervision import ASK, REPORTS, WISHES, LoopReporter, shown_name


class Wire:
    """A bus that keeps what is sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, bytes]] = []
        self.heard: dict[str, Any] = {}
        self.ended: list[str] = []

    def notify(self, subject: str, payload: bytes = b"") -> None:
        self.sent.append((subject, payload))

    async def subscribe(self, subject: str, callback: Any) -> Any:
        self.heard[subject] = callback
        wire = self

        class Subscription:
            async def unsubscribe(self) -> None:
                wire.ended.append(subject)

        return Subscription()

    @property
    def last(self) -> pb.LoopReport:
        return pb.LoopReport.FromString(self.sent[-1][1])

    async def wish(self, *wishes: pb.LoopWish) -> None:
        await self.heard[WISHES](BusMessage(WISHES, pb.LoopWishes(wishes=wishes).SerializeToString(), {}))


async def nothing() -> None:
    return


@pytest.fixture
def loops() -> Loops:
    return Loops(Loop("tasks-expiry", nothing, 3600))


@pytest.fixture
def wire() -> Wire:
    return Wire()


@pytest.fixture
async def reporter(loops: Loops, wire: Wire) -> AsyncIterator[LoopReporter]:
    async with loops, LoopReporter(wire, loops, "tasks") as reporter:  # type: ignore[arg-type]  # what is used of it
        yield reporter


def wish(revision: int, command: pb.LoopCommand.ValueType = pb.LOOP_COMMAND_START, *, stopped: bool = False) -> Any:
    return pb.LoopWish(name="tasks_expiry", stopped=stopped, command=command, revision=revision)


def test_a_loop_is_shown_with_underscores() -> None:
    assert shown_name("outbox-tasks") == "outbox_tasks"


async def test_a_process_reports_at_its_start_and_when_it_is_asked(reporter: LoopReporter, wire: Wire) -> None:
    async with asyncio.timeout(60):
        while not wire.sent:  # noqa: ASYNC110 -- what is waited for has no event
            await asyncio.sleep(0.001)
        assert wire.sent[0][0] == f"{REPORTS}.tasks"
        [loop] = wire.last.loops
        assert (loop.name, loop.status, loop.revision) == ("tasks_expiry", pb.LOOP_STATUS_RUNNING, 0)
        count = len(wire.sent)
        await wire.heard[ASK](BusMessage(ASK, b"", {}))
        while len(wire.sent) == count:  # noqa: ASYNC110 -- as above
            await asyncio.sleep(0.001)


async def test_a_process_that_ends_says_so(loops: Loops, wire: Wire) -> None:
    async with loops, LoopReporter(wire, loops, "tasks"):  # type: ignore[arg-type]  # what is used of it
        pass
    assert not wire.last.loops
    assert set(wire.ended) == {WISHES, ASK}


async def test_a_loop_that_is_wanted_stopped_stops_also_where_the_wish_is_old(
    reporter: LoopReporter, loops: Loops, wire: Wire
) -> None:
    await wire.wish(wish(7, pb.LOOP_COMMAND_STOP, stopped=True))
    assert [one.state for one in loops.kept] == [LoopState.STOPPED]
    await wire.wish(wish(8))
    assert [one.state for one in loops.kept] == [LoopState.RUNNING]


async def test_an_order_of_before_its_start_is_not_carried_out(
    reporter: LoopReporter, loops: Loops, wire: Wire
) -> None:
    started = loops.kept[0].started_at
    await wire.wish(wish(7, pb.LOOP_COMMAND_RESTART))
    assert loops.kept[0].started_at == started
    await wire.wish(wish(8, pb.LOOP_COMMAND_RESTART))
    assert loops.kept[0].started_at != started
    again = loops.kept[0].started_at
    await wire.wish(wish(8, pb.LOOP_COMMAND_RESTART))
    await wire.wish(wish(7, pb.LOOP_COMMAND_RESTART))
    assert loops.kept[0].started_at == again, "each order is carried out once"


async def test_a_failed_loop_that_is_reset_is_not_started_until_somebody_does(
    reporter: LoopReporter, loops: Loops, wire: Wire
) -> None:
    [kept] = loops.kept
    await wire.wish(wish(1))
    await kept.stop()
    kept.state = LoopState.FAILED
    for _ in range(2):
        await wire.wish(wish(2, pb.LOOP_COMMAND_RESET))
        assert kept.state is LoopState.STOPPED
    await wire.wish(wish(3))
    assert kept.state is LoopState.RUNNING
