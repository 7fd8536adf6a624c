"""What the mesh tells of capture: pipeline, health and supervisor."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from services.gateway import composition as gateway
from services.gateway.config import GatewaySettings
from services.monitoring import composition as monitoring
from services.monitoring.config import MonitoringSettings
from tests.integration.capture.conftest import SECRET, Studio, until
from tests.integration.capture.test_watching import picture


@dataclass
class System:
    """Capture and the monitoring service that asks it."""

    studio: Studio
    url: str

    async def get(self, path: str, tenant: str = "", *scopes: str) -> tuple[int, dict[str, Any]]:
        token = self.studio.token(tenant, scopes or ("read",))
        headers = {"authorization": f"Bearer {token}"}
        async with httpx.AsyncClient(base_url=f"{self.url}/api/system", headers=headers, timeout=30) as client:
            answer = await client.get(path)
        return answer.status_code, answer.json()

    async def post(self, path: str) -> int:
        headers = {"authorization": f"Bearer {self.studio.token(scopes=('operator',))}"}
        async with httpx.AsyncClient(base_url=f"{self.url}/api/system", headers=headers, timeout=30) as client:
            return (await client.post(path)).status_code


@pytest.fixture
async def system(studio: Studio, mesh_dsn: str, nats_url: str) -> AsyncIterator[System]:
    shared: dict[str, Any] = {
        "listen": "127.0.0.1:0",
        "auth_secret": SECRET,
        "shutdown_grace_seconds": 0.2,
        "nats_url": nats_url,
    }
    async with AsyncExitStack() as stack:
        settings = MonitoringSettings(
            **shared, database_url=mesh_dsn, capture_address=studio.capture.address, critical_queues=()
        )
        running = await monitoring.start(settings, stack)
        addresses = {"monitoring": running.address, "capture": studio.capture.address}
        front = await gateway.start(GatewaySettings(**shared, addresses=addresses), stack)
        yield System(studio, f"http://{front.address}")


async def shown(system: System, name: str, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Wait until a loop is shown as is wanted."""

    async def check() -> dict[str, Any] | None:
        _, body = await system.get("/supervisor")
        return next((one for one in body["workers"] if one["name"] == name and wanted(one)), None)

    found: dict[str, Any] = await until(check)
    return found


async def test_the_pipeline_shows_watcher_and_batches_to_their_tenant_and_to_operators(system: System) -> None:
    studio = system.studio
    (studio.root / "left").mkdir()
    (studio.root / "left" / "a.jpg").write_bytes(picture())

    async def gathered() -> dict[str, Any] | None:
        _, body = await system.get("/pipeline")
        watcher, aggregator = body["file_watcher"], body["batch_aggregator"] or {}
        return body if aggregator.get("active_batches") and not watcher["pending_tasks"] else None

    body = await until(gathered)
    assert body["file_watcher"] == {
        "running": True,
        "camera_root": str(studio.root),
        "pending_tasks": 0,
        "observer_type": "native",
    }
    batches = body["batch_aggregator"]
    assert (batches["active_batches"], batches["batch_window_seconds"], batches["idle_timeout_seconds"]) == (1, 90, 30)
    [batch] = batches["batches"]
    assert (batch["camera_id"], batch["detection_count"]) == ("left", 0)
    assert 0 <= batch["last_activity_seconds"] <= batch["age_seconds"] < 60
    for tenant, scopes, sees in (("others", ("read",), False), ("others", ("operator",), True)):
        _, body = await system.get("/pipeline", tenant, *scopes)
        assert (body["file_watcher"] is not None, body["batch_aggregator"] is not None) == (sees, sees)


async def test_the_watcher_is_critical_and_every_loop_is_supervised(system: System) -> None:
    for name in ("file_watcher", "batch_aggregator", "outbox_capture"):
        await shown(system, name, lambda one: one["status"] == "running")
    _, health = await system.get("/health/full")
    workers = {one["name"]: one for one in health["workers"]}
    assert workers["file_watcher"] == {"name": "file_watcher", "running": True, "critical": True}
    assert workers["batch_aggregator"]["critical"] is False
    assert await system.post("/supervisor/workers/file_watcher/stop") == 200
    await shown(system, "file_watcher", lambda one: one["status"] == "stopped")
    status, health = await system.get("/health/full")
    assert (status, health["ready"]) == (503, False)
    assert "file_watcher" in health["message"]
    _, pipeline = await system.get("/pipeline")
    assert pipeline["file_watcher"]["running"] is False
    assert await system.post("/supervisor/workers/file_watcher/start") == 200
    await shown(system, "file_watcher", lambda one: one["status"] == "running")


async def test_capture_that_is_away_is_shown_as_not_running(system: System) -> None:
    await shown(system, "file_watcher", lambda one: one["status"] == "running")
    await system.get("/pipeline")
    await system.studio.stack.aclose()
    async with asyncio.timeout(60):
        _, body = await system.get("/pipeline")
    assert (body["file_watcher"]["running"], body["batch_aggregator"]) == (False, None)
    await shown(system, "file_watcher", lambda one: one["status"] == "crashed")
    status, health = await system.get("/health/full")
    assert (status, health["status"]) == (503, "unhealthy")


async def test_a_gateway_takes_calls_while_capture_is_away(system: System) -> None:
    async with httpx.AsyncClient(base_url=system.url, timeout=30) as client:

        async def told(capture: str) -> dict[str, Any] | None:
            answer = await client.get("/health")
            assert answer.status_code == 200, answer.text
            body: dict[str, Any] = answer.json()
            services = body["services"]
            return body if (services["capture"], services["monitoring"]) == (capture, "healthy") else None

        await until(lambda: told("healthy"))
        await system.studio.stack.aclose()
        body = await until(lambda: told("unhealthy"))
    assert body["status"] == "degraded"
    assert "capture: does not serve" in body["problems"]
