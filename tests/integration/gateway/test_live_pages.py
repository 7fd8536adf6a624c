"""What is told of live events, of the mesh to operators, and events as a stream."""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator
from typing import Any

import httpx
import jsonschema_rs
import pytest
from atelier.monitoring.v1 import health_pb2, system_service_pb2, system_service_pb2_grpc
from pydantic import SecretStr

from meshkit.auth import TokenVerifier
from meshkit.bus import Bus
from meshkit.config import MeshSettings
from meshkit.server import MeshServer
from tests.integration.gateway.conftest import SECRET, Mesh, StartMesh, until
from tests.integration.gateway.live import heard, heard_until, listening, publish_created


@pytest.fixture
async def bus(nats_url: str) -> AsyncIterator[Bus]:
    bus = Bus(nats_url)
    await bus.connect(60)
    yield bus
    await bus.close()


@pytest.fixture
async def live(start_mesh: StartMesh, nats_url: str) -> Mesh:
    mesh: Mesh = await start_mesh(nats_url=SecretStr(nats_url), live_status_seconds=0.2)
    return mesh


@pytest.fixture
def tenant() -> str:
    return f"t{secrets.token_hex(4)}"


async def test_the_registry_lists_every_documented_type_with_a_schema_that_its_example_holds_to(mesh: Mesh) -> None:
    answer = await mesh.client().get("/api/system/websocket/events")
    assert answer.status_code == 200
    found = answer.json()
    assert found["channels"] == ["detections", "events", "alerts", "cameras", "jobs", "system"]
    types = {one["type"]: one for one in found["event_types"]}
    assert list(types) == sorted(types)
    documented = {
        *("detection.new", "detection.batch", "event.created", "event.updated", "event.deleted", "event"),
        *("alert.created", "alert.acknowledged", "alert.dismissed"),
        *("camera.status_changed", "camera.enabled", "camera.disabled"),
        *("job.started", "job.progress", "job.completed", "job.failed"),
        *("system.health_changed", "system.status", "gpu.stats_updated", "service.status_changed", "service_status"),
        *("ping", "pong", "error"),
    }
    assert len(documented) == 24
    assert set(types) - documented == {"job.created", "job.requeued"}
    assert found["total_count"] == len(types) == 26
    assert found["deprecated_count"] == 2
    assert {name: one["replacement"] for name, one in types.items() if one["deprecated"]} == {
        "event": "event.created",
        "service_status": "service.status_changed",
    }
    for one in types.values():
        assert set(one) == {
            *("type", "channel", "description", "deprecated", "payload_schema", "example", "replacement")
        }
        assert one["description"]
        assert one["payload_schema"]["type"] == "object"
        assert set(one["example"]) == set(one["payload_schema"]["properties"])
        jsonschema_rs.validate(one["payload_schema"], one["example"])
    assert {name for name, one in types.items() if one["channel"] is None} == {"ping", "pong", "error"}
    assert {one["channel"] for one in types.values()} - {None} == set(found["channels"])
    assert types["detection.new"]["payload_schema"]["properties"]["detection_id"]["type"] == "integer"


async def test_messages_hold_to_the_schemas_of_the_registry(live: Mesh, bus: Bus, tenant: str) -> None:
    types = (await live.client().get("/api/system/websocket/events")).json()["event_types"]
    schemas = {one["type"]: one["payload_schema"] for one in types}
    async with listening(live, tenant=tenant, scopes=("operator",)) as client:
        await publish_created(bus, tenant=tenant)
        seen: dict[str, Any] = {}
        while not {"job.created", "system.status"} <= set(seen):
            message = await heard(client)
            seen[message["type"]] = message
    for type_, message in seen.items():
        jsonschema_rs.validate(schemas[type_], message["data"])


async def test_the_pages_want_a_token(mesh: Mesh) -> None:
    async with httpx.AsyncClient(base_url=mesh.url) as anyone:
        for path in ("/api/system/websocket/events", "/api/system/health/websocket", "/api/v1/events"):
            assert (await anyone.get(path)).status_code == 401
    writer = mesh.client(scopes=("worker",))
    assert (await writer.get("/api/system/health/websocket")).status_code == 403


async def test_the_health_of_live_events_follows_nats(live: Mesh, mesh: Mesh) -> None:
    found = (await live.client().get("/api/system/health/websocket")).json()
    assert set(found) == {"event_broadcaster", "system_broadcaster", "timestamp"}
    works = {"state": "closed", "failure_count": 0, "is_degraded": False, "message": None}
    async with asyncio.timeout(60):  # a gateway starts without NATS where that takes long
        while found["event_broadcaster"] != works:
            found = (await live.client().get("/api/system/health/websocket")).json()
    without = (await mesh.client().get("/api/system/health/websocket")).json()["event_broadcaster"]
    assert (without["state"], without["is_degraded"]) == ("half_open", True)
    assert "NATS" in without["message"]


async def test_operators_are_told_how_the_mesh_is_and_what_becomes_of_it(live: Mesh) -> None:
    async with listening(live, "/ws/system", tenant="ops", scopes=("operator",)) as client:
        first = await heard(client)
        assert first["type"] == "system.status"
        while first["data"]["services"] != {"tasks": "healthy"}:  # asked in bounded time, which a busy machine exceeds
            first = (await heard_until(client, "system.status"))[-1]
        assert first["data"]["clients"] == 1
        await live.server.stop(0)
        told = await heard_until(client, "system.health_changed")
        changed = {one["type"]: one["data"] for one in told}
        assert changed["service.status_changed"] == {
            "service": "tasks",
            "status": "unhealthy",
            "previous_status": "healthy",
            "message": "tasks: does not serve",
        }
        assert changed["system.health_changed"]["health"] == "unhealthy"


class Watching(system_service_pb2_grpc.SystemServiceServicer):
    """Monitoring that finds a queue without workers; it counts how often it is asked."""

    def __init__(self) -> None:
        self.asked = 0

    async def GetPipeline(self, request: Any, context: Any) -> system_service_pb2.GetPipelineResponse:
        self.asked += 1
        answer = system_service_pb2.GetPipelineResponse()
        told = answer.pipeline.degradation
        told.mode, told.is_degraded = health_pb2.DEGRADATION_MODE_DEGRADED, True
        told.services.add(name="tasks", status=health_pb2.PART_STATUS_HEALTHY)
        told.services.add(name="editing_workers", status=health_pb2.PART_STATUS_UNHEALTHY, error_message="none")
        return answer


async def test_operators_are_told_what_monitoring_judges_while_they_listen(start_mesh: StartMesh) -> None:
    monitoring = Watching()  # type: ignore[abstract] # what it lacks answers UNIMPLEMENTED
    settings = MeshSettings(listen="127.0.0.1:0", auth_secret=SecretStr(SECRET), shutdown_grace_seconds=2)
    server = MeshServer(
        settings,
        servicers=[(system_service_pb2_grpc.add_SystemServiceServicer_to_server, monitoring)],
        verifier=TokenVerifier(secret=SECRET),
    )
    port = await server.start()
    mesh: Mesh = await start_mesh(live_status_seconds=0.2, addresses={"monitoring": f"127.0.0.1:{port}"})
    try:
        async with listening(mesh, "/ws/system", tenant="ops", scopes=("operator", "read")) as client:
            told = (await heard_until(client, "system.status"))[-1]
            while (told["data"]["degradation"], told["data"]["services"]["tasks"]) != ("degraded", "healthy"):
                told = (await heard_until(client, "system.status"))[-1]  # asked in bounded time, as above
            assert told["data"]["status"] == "degraded"
            services = told["data"]["services"]
            assert (services["tasks"], services["editing_workers"]) == ("healthy", "unhealthy")
            assert "editing_workers: none" in told["data"]["problems"]
            await server.stop(0)
            while told["data"]["services"]["monitoring"] == "healthy":
                told = (await heard_until(client, "system.status"))[-1]
            assert told["data"]["degradation"] is None
            assert told["data"]["services"].keys() == {"tasks", "monitoring"}
        assert monitoring.asked > 0
        asked = monitoring.asked
        async with listening(mesh, tenant="acme"):
            pass
        assert monitoring.asked == asked
    finally:
        await server.stop(0)


class Stream:
    """Server-sent events of one request."""

    def __init__(self, answer: httpx.Response) -> None:
        self._lines = answer.aiter_lines()

    async def event(self) -> dict[str, str]:
        """The next event that has data."""
        found: dict[str, str] = {}
        async with asyncio.timeout(60):
            async for line in self._lines:
                name, _, value = line.partition(": ")
                if name in {"id", "event", "data"}:
                    found[name] = value
                if not line and "data" in found:
                    return found
                if not line:
                    found = {}
        raise AssertionError("the stream ended")


async def test_events_come_as_a_stream_that_resumes(live: Mesh, bus: Bus, tenant: str) -> None:
    client = live.client(tenant)
    async with client.stream("GET", "/api/v1/events?events=job.*") as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        stream = Stream(answer)
        jobs = await publish_created(bus, 3, tenant)
        first = await stream.event()
        message = json.loads(first["data"])
        assert (first["event"], first["id"]) == ("job.created", str(message["sequence"]))
        assert message["data"]["job_id"] == jobs[0]
    async with client.stream("GET", "/api/v1/events", headers={"last-event-id": first["id"]}) as answer:
        stream = Stream(answer)
        again = [json.loads((await stream.event())["data"])["data"]["job_id"] for _ in range(2)]
        assert again == jobs[1:]
    async with client.stream("GET", "/api/v1/events", headers={"last-event-id": "0"}) as answer:
        gap = await Stream(answer).event()
        assert gap["event"] == "gap"
        assert json.loads(gap["data"])["gap_too_old"] is True
    refused = await client.get("/api/v1/events?events=*.x")
    assert (refused.status_code, refused.json()["detail"][0]["loc"]) == (422, ["query", "events"])


async def test_a_stream_of_events_ends_when_the_gateway_stops(live: Mesh, tenant: str) -> None:
    async with live.client(tenant).stream("GET", "/api/v1/events") as answer:
        live.stopping.set()
        async with asyncio.timeout(60):
            assert [line async for line in answer.aiter_lines()][:1] == ["retry: 2000"]
    await until(lambda: answer.is_closed)
