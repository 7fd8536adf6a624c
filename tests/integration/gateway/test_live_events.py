"""`/ws/events` over real sockets, from a real stream of events."""

import asyncio
import json
import logging
import secrets
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import structlog
from atelier.events.v1 import events_pb2
from prometheus_client import REGISTRY
from pydantic import SecretStr
from structlog.testing import capture_logs
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Origin, Subprotocol

from meshkit.auth import LEEWAY_SECONDS
from meshkit.bus import Bus
from services.gateway.server import MOST_SAID_BYTES
from tests.conftest import NatsControl
from tests.integration.gateway.conftest import Mesh, StartMesh, until
from tests.integration.gateway.live import (
    address,
    created,
    ended,
    heard,
    heard_until,
    listening,
    publish,
    publish_created,
    say,
)


@pytest.fixture
async def bus(nats_url: str) -> AsyncIterator[Bus]:
    bus = Bus(nats_url)
    await bus.connect(60)
    yield bus
    await bus.close()


@pytest.fixture
async def live(start_mesh: StartMesh, nats_url: str, bus: Bus) -> Mesh:
    """A gateway that reads the session's NATS. Keep tenants apart."""
    mesh: Mesh = await start_mesh(nats_url=SecretStr(nats_url))
    return mesh


@pytest.fixture
def tenant() -> str:
    return f"t{secrets.token_hex(4)}"


async def closed(mesh: Mesh, path: str = "/ws/events", **query: str) -> tuple[int | None, str]:
    """Connect, and return how the gateway closes."""
    async with connect(address(mesh, path, **query)) as client:
        return await close_of(client)


async def close_of(client: ClientConnection) -> tuple[int | None, str]:
    """Listen to the end, and return how the gateway closes."""
    async with asyncio.timeout(60):
        while True:
            try:
                await client.recv()
            except ConnectionClosed:
                return client.close_code, client.close_reason or ""


async def test_an_event_comes_in_its_envelope_to_its_tenant_alone(live: Mesh, bus: Bus, tenant: str) -> None:
    async with listening(live, tenant=tenant) as client, listening(live, tenant=f"{tenant}x") as other:
        [job] = await publish_created(bus, tenant=tenant)
        [foreign] = await publish_created(bus, tenant=f"{tenant}x")
        [message] = await heard_until(client, "job.created")
        assert set(message) == {"type", "data", "timestamp", "sequence", "requires_ack"}
        assert (message["data"]["job_id"], message["data"]["job_type"]) == (job, "GENERATION")
        assert message["requires_ack"] is False
        [theirs] = await heard_until(other, "job.created")
        assert theirs["data"]["job_id"] == foreign
        assert theirs["sequence"] > message["sequence"]


async def test_the_life_of_jobs_is_told_by_the_documented_types(live: Mesh, bus: Bus, tenant: str) -> None:
    job = created().task_id
    workflow = events_pb2.BaseEvent(task_id=job, status="RUNNING")
    workflow.metadata.update({"completed_steps": 1, "total_steps": 4, "progress": 25.0})
    training = events_pb2.TrainingStatusEvent(task_id=job, status="COMPLETED", local_model_path="loras/x/y.safetensors")
    async with listening(live, tenant=tenant) as client:
        for subject, event in (
            ("tasks.v1.task.started", ended(job, "executing")),
            ("tasks.v1.step.requeued", ended(job, "pending", "lost")),
            ("tasks.v1.task.failed", ended(job, "failed", "no room")),
            ("tasks.v1.task.cancelled", ended(job, "cancelled")),
            ("workflows.v1.workflow.running", workflow),
            ("training.v1.training.completed", training),
        ):
            await publish(bus, f"atelier.{subject}", event, tenant)
        told = [message for message in await heard_until(client, "job.completed") if "data" in message]
    assert [message["type"] for message in told] == [
        "job.started",
        "job.requeued",
        "job.failed",
        "job.failed",
        "job.progress",
        "job.completed",
    ]
    data = [message["data"] for message in told]
    assert (data[1]["error"], data[2]["error"], data[3]["error"]) == ("lost", "no room", "cancelled")
    assert data[2]["retryable"] is False
    assert (data[4]["progress"], data[4]["message"], data[4]["job_type"]) == (25.0, "step 1 of 4", "WORKFLOW")
    assert data[5]["result"] == {"local_model_path": "loras/x/y.safetensors"}
    sequences = [message["sequence"] for message in told]
    assert sequences == sorted(set(sequences))


async def test_progress_passes_without_a_number_of_its_own(live: Mesh, bus: Bus, tenant: str) -> None:
    job = created().task_id
    event = events_pb2.TaskProgressEvent(task_id=job, tenant=tenant, attempt=1, progress=40.0, step=8, total_steps=20)
    async with listening(live, tenant=tenant) as client:
        await publish_created(bus, tenant=tenant)
        [message] = await heard_until(client, "job.created")
        bus.notify(f"atelier.progress.{job}", event.SerializeToString())
        progress = (await heard_until(client, "job.progress"))[-1]
        assert progress["data"] == {"job_id": job, "job_type": None, "progress": 40.0, "message": "step 8 of 20"}
        assert progress["sequence"] >= message["sequence"]
        await say(client, type="resync", data={"channel": "jobs", "last_sequence": message["sequence"] - 1})
        replayed = await heard_until(client, "resync_ack")
        assert [one["type"] for one in replayed if one.get("replay")] == ["job.created"]


@pytest.mark.parametrize("way", ["token", "api_key", "subprotocol", "header"])
async def test_a_token_may_come_in_every_way(live: Mesh, way: str) -> None:
    token = live.token()
    more: dict[str, Any] = {}
    query = {way: token} if way in {"token", "api_key"} else {}
    if way == "subprotocol":
        more["subprotocols"] = [f"api-key.{token}"]
    if way == "header":
        more["additional_headers"] = {"authorization": f"Bearer {token}"}
    async with connect(address(live, **query), **more) as client:
        await say(client, type="ping")
        assert await heard(client) == {"type": "pong"}
        # A browser breaks off a connection that is accepted without what it offered.
        assert client.subprotocol == (f"api-key.{token}" if way == "subprotocol" else None)


async def test_who_has_no_good_token_is_accepted_and_closed_with_1008(live: Mesh) -> None:
    assert (await closed(live))[0] == 1008
    assert await closed(live, token="nonsense") == (1008, "The token is not valid")
    assert (await closed(live, token=live.token(tenant="")))[0] == 1008
    assert await closed(live, "/ws/system", token=live.token()) == (1008, "The token lacks the scope 'operator'")


async def test_a_page_of_another_origin_is_refused_before_it_is_connected(start_mesh: StartMesh) -> None:
    mesh: Mesh = await start_mesh(cors_origins=("https://shop.example",))
    url = address(mesh, token=mesh.token())
    for origin in ("https://evil.example", "null", f"{mesh.url}1", "http://[x"):
        with pytest.raises(InvalidStatus) as refused:
            async with connect(url, origin=Origin(origin)):
                pass
        assert refused.value.response.status_code == 403, origin
    for origin in (mesh.url, "https://shop.example"):
        async with connect(url, origin=Origin(origin)) as client:
            await say(client, type="ping")
            assert await heard(client) == {"type": "pong"}


async def test_an_unknown_path_is_not_found(live: Mesh) -> None:
    with pytest.raises(InvalidStatus) as refused:
        async with connect(address(live, "/ws/nothing")):
            pass
    assert refused.value.response.status_code == 404


async def test_the_gateway_tells_that_the_connection_lives_and_how_far_it_is(
    start_mesh: StartMesh, nats_url: str, bus: Bus, tenant: str
) -> None:
    mesh: Mesh = await start_mesh(nats_url=SecretStr(nats_url), live_heartbeat_seconds=1.0)
    async with listening(mesh, tenant=tenant) as client:
        await publish_created(bus, tenant=tenant)
        message = (await heard_until(client, "job.created"))[-1]
        ping = (await heard_until(client, "ping"))[-1]
        assert set(ping) == {"type", "lastSeq"}
        assert ping["lastSeq"] >= message["sequence"]


async def test_only_what_is_subscribed_to_comes(live: Mesh, bus: Bus, tenant: str) -> None:
    async with listening(live, tenant=tenant) as client:
        await say(client, type="subscribe", data={"events": ["job.completed", "alert.*"]})
        assert await heard_until_answer(client) == {"action": "subscribed", "events": ["job.completed", "alert.*"]}
        job = created().task_id
        await publish(bus, "atelier.tasks.v1.task.failed", ended(job, "failed"), tenant)
        await publish(bus, "atelier.tasks.v1.task.completed", ended(job, "completed"), tenant)
        told = await heard_until(client, "job.completed")
        assert [one["type"] for one in told if "data" in one] == ["job.completed"]
        await say(client, type="unsubscribe", data={"events": ["job.completed"]})
        assert await heard_until_answer(client) == {"action": "unsubscribed", "events": ["job.completed"]}
        await say(client, type="subscribe", data={"events": ["job.*"]})
        await heard_until_answer(client)
        await publish(bus, "atelier.tasks.v1.task.completed", ended(job, "completed"), tenant)
        await publish(bus, "atelier.tasks.v1.task.failed", ended(job, "failed"), tenant)
        told = await heard_until(client, "job.failed")
        assert [one["type"] for one in told if "data" in one] == ["job.failed"]


async def heard_until_answer(client: Any) -> dict[str, Any]:
    while "action" not in (message := await heard(client)):
        pass
    return message


@pytest.mark.parametrize(
    ("said", "error"),
    [
        ("{", "invalid_json"),
        ("[]", "invalid_message_format"),
        ("{}", "invalid_message_format"),
        (b"{}", "invalid_message_format"),
        ('{"type": "shout"}', "unknown_message_type"),
        ('{"type": "subscribe"}', "validation_error"),
        ('{"type": "subscribe", "data": {"events": ["*.x"]}}', "validation_error"),
        ('{"type": "resync", "data": {"channel": "none", "last_sequence": 1}}', "validation_error"),
        ('{"type": "resync", "data": {"channel": "jobs", "last_sequence": true}}', "validation_error"),
    ],
)
async def test_what_is_not_understood_is_answered_and_the_connection_stays(
    mesh: Mesh, said: str | bytes, error: str
) -> None:
    async with listening(mesh) as client:
        await client.send(said)
        answer = await heard(client)
        assert set(answer) == {"type", "error", "message", "details"}
        assert (answer["type"], answer["error"]) == ("error", error)
        await say(client, type="ping")
        assert await heard(client) == {"type": "pong"}


async def test_what_was_missed_comes_again_also_from_another_gateway(
    live: Mesh, bus: Bus, tenant: str, start_mesh: StartMesh, nats_url: str
) -> None:
    async with listening(live, tenant=tenant) as client:
        [first] = await publish_created(bus, tenant=tenant)
        seen = (await heard_until(client, "job.created"))[-1]
    assert seen["data"]["job_id"] == first
    missed = await publish_created(bus, 3, tenant=tenant)
    await live.stack.aclose()  # one after the other, as a restart does
    later = await publish_created(bus, 2, tenant=tenant)
    other: Mesh = await start_mesh(nats_url=SecretStr(nats_url))
    async with listening(other, tenant=tenant) as client:
        await say(client, type="resync", data={"channel": "jobs", "last_sequence": seen["sequence"]})
        told = await heard_until(client, "resync_ack")
        replayed, ack = told[:-1], told[-1]
        assert [one["data"]["job_id"] for one in replayed] == [*missed, *later]
        assert all(one["replay"] for one in replayed)
        assert ack["last_sequence"] >= replayed[-1]["sequence"]
        assert {**ack, "last_sequence": 0} == {
            "type": "resync_ack",
            "channel": "jobs",
            "last_sequence": 0,
            "replayed_count": 5,
        }
        await say(client, type="resync", data={"channel": "alerts", "last_sequence": seen["sequence"]})
        assert (await heard_until(client, "resync_ack"))[-1]["replayed_count"] == 0


async def test_a_gap_that_is_too_old_is_told(nats_server: NatsControl, start_mesh: StartMesh, tenant: str) -> None:
    bus = Bus(nats_server.url)
    await bus.connect(60)
    mesh: Mesh = await start_mesh(nats_url=SecretStr(nats_server.url))
    try:
        async with listening(mesh, tenant=tenant) as client:
            await publish_created(bus, tenant=tenant)
            seen = (await heard_until(client, "job.created"))[-1]["sequence"]
        # A stream that is lost with its disk goes on above every number of the one before.
        nats_server.kill()
        nats_server.wipe()
        nats_server.start()
        async with asyncio.timeout(60), listening(mesh, tenant=tenant) as client:
            while True:
                try:
                    await publish_created(bus, tenant=tenant)
                    break
                except Exception:  # NATS is not back yet
                    await asyncio.sleep(0.2)
            told = (await heard_until(client, "job.created"))[-1]["sequence"]
            assert told > seen
            await say(client, type="resync", data={"channel": "jobs", "last_sequence": seen})
            ack = (await heard_until(client, "resync_ack"))[-1]
            assert ack["gap_too_old"] is True
            assert seen < ack["oldest_available"] <= told
    finally:
        await bus.close()


async def test_who_says_nothing_is_let_go_and_who_says_too_much_is_closed(start_mesh: StartMesh) -> None:
    mesh: Mesh = await start_mesh(live_idle_seconds=0.3)
    assert (await closed(mesh, token=mesh.token()))[0] == 1000
    mesh = await start_mesh()
    async with listening(mesh) as client:
        for _ in range(299):
            await say(client, type="ping")
            await heard(client)
        await say(client, type="ping")
        assert (await close_of(client))[0] == 1008


async def test_a_token_that_is_revoked_ends_the_connection(
    start_mesh: StartMesh, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.gateway.live.session._WATCH_SECONDS", 0.1)
    revoked = tmp_path / "revoked"
    revoked.write_text("")
    mesh: Mesh = await start_mesh(auth_revoked_file=revoked)
    token = mesh.issuer.issue("ada", "acme", ("read",), 60)
    jti = json.loads(_claims(token))["jti"]
    async with connect(address(mesh, token=token)) as client:
        await say(client, type="ping")
        assert await heard(client) == {"type": "pong"}
        revoked.write_text(f"{jti}\n")
        assert await close_of(client) == (1008, "The token is revoked")


async def test_a_token_that_expires_ends_the_connection(start_mesh: StartMesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.gateway.live.session._WATCH_SECONDS", 0.1)
    mesh: Mesh = await start_mesh()
    # Clocks may differ by so much: the token holds for ten seconds.
    lasting, ending = mesh.token(ttl=3600), mesh.token(ttl=10 - LEEWAY_SECONDS)
    async with connect(address(mesh, token=lasting)) as other, connect(address(mesh, token=ending)) as client:
        await say(client, type="ping")
        assert await heard(client) == {"type": "pong"}
        assert await close_of(client) == (1008, "The token has expired")
        await say(other, type="ping")
        assert await heard(other) == {"type": "pong"}


async def test_a_message_that_is_too_big_ends_the_connection_alone(mesh: Mesh) -> None:
    async with listening(mesh) as other, listening(mesh) as client:
        # As much as is taken is read, and only its content is refused.
        await client.send("x" * MOST_SAID_BYTES)
        assert (await heard(client))["error"] == "invalid_json"
        await client.send("x" * (MOST_SAID_BYTES + 1))
        assert (await close_of(client))[0] == 1009
        await say(other, type="ping")
        assert await heard(other) == {"type": "pong"}


def _claims(token: str) -> bytes:
    import base64  # noqa: PLC0415 -- of this one test

    return base64.urlsafe_b64decode(token.split(".")[1] + "==")


async def test_connections_count_as_streams_of_their_tenant(start_mesh: StartMesh) -> None:
    mesh: Mesh = await start_mesh(tenant_max_streams=1)
    async with listening(mesh):
        assert (await closed(mesh, token=mesh.token()))[0] == 1008
        assert (await closed(mesh, token=mesh.token("other", ("write",))))[0] == 1008
        async with listening(mesh, tenant="other"):
            pass


async def test_a_gateway_that_stops_says_so(live: Mesh) -> None:
    async with listening(live) as client:
        live.stopping.set()
        assert (await close_of(client))[0] == 1012


@pytest.fixture
def informed() -> Iterator[None]:
    """The threshold of a service; a program that configures nothing gets only warnings."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.INFO))
    yield
    structlog.configure(**before)


@pytest.mark.usefixtures("informed")
async def test_no_token_is_logged(live: Mesh, caplog: pytest.LogCaptureFixture, tenant: str) -> None:
    token = live.token(tenant)
    with capture_logs() as written:
        async with connect(address(live, token=token), subprotocols=[Subprotocol(f"api-key.{token}")]) as client:
            await say(client, type="ping")
            await heard(client)
        await until(lambda: any(line["event"] == "socket" for line in written))
    assert token not in repr(written)
    assert token not in caplog.text


async def test_a_connection_that_is_over_is_counted_no_more(mesh: Mesh) -> None:
    def counted() -> float:
        return REGISTRY.get_sample_value("atelier_http_connections") or 0.0

    async with listening(mesh):
        assert counted() == 1
        assert REGISTRY.get_sample_value("atelier_live_clients", {"route": "/ws/events"}) == 1
    await until(lambda: counted() == 0)
    await until(lambda: REGISTRY.get_sample_value("atelier_live_clients", {"route": "/ws/events"}) == 0)
