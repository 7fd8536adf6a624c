import asyncio

import pytest

from meshkit.bus import Bus
from services.tasks import notifier
from services.tasks.notifier import Notifier


class Recorder(Bus):
    """Keeps what is sent, in place of NATS."""

    def __init__(self) -> None:
        super().__init__("")
        self.sent: list[tuple[str, bytes]] = []

    def notify(self, subject: str, payload: bytes = b"") -> None:
        self.sent.append((subject, payload))


async def turns() -> None:
    """Lets timers of no time ring, and those that they set."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_many_tasks_at_once_wake_other_replicas_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notifier, "WAKE_SECONDS", 0.0)
    bus, local = Recorder(), list[str]()
    told = Notifier(bus, b"me", on_waiting=local.append, on_commit=lambda: None, on_ended=lambda _: None)
    for _ in range(50):
        told.waiting("inference")
    told.waiting("training")
    assert local == ["inference"] * 50 + ["training"], "this process is told of each"
    assert bus.sent == [("atelier.wake.inference", b"me"), ("atelier.wake.training", b"me")]
    await turns()
    assert bus.sent[2:] == [("atelier.wake.inference", b"me")], "what came in between is told, once"
    told.waiting("inference")
    assert len(bus.sent) == 4, "after a silence at once"
