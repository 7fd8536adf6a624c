import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence
from unittest.mock import AsyncMock

import pytest
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig

import meshkit.bus
from meshkit.bus import Bus, BusMessage
from meshkit.errors import ErrorKind, MeshError
from tests.conftest import NatsControl


@pytest.fixture
async def bus(nats_server: NatsControl) -> AsyncIterator[Bus]:
    bus = Bus(nats_server.url)
    await bus.connect(60)
    yield bus
    await bus.close()


class Heard:
    """Remembers messages; fails at those it is told to."""

    def __init__(self, failures: int = 0) -> None:
        self.queue: asyncio.Queue[BusMessage] = asyncio.Queue()
        self.failures = failures

    async def __call__(self, message: BusMessage) -> None:
        if self.failures:
            self.failures -= 1
            raise RuntimeError("not now")
        self.queue.put_nowait(message)

    async def next(self, seconds: float = 60.0) -> bytes:
        async with asyncio.timeout(seconds):
            return (await self.queue.get()).data


def subject() -> str:
    return f"atelier.test.v1.{secrets.token_hex(4)}.made"


async def publish_when_possible(bus: Bus, name: str, payload: bytes) -> None:
    async with asyncio.timeout(60):
        while True:
            try:
                await bus.publish(name, payload)
            except MeshError:
                await asyncio.sleep(0.05)
            else:
                return


async def test_a_repeated_event_is_dropped_by_its_id(bus: Bus) -> None:
    heard, name = Heard(), subject()
    await bus.consume("dedup", [name], heard)
    for payload, ident in ((b"1", "a"), (b"1", "a"), (b"2", "b")):
        await bus.publish(name, payload, {"h": "x"}, msg_id=ident)
    assert [await heard.next(), await heard.next()] == [b"1", b"2"]


async def test_an_event_whose_handler_failed_comes_again(bus: Bus) -> None:
    heard, name = Heard(failures=1), subject()
    await bus.consume("again", [name], heard)
    await bus.publish(name, b"1")
    async with asyncio.timeout(60):
        message = await heard.queue.get()
    assert (message.data, message.deliveries) == (b"1", 2)


async def test_batches_are_acknowledged_whole_and_come_again_whole(bus: Bus) -> None:
    name = subject()
    made: list[str] = []
    batches: list[list[tuple[bytes, int]]] = []
    both = asyncio.Event()

    async def take(messages: Sequence[BusMessage]) -> None:
        batches.append(sorted((message.data, message.deliveries) for message in messages))
        if len(batches) == 1:
            raise RuntimeError("not now")
        if {payload for batch in batches[1:] for payload, _ in batch} == {b"1", b"2", b"3"}:
            both.set()

    for payload in (b"1", b"2"):
        await bus.publish(name, payload)
    await bus.consume_batches("batches", [name], take, linger=0.01, on_made=lambda: made.append("made"))
    async with asyncio.timeout(60):
        while not batches:  # noqa: ASYNC110 -- the bus drives it
            await asyncio.sleep(0.01)
        await bus.publish(name, b"3")
        await both.wait()
    assert batches[0] == [(b"1", 1), (b"2", 1)]
    again = [one for batch in batches[1:] for one in batch]
    assert sorted(again) == [(b"1", 2), (b"2", 2), (b"3", 1)], "what failed comes again, and nothing else"
    assert made == ["made"]


async def make_consumer(bus: Bus, durable: str, name: str, ack_wait: float) -> JetStreamContext:
    """A consumer as another process made it."""
    assert bus._js is not None
    await bus.ensure_stream()
    config = ConsumerConfig(
        durable_name=durable,
        filter_subjects=[name],
        ack_policy=AckPolicy.EXPLICIT,
        ack_wait=ack_wait,
        max_ack_pending=256,
    )
    await bus._js.add_consumer(bus._stream, config)
    return bus._js


async def test_an_event_of_a_consumer_that_stands_still_passes_on_to_another(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meshkit.bus, "ACK_WAIT_SECONDS", 2.0)
    monkeypatch.setattr(meshkit.bus, "FETCH_TIMEOUT_SECONDS", 0.5)
    heard, name = Heard(), subject()
    held = await (await make_consumer(bus, "still", name, 2.0)).pull_subscribe_bind("still", bus._stream)
    await bus.publish(name, b"1")
    # As one that was handed an event and stands still: it neither acknowledges it nor extends its hold.
    [taken] = await held.fetch(1, timeout=60)
    assert taken.data == b"1"
    await bus.consume("still", [name], heard)
    async with asyncio.timeout(60):
        message = await heard.queue.get()
    assert message.data == b"1"
    assert message.deliveries >= 2


async def test_an_event_that_takes_long_is_handed_to_nobody_else(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meshkit.bus, "ACK_WAIT_SECONDS", 6.0)
    monkeypatch.setattr(meshkit.bus, "FETCH_TIMEOUT_SECONDS", 0.5)
    name = subject()
    handed: list[bytes] = []
    done = asyncio.Event()

    async def take(message: BusMessage) -> None:
        handed.append(message.data)
        if message.data == b"slow":
            await asyncio.sleep(9)
            done.set()

    await bus.publish(name, b"slow")
    for _ in range(2):
        await bus.consume("slow", [name], take)
    async with asyncio.timeout(60):
        await done.wait()
    assert handed == [b"slow"]


async def test_a_consumer_of_an_earlier_version_gets_the_present_wait(bus: Bus) -> None:
    name = subject()
    js = await make_consumer(bus, "older", name, 60.0)
    made = asyncio.Event()
    await bus.consume_batches("older", [name], ignore, on_made=made.set)
    async with asyncio.timeout(60):
        await made.wait()
    info = await js.consumer_info(bus._stream, "older")
    assert info.config.ack_wait == meshkit.bus.ACK_WAIT_SECONDS


async def ignore(messages: Sequence[BusMessage]) -> None:
    del messages


async def test_a_durable_consumer_keeps_its_place(bus: Bus) -> None:
    heard, name = Heard(), subject()
    task = await bus.consume("place", [name], heard)
    await bus.publish(name, b"1")
    assert await heard.next() == b"1"
    await asyncio.sleep(0)  # lets the acknowledgement go out
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await bus.publish(name, b"2")
    await bus.consume("place", [name], heard)
    assert await heard.next() == b"2"


async def test_a_notification_reaches_its_subscribers_and_one_of_a_queue(bus: Bus) -> None:
    everyone, shared, name = [Heard(), Heard()], [Heard(), Heard()], f"wake.{secrets.token_hex(4)}"
    for heard in everyone:
        await bus.subscribe(name, heard)
    for heard in shared:
        await bus.subscribe(name, heard, queue="q")
    await bus.publish(subject(), b"")  # a round trip: the subscriptions are known by now
    bus.notify(name, b"x")
    assert [await heard.next() for heard in everyone] == [b"x", b"x"]
    async with asyncio.timeout(60):
        while sum(heard.queue.qsize() for heard in shared) != 1:  # noqa: ASYNC110 -- what is waited for has no event
            await asyncio.sleep(0.01)


async def test_a_handler_that_fails_does_not_end_the_subscription(bus: Bus) -> None:
    heard, name = Heard(failures=1), f"wake.{secrets.token_hex(4)}"
    await bus.subscribe(name, heard)
    bus.notify(name, b"1")
    bus.notify(name, b"2")
    assert await heard.next() == b"2"


async def test_an_ended_subscription_hears_nothing(bus: Bus) -> None:
    ended, heard, name = Heard(), Heard(), f"wake.{secrets.token_hex(4)}"
    handle = await bus.subscribe(name, ended)
    await bus.subscribe(name, heard)
    await handle.unsubscribe()
    await handle.unsubscribe()
    bus.notify(name, b"x")
    assert await heard.next() == b"x"
    assert ended.queue.empty()


async def test_publishing_without_nats_fails_and_does_not_wait_for_it(bus: Bus, nats_server: NatsControl) -> None:
    nats_server.kill()
    async with asyncio.timeout(60):  # nobody starts NATS again
        with pytest.raises(MeshError) as caught:
            await bus.publish(subject(), b"")
    assert caught.value.kind is ErrorKind.UNAVAILABLE
    bus.notify("wake", b"x")


async def test_everything_works_again_after_nats_was_killed_and_emptied(bus: Bus, nats_server: NatsControl) -> None:
    events, wakes, name, wake = Heard(), Heard(), subject(), f"wake.{secrets.token_hex(4)}"
    await bus.consume("phoenix", [name], events)
    await bus.subscribe(wake, wakes)
    await bus.publish(name, b"before")
    assert await events.next() == b"before"
    nats_server.kill()
    nats_server.wipe()
    nats_server.start()
    await publish_when_possible(bus, name, b"after")
    assert await events.next() == b"after"
    bus.notify(wake, b"up")
    assert await wakes.next() == b"up"


async def test_a_stream_that_was_deleted_is_made_again(bus: Bus) -> None:
    heard, name = Heard(), subject()
    await bus.consume("lost", [name], heard)
    await bus.publish(name, b"1")
    assert await heard.next() == b"1"
    assert bus._js is not None
    await bus._js.delete_stream(bus._stream)
    await publish_when_possible(bus, name, b"2")
    assert await heard.next() == b"2"


async def test_a_connection_that_nats_ended_for_good_is_made_anew(bus: Bus) -> None:
    events, wakes, name, wake = Heard(), Heard(), subject(), f"wake.{secrets.token_hex(4)}"
    await bus.consume("anew", [name], events)
    await bus.subscribe(wake, wakes)
    assert bus._client is not None
    await bus._client.close()
    await publish_when_possible(bus, name, b"1")
    assert await events.next() == b"1"
    bus.notify(wake, b"up")
    assert await wakes.next() == b"up"


async def test_a_server_that_comes_up_later_is_found(nats_server: NatsControl) -> None:
    nats_server.stop()
    bus = Bus(nats_server.url)
    await bus.connect(0.1)
    heard, name = Heard(), subject()
    wakes = Heard()
    await bus.consume("patient", [name], heard)
    await bus.subscribe("wake.patient", wakes)
    nats_server.start()
    await publish_when_possible(bus, name, b"1")
    assert await heard.next() == b"1"
    bus.notify("wake.patient", b"x")
    assert await wakes.next() == b"x"
    await bus.close()


async def test_a_stream_that_is_as_it_should_be_is_not_written(nats_url: str) -> None:
    first, second = Bus(nats_url), Bus(nats_url)
    try:
        await first.connect(60)
        await first.ensure_stream()
        await second.connect(60)
        _, stream, _ = await second.events()
        updated = AsyncMock(wraps=stream.update_stream)
        stream.update_stream = updated  # type: ignore[method-assign] # it is only watched
        await second.ensure_stream()
        assert updated.await_count == 0, "another process may change its copies at this moment"
    finally:
        await first.close()
        await second.close()
