"""The stream of events is read while somebody listens, and nobody misses an event by that."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
from pydantic import SecretStr
from websockets.asyncio.client import connect

from meshkit.bus import Bus
from meshkit.errors import MeshError
from meshkit.live import jobs
from meshkit.live.feed import LiveFeed
from meshkit.live.log import LiveReader
from tests.conftest import NatsControl
from tests.integration.gateway.conftest import Mesh, StartMesh, until
from tests.integration.gateway.live import address, heard, heard_until, listening, publish_created, say
from tests.integration.gateway.test_live_pages import Stream


@pytest.fixture
async def bus(nats_server: NatsControl) -> AsyncIterator[Bus]:
    bus = Bus(nats_server.url)
    await bus.connect(60)
    await bus.ensure_stream()
    yield bus
    await bus.close()


@pytest.fixture
async def live(start_mesh: StartMesh, nats_server: NatsControl, bus: Bus, monkeypatch: pytest.MonkeyPatch) -> Mesh:
    """A gateway that stops to read at once when nobody listens."""
    monkeypatch.setattr("meshkit.live.feed._REST_SECONDS", 0.0)
    mesh: Mesh = await start_mesh(nats_url=SecretStr(nats_server.url))
    return mesh


@pytest.fixture
def tenant() -> str:
    return f"t{secrets.token_hex(4)}"


async def readers(bus: Bus) -> int:
    """How many processes read the stream."""
    _, jetstream, stream = await bus.events()
    found = await jetstream.consumers_info(stream)
    return sum(set(jobs.SUBJECTS) <= set(one.config.filter_subjects or ()) for one in found)


async def until_read_by(bus: Bus, count: int) -> None:
    async with asyncio.timeout(60):
        while await readers(bus) != count:
            pass


async def until_unread(bus: Bus) -> None:
    await until_read_by(bus, 0)


async def test_the_first_listener_has_the_stream_read_and_the_last_one_ends_it(
    live: Mesh, bus: Bus, tenant: str
) -> None:
    assert await readers(bus) == 0
    async with listening(live, tenant=tenant):
        async with listening(live, tenant=f"{tenant}x"):
            await until_read_by(bus, 1)
        async with live.client().stream("GET", "/api/v1/events"):
            assert await readers(bus) == 1
        await publish_created(bus, tenant=tenant)
        assert await readers(bus) == 1
    await until_unread(bus)
    health = (await live.client().get("/api/system/health/websocket")).json()
    assert health["event_broadcaster"]["state"] == "closed"


async def test_who_is_refused_has_nothing_read(live: Mesh, bus: Bus) -> None:
    async with connect(address(live, token="nonsense")) as client:
        await client.wait_closed()
    assert client.close_code == 1008
    assert await readers(bus) == 0


async def test_all_that_follows_the_connection_is_heard_and_nothing_older(live: Mesh, bus: Bus, tenant: str) -> None:
    for _ in range(4):
        await publish_created(bus, 30, tenant=tenant)
        async with connect(address(live, token=live.token(tenant))) as client:
            jobs_made = await publish_created(bus, 5, tenant=tenant)
            told = [(await heard(client))["data"]["job_id"] for _ in jobs_made]
            assert told == jobs_made
        await until_unread(bus)


async def test_all_that_follows_the_head_of_a_stream_is_heard_and_nothing_older(
    live: Mesh, bus: Bus, tenant: str
) -> None:
    await publish_created(bus, 30, tenant=tenant)
    async with live.client(tenant).stream("GET", "/api/v1/events") as answer:
        made = await publish_created(bus, 5, tenant=tenant)
        stream = Stream(answer)
        told = [(await stream.event())["data"] for _ in made]
    assert [job in text for job, text in zip(made, told, strict=True)] == [True] * 5


async def test_what_came_while_nobody_listened_comes_again(live: Mesh, bus: Bus, tenant: str) -> None:
    async with listening(live, tenant=tenant) as client:
        await publish_created(bus, tenant=tenant)
        seen = (await heard_until(client, "job.created"))[-1]["sequence"]
    await until_unread(bus)
    missed = await publish_created(bus, 40, tenant=tenant)
    async with listening(live, tenant=tenant) as client:
        await say(client, type="resync", data={"channel": "jobs", "last_sequence": seen})
        *replayed, ack = await heard_until(client, "resync_ack")
        assert [one["data"]["job_id"] for one in replayed] == missed
        assert ack["replayed_count"] == 40
        assert "gap_too_old" not in ack
        later = await publish_created(bus, 2, tenant=tenant)
        assert [(await heard(client))["data"]["job_id"] for _ in later] == later


async def test_more_than_is_kept_while_nobody_listened_is_a_gap(
    nats_server: NatsControl, bus: Bus, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meshkit.live.feed._REST_SECONDS", 0.0)
    feed = LiveFeed(Bus(nats_server.url), heartbeat_seconds=60, most=10)
    await feed.start()
    try:
        async with feed.listening():
            await publish_created(bus, 3, tenant=tenant)
            reader = LiveReader(feed.log, tenant)
            await until(lambda: len(reader.since(0).messages) == 3)
            newest = reader.since(0).newest
            reader.close()
        await until_unread(bus)
        await publish_created(bus, 25, tenant=tenant)
        async with feed.listening():
            reader = LiveReader(feed.log, tenant)
            await feed.log.ready.wait()
            asked = reader.since(newest)
            assert (asked.too_old, len(asked.messages), asked.newest) == (True, 10, newest + 25)
            assert reader.take() == []
            await publish_created(bus, 1, tenant=tenant)
            await reader.wake.wait()
            assert [one.sequence for one in reader.take()] == [newest + 26]
            reader.close()
    finally:
        await feed.close()


async def test_who_comes_while_nats_is_away_hears_what_is_published_once_it_is_back(
    live: Mesh, nats_server: NatsControl, bus: Bus, tenant: str
) -> None:
    async with listening(live, tenant=tenant) as client:
        await publish_created(bus, tenant=tenant)
        await heard_until(client, "job.created")
    await until_unread(bus)
    nats_server.kill()
    await until(lambda: not bus.connected)
    async with listening(live, tenant=tenant) as client:
        nats_server.start()
        made: list[str] = []
        async with asyncio.timeout(60):
            while not made:
                await asyncio.sleep(0.1)
                with suppress(MeshError):  # NATS is not back yet
                    made = await publish_created(bus, tenant=tenant)
        assert (await heard_until(client, "job.created"))[-1]["data"]["job_id"] == made[0]
