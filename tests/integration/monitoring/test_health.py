"""Health of the whole, degradation, and breakers, with the tasks service behind."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from services.monitoring.health import watch as degradation_module
from tests.conftest import NatsControl
from tests.documented import documented
from tests.integration.monitoring.conftest import Mesh, StartMesh, Whole

_ASKED = ("tasks", "postgres", "redis")


async def well(http: httpx.AsyncClient, status: int) -> httpx.Response:
    """Ask until those that are well are told to be: each is asked in bounded time, which a busy machine may exceed."""
    async with asyncio.timeout(120):
        while True:
            answer = await http.get("/health/full")
            body = answer.json()
            told = {one["name"]: one["status"] for one in body["ai_services"]}
            told |= {name: body[name]["status"] for name in ("postgres", "redis")}
            known = {one["name"] for one in body["workers"]} >= {"tasks_expiry", "monitoring_record"}
            if known and answer.status_code == status and {told[name] for name in _ASKED} == {"healthy"}:
                return answer


async def test_the_whole_is_unhealthy_with_the_same_body_until_a_worker_is_there(whole: Whole) -> None:
    http = whole.mesh.http("read")
    begun = time.monotonic()
    await http.get("/health/full")
    assert time.monotonic() - begun < 25, "the service that hangs does not hold the answer up, as a call of 30 s would"
    answer = await well(http, 503)
    body = answer.json()
    documented("GET", "/api/system/health/full").holds(body)
    assert (body["status"], body["ready"]) == ("unhealthy", False)
    assert "inference_workers" in body["message"]
    assert body["postgres"] == {
        "name": "postgres",
        "status": "healthy",
        "message": "Database operational",
        "details": None,
    }
    assert body["redis"]["status"] == "healthy"
    assert body["redis"]["details"]["role"] == "nats"
    assert body["redis"]["details"]["nats_version"].count(".") == 2
    services = {one["name"]: one for one in body["ai_services"]}
    assert services["tasks"].keys() == {
        *("name", "display_name", "status", "url", "response_time_ms", "error", "circuit_state", "last_check")
    }
    assert services["tasks"]["status"] == "healthy"
    assert services["tasks"]["response_time_ms"] > 0
    assert services["workflows"]["error"]
    assert services["training"]["error"]
    assert services["fal_standard"]["circuit_state"] == "closed"
    assert services.keys().isdisjoint({"evaluation", "capture"}), "what a mesh has not is no fault of it"
    assert body["version"]
    assert {one["name"] for one in body["workers"]} >= {"tasks_expiry", "monitoring_record"}
    assert {one["name"] for one in body["workers"] if one["critical"]} == {"tasks_expiry"}

    await whole.worker()
    later = (await well(http, 200)).json()
    assert later.keys() == body.keys(), "the body is the same"
    assert (later["status"], later["ready"]) == ("degraded", True)
    assert "workflows" in later["message"]


async def test_without_the_tasks_service_the_answer_says_so(start_mesh: StartMesh) -> None:
    away = "127.0.0.1:1"
    mesh = await start_mesh(tasks_address=away, workflows_address=away, training_address=away)
    answer = await mesh.http().get("/health/full")
    assert answer.status_code == 503
    services = {one["name"]: one["status"] for one in answer.json()["ai_services"]}
    assert services == dict.fromkeys(("tasks", "workflows", "training", "inference_workers"), "unhealthy")
    assert answer.json()["circuit_breakers"] == {"total": 0, "open": 0, "half_open": 0, "closed": 0, "breakers": {}}
    assert (await mesh.http().get("/circuit-breakers")).status_code == 503


async def test_breakers_are_the_rows_of_tasks_and_can_be_reset_by_their_names(whole: Whole) -> None:
    http = whole.mesh.http()
    body = (await http.get("/circuit-breakers")).json()
    assert (body["total_count"], body["open_count"]) == (1, 0)
    assert body["circuit_breakers"]["FAL_STANDARD"] == {
        "name": "FAL_STANDARD",
        "state": "closed",
        "failure_count": 0,
        "success_count": 0,
        "total_calls": 0,
        "rejected_calls": 0,
        "last_failure_time": None,
        "opened_at": None,
        "config": {
            "failure_threshold": 5,
            "recovery_timeout": 30.0,
            "half_open_max_calls": 3,
            "success_threshold": 2,
        },
    }
    await whole.open_breaker("app")
    body = (await http.get("/circuit-breakers")).json()
    assert (body["total_count"], body["open_count"]) == (2, 1)
    breaker = body["circuit_breakers"]["FAL_STANDARD-app"]
    assert (breaker["state"], breaker["failure_count"]) == ("open", 5)
    assert breaker["config"]["failure_threshold"] == 7
    assert 5 < time.monotonic() - breaker["opened_at"] < 600, "a monotonic time, not one since 1970"
    full = (await http.get("/health/full")).json()
    assert full["circuit_breakers"] == {
        "total": 2,
        "open": 1,
        "half_open": 0,
        "closed": 1,
        "breakers": {"FAL_STANDARD": "closed", "FAL_STANDARD-app": "open"},
    }
    assert (await whole.mesh.http("read").post("/circuit-breakers/FAL_STANDARD-app/reset")).status_code == 403
    for name, before in (("FAL_STANDARD-app", "open"), ("FAL_STANDARD-app", "closed"), ("FAL_STANDARD", "closed")):
        answer = await http.post(f"/circuit-breakers/{name}/reset")
        assert answer.status_code == 200, answer.text
        assert answer.json() == {
            "name": name,
            "previous_state": before,
            "new_state": "closed",
            "message": f"Circuit breaker '{name}' reset successfully",
        }
    assert (await http.get("/circuit-breakers")).json()["open_count"] == 0
    for name in ("a.b", "a" * 65):
        assert (await http.post(f"/circuit-breakers/{name}/reset")).status_code == 400
    answer = await http.post("/circuit-breakers/nobody/reset")
    assert answer.status_code == 404
    assert "FAL_STANDARD" in answer.json()["detail"], "the valid names are listed"


async def told(mesh: Mesh, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Have all parts asked until the pipeline is told as it should be; return it."""
    http = mesh.http("read")
    async with asyncio.timeout(90):
        while True:
            await mesh.monitoring.watch.check()
            pipeline: dict[str, Any] = (await http.get("/pipeline")).json()
            if holds(pipeline["degradation"]):
                return pipeline


async def test_tasks_that_wait_where_no_worker_is_are_told_by_queue(
    whole: Whole, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(degradation_module, "LIMIT_SECONDS", 2.0)
    for _ in range(2):
        await whole.create_task()
    pipeline = await told(whole.mesh, lambda found: found["fallback_queues"] == {"inference": 2})
    documented("GET", "/api/system/pipeline").holds(pipeline)
    await whole.worker()
    await told(whole.mesh, lambda found: found["fallback_queues"] == {} and bool(found["available_features"]))


async def test_redis_is_not_healthy_while_nats_is_away(start_mesh: StartMesh, nats_server: NatsControl) -> None:
    away = "127.0.0.1:1"
    mesh = await start_mesh(nats_url=nats_server.url, tasks_address=away, workflows_address=away, training_address=away)
    await told(mesh, lambda found: bool(found["redis_healthy"] and found["services"]))
    nats_server.kill()
    pipeline = await told(mesh, lambda found: not found["redis_healthy"])
    documented("GET", "/api/system/pipeline").holds(pipeline)
    redis = next(one for one in pipeline["degradation"]["services"] if one["name"] == "redis")
    assert (redis["status"], bool(redis["error_message"])) == ("unhealthy", True)
    answer = await mesh.http("read").get("/health/full")
    assert (answer.status_code, answer.json()["redis"]["status"]) == (503, "unhealthy")
    documented("GET", "/api/system/health/full").holds(answer.json())
    nats_server.start()
    await told(mesh, lambda found: bool(found["redis_healthy"]))


async def test_degradation_takes_three_failures_and_two_successes(
    whole: Whole, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(degradation_module, "LIMIT_SECONDS", 2.0)
    http, watch = whole.mesh.http(), whole.mesh.monitoring.watch
    stopped = await http.post("/supervisor/workers/monitoring_degradation/stop")
    assert stopped.json()["success"], "nobody else asks meanwhile"

    async def mode() -> str:
        return str((await http.get("/pipeline")).json()["degradation"]["mode"])

    watch.parts = {}
    for expected in ("normal", "normal", "minimal"):
        await watch.check()
        assert await mode() == expected
    body = (await http.get("/pipeline")).json()
    assert (body["file_watcher"], body["batch_aggregator"]) == (None, None)
    degradation = body["degradation"]
    assert degradation["is_degraded"] is True
    assert degradation["redis_healthy"] is True
    assert (degradation["memory_queue_size"], degradation["fallback_queues"]) == (0, {})
    services = {one["name"]: one for one in degradation["services"]}
    assert services["tasks"] == {
        "name": "tasks",
        "status": "healthy",
        "last_check": services["tasks"]["last_check"],
        "consecutive_failures": 0,
        "error_message": None,
    }
    assert services["inference_workers"]["status"] == "unhealthy"
    assert services["inference_workers"]["consecutive_failures"] == 3
    assert degradation["available_features"] == ["tasks", "fal_standard"]
    await whole.worker()
    for expected in ("minimal", "degraded"):
        await watch.check()
        assert await mode() == expected, "workflows and training are away still, and are not critical"
