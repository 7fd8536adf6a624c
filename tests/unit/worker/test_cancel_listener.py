import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import cast

import pytest

from meshkit.bus import Bus, BusMessage
from meshkit.worker.cancel_listener import CancelListener


class Subscription:
    def __init__(self, subjects: set[str], subject: str) -> None:
        self._subjects, self._subject = subjects, subject
        subjects.add(subject)

    async def unsubscribe(self) -> None:
        self._subjects.discard(self._subject)


class FakeBus:
    def __init__(self) -> None:
        self.subjects: set[str] = set()
        self.receive: Callable[[BusMessage], Awaitable[None]] | None = None

    async def subscribe(self, subject: str, receive: Callable[[BusMessage], Awaitable[None]]) -> Subscription:
        self.receive = receive
        return Subscription(self.subjects, subject)


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.fixture
def bus() -> FakeBus:
    return FakeBus()


@pytest.fixture
async def listener(bus: FakeBus) -> AsyncIterator[tuple[CancelListener, asyncio.Event]]:
    heartbeat_now = asyncio.Event()
    listener = CancelListener(cast("Bus", bus), heartbeat_now.set)
    running = asyncio.create_task(listener.run())
    yield listener, heartbeat_now
    running.cancel()


async def test_it_listens_for_one_session_at_a_time(
    bus: FakeBus, listener: tuple[CancelListener, asyncio.Event]
) -> None:
    for session, subjects in (("a", {"atelier.cancel.a"}), ("b", {"atelier.cancel.b"}), (None, set[str]())):
        listener[0].follow(session)
        await settle()
        assert bus.subjects == subjects


async def test_every_message_asks_for_a_heartbeat(bus: FakeBus, listener: tuple[CancelListener, asyncio.Event]) -> None:
    listener[0].follow("a")
    await settle()
    assert bus.receive is not None
    await bus.receive(cast("BusMessage", None))
    assert listener[1].is_set()
