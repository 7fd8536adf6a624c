import asyncio
import uuid
from collections.abc import AsyncIterator

import psutil
import pytest
from psycopg import errors as pg_errors

from meshkit import tracing
from meshkit.bus import Bus, BusMessage
from meshkit.db import Database
from meshkit.loops import Loops
from meshkit.outbox import OutboxEvent, Relay, insert
from meshkit.pipeline import Pipeline
from tests.conftest import NatsControl

SUBJECT = "atelier.test.v1.item.created"
Headers = dict[str, str] | None


def event(number: int) -> OutboxEvent:
    return OutboxEvent(SUBJECT, str(number).encode(), {"tenant": "acme"})


async def write(db: Database, *numbers: int) -> None:
    async with db.transaction() as conn:
        await insert(conn, [event(number) for number in numbers])


async def unpublished(db: Database) -> int:
    async with db.connection() as conn:
        row = await (await conn.execute("SELECT count(*) FROM outbox")).fetchone()
        return int(row[0]) if row else -1


async def run_until_published(db: Database, relay: Relay) -> None:
    # The server frees the lock of a closed connection in its own time.
    async with asyncio.timeout(60):
        while await unpublished(db):
            await relay.loop.run_once()


class Listener:
    """Consumes what the stream has, and remembers it."""

    def __init__(self) -> None:
        self.messages: list[BusMessage] = []
        self.changed = asyncio.Condition()

    async def __call__(self, message: BusMessage) -> None:
        async with self.changed:
            self.messages.append(message)
            self.changed.notify_all()

    async def until(self, count: int) -> list[int]:
        async with asyncio.timeout(60), self.changed:
            await self.changed.wait_for(lambda: len(self.messages) >= count)
        return [int(message.data) for message in self.messages]


@pytest.fixture
async def bus(nats_server: NatsControl) -> AsyncIterator[Bus]:
    bus = Bus(nats_server.url)
    await bus.connect(60)
    assert bus.connected
    yield bus
    await bus.close()


@pytest.fixture
async def relay(db: Database, bus: Bus) -> AsyncIterator[Relay]:
    relay = Relay(db, bus, interval_seconds=0.1)
    yield relay
    await relay.close()


async def test_events_arrive_once_in_order_with_their_headers(db: Database, bus: Bus, relay: Relay) -> None:
    listener = Listener()
    await bus.consume("ordered", [SUBJECT], listener)
    with tracing.activated(tracing.begin(f"00-{'a' * 32}-{'b' * 16}-01")):
        await write(db, *range(5))
    await relay.run_once()
    assert await listener.until(5) == [0, 1, 2, 3, 4]
    headers = listener.messages[0].headers
    assert headers["tenant"] == "acme"
    assert headers["traceparent"].startswith(f"00-{'a' * 32}-")
    assert uuid.UUID(headers["Nats-Msg-Id"])
    assert await unpublished(db) == 0


async def test_a_rolled_back_change_tells_nobody(db: Database, relay: Relay) -> None:
    with pytest.raises(RuntimeError):  # noqa: PT012 -- the block is what is tested
        async with db.transaction() as conn:
            await insert(conn, [event(1)])
            raise RuntimeError
    assert await unpublished(db) == 0


async def test_a_commit_that_comes_late_is_not_passed_over(db: Database, bus: Bus, relay: Relay) -> None:
    listener = Listener()
    await bus.consume("late", [SUBJECT], listener)
    async with db.transaction() as slow:
        await insert(slow, [event(1)])
        await write(db, 2)
        await relay.run_once()
        assert await listener.until(1) == [2]
    await relay.run_once()
    assert await listener.until(2) == [2, 1]


async def test_a_batch_that_is_full_asks_for_more(db: Database, bus: Bus) -> None:
    relay = Relay(db, bus, batch=10)
    await write(db, *range(25))
    assert [await relay.run_once() for _ in range(4)] == [True, True, False, False]
    assert await unpublished(db) == 0
    await relay.close()


async def test_a_relay_that_died_before_it_deleted_repeats_and_the_stream_drops_it(
    db: Database, bus: Bus, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    listener = Listener()
    await bus.consume("repeated", [SUBJECT], listener)
    await write(db, 1, 2)

    async def die(_leader: Pipeline, _ids: list[int]) -> None:
        raise ConnectionError

    with monkeypatch.context() as patched:
        patched.setattr(relay, "_forget", die)
        with pytest.raises(ConnectionError):
            await relay.run_once()
    assert await unpublished(db) == 2
    await relay.run_once()
    await write(db, 3)
    await relay.run_once()
    assert await listener.until(3) == [1, 2, 3]


async def test_one_relay_works_and_another_takes_over(db: Database, bus: Bus, relay: Relay) -> None:
    other = Relay(db, bus)
    await write(db, 1)
    await relay.run_once()
    await write(db, 2)
    await other.run_once()
    assert await unpublished(db) == 1, "the other one stands by"
    await relay.close()
    await run_until_published(db, other)
    await write(db, 3)
    await relay.run_once()
    assert await unpublished(db) == 1, "and now this one does"
    await other.close()


async def test_a_relay_that_stands_by_keeps_its_connection(
    db: Database, bus: Bus, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Pipeline] = []
    dedicated = db.dedicated

    async def count() -> Pipeline:
        made.append(await dedicated())
        return made[-1]

    await relay.run_once()
    monkeypatch.setattr(db, "dedicated", count)
    other = Relay(db, bus)
    for _ in range(5):
        await other.run_once()
    assert len(made) == 1
    await other.close()
    assert not made[0].usable


async def test_a_relay_that_lost_nats_leaves_the_work_to_one_that_has_it(
    db: Database, relay: Relay, nats_server: NatsControl
) -> None:
    cut_off = Bus(nats_server.url)
    await cut_off.connect(60)
    leader = Relay(db, cut_off)
    await write(db, 1)
    await leader.run_once()
    await cut_off.close()
    await leader.run_once()
    await write(db, 2)
    await run_until_published(db, relay)


async def test_a_relay_reads_on_after_its_table_has_changed(db: Database, relay: Relay) -> None:
    await write(db, 1)
    await relay.run_once()
    async with db.transaction() as conn:
        await conn.execute("ALTER TABLE outbox ALTER COLUMN subject TYPE varchar(500)")
    await write(db, 2)
    with pytest.raises(pg_errors.FeatureNotSupported):
        await relay.run_once()
    await run_until_published(db, relay)


async def test_a_relay_whose_connection_was_lost_makes_another(db: Database, relay: Relay) -> None:
    await write(db, 1)
    await relay.run_once()
    assert relay._conn is not None
    await relay._conn.close()
    await write(db, 2)
    await run_until_published(db, relay)


async def test_nothing_is_lost_when_nats_is_killed_and_its_disk_emptied(
    db: Database, bus: Bus, relay: Relay, nats_server: NatsControl
) -> None:
    listener = Listener()
    await bus.consume("survivor", [SUBJECT], listener)
    async with Loops(relay.loop):
        await write(db, 1, 2)
        relay.wake()
        assert await listener.until(2) == [1, 2]
        nats_server.kill()
        await write(db, 3, 4)
        relay.wake()
        nats_server.wipe()
        nats_server.start()
        assert await listener.until(4) == [1, 2, 3, 4]
        async with asyncio.timeout(60):
            while await unpublished(db):  # noqa: ASYNC110 -- what is waited for has no event
                await asyncio.sleep(0.05)


async def waiting(db: Database) -> list[bytes]:
    async with db.connection() as conn:
        rows = await (await conn.execute("SELECT substr(payload, 1, 9) FROM outbox ORDER BY id")).fetchall()
        return [bytes(row[0]) for row in rows]


@pytest.mark.parametrize("refused", ["too large", "too large with its headers", "without a stream"])
async def test_an_event_that_is_refused_leaves_only_itself_waiting(
    db: Database, bus: Bus, relay: Relay, refused: str
) -> None:
    assert bus._client is not None
    limit = bus._client.max_payload
    bad = {
        "too large": OutboxEvent(SUBJECT, b"x" * (limit + 1)),
        "too large with its headers": OutboxEvent(SUBJECT, b"x" * (limit - 20)),
        "without a stream": OutboxEvent("elsewhere.v1.x", b"x" * 9),
    }[refused]
    listener = Listener()
    await bus.consume("refusing", [SUBJECT], listener)
    async with db.transaction() as conn:
        await insert(conn, [event(1), bad, event(2), event(3)])
    for _ in range(2):
        assert not await relay.run_once()
        assert await waiting(db) == [b"x" * 9]
    await write(db, 4)
    await relay.run_once()
    assert await listener.until(4) == [1, 2, 3, 4]
    assert bus._client.stats["reconnects"] == 0


async def test_an_acknowledgement_that_is_lost_has_its_event_repeated_and_the_stream_drops_it(
    db: Database, bus: Bus, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    listener = Listener()
    await bus.consume("deaf", [SUBJECT], listener)
    assert bus._client is not None
    publish = bus._client.publish

    # The consumer publishes too: its requests and acknowledgements.
    async def lose_the_second(subject: str, payload: bytes = b"", reply: str = "", headers: Headers = None) -> None:
        await publish(subject, payload, "_INBOX.nobody" if payload == b"2" else reply, headers)

    await write(db, 1, 2, 3)
    with monkeypatch.context() as patched:
        patched.setattr(bus._client, "publish", lose_the_second)
        assert not await relay.run_once()
        assert await waiting(db) == [b"2"]
    await relay.run_once()
    await write(db, 4)
    await relay.run_once()
    assert await listener.until(4) == [1, 2, 3, 4]


async def test_nats_that_restarts_in_the_middle_of_a_run_gets_each_event_once_in_order(
    db: Database, bus: Bus, relay: Relay, nats_server: NatsControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert bus._client is not None
    publish, flush = bus._client.publish, bus._client.flush

    async def restart_at_ten(subject: str, payload: bytes = b"", reply: str = "", headers: Headers = None) -> None:
        if payload == b"10":
            await flush()
            nats_server.kill()
            nats_server.start()
        await publish(subject, payload, reply, headers)

    await write(db, *range(20))
    with monkeypatch.context() as patched:
        patched.setattr(bus._client, "publish", restart_at_ten)
        await relay.run_once()
    await run_until_published(db, relay)
    await write(db, 20)
    await run_until_published(db, relay)
    # Who consumed meanwhile may be handed again what it acknowledged as NATS died: what the stream holds is asked for.
    listener = Listener()
    await bus.consume("interrupted", [SUBJECT], listener)
    assert await listener.until(21) == list(range(21))


async def test_nats_that_hangs_holds_up_neither_a_run_nor_the_end_for_long(
    db: Database, bus: Bus, relay: Relay, nats_server: NatsControl
) -> None:
    listener = Listener()
    await bus.consume("patient", [SUBJECT], listener)
    await write(db, 1)
    await relay.run_once()
    assert await listener.until(1) == [1]
    await write(db, 2, 3)
    nats = psutil.Process(nats_server._running.pid)
    nats.suspend()
    try:
        async with asyncio.timeout(60):
            while nats.status() != psutil.STATUS_STOPPED:  # noqa: ASYNC110 -- a busy machine takes its time
                await asyncio.sleep(0.01)
        async with asyncio.timeout(60):  # NATS is not let go before
            assert not await relay.run_once()
            async with Loops(relay.loop):
                relay.wake()
                await asyncio.sleep(0.2)  # in the middle of a run
        assert await waiting(db) == [b"2", b"3"]
    finally:
        nats.resume()
    await run_until_published(db, relay)
    await write(db, 4)
    await run_until_published(db, relay)
    assert await listener.until(4) == [1, 2, 3, 4]
