"""Performance now and over the last hour, through the gateway."""

from datetime import datetime
from typing import Any

import pytest
from atelier.tasks.v1 import worker_service_pb2

from services.monitoring.performance import watch as performance_watch
from tests.integration.monitoring.conftest import StartMesh, Whole

HOST = ("cpu_percent", "ram_used_gb", "ram_total_gb", "ram_percent", "disk_used_gb", "disk_total_gb", "disk_percent")


async def told(stub: Any, session: str, completed: int) -> None:
    await stub.Heartbeat(
        worker_service_pb2.HeartbeatRequest(
            session_id=session,
            warm=worker_service_pb2.WarmState(
                models=["flux"],
                sizes=[worker_service_pb2.WarmModel(name="flux", bytes=20_000_000_000, device="cuda:0")],
            ),
            load=worker_service_pb2.WorkerLoad(
                memory_bytes=1,
                completed={"GENERATION": completed},
                gpus=[
                    worker_service_pb2.GpuReading(
                        uuid="GPU-1",
                        name="NVIDIA H100",
                        utilization=87.0,
                        used_bytes=72_000_000_000,
                        total_bytes=80_000_000_000,
                        temperature=91.0,
                        power_watts=650.5,
                    )
                ],
            ),
        )
    )


async def test_what_the_mesh_bears_has_the_documented_shape(whole: Whole, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(performance_watch, "LIMIT_SECONDS", 60.0)  # nobody hangs here, but a busy machine is slow
    http, watch = whole.mesh.http(), whole.mesh.monitoring.performance
    assert (await http.post("/supervisor/workers/monitoring_performance/stop")).json()["success"]
    stub, session = await whole.worker()
    await told(stub, session, 10)
    await leave_tasks(whole)
    await watch.note()
    await told(stub, session, 14)
    await watch.note()
    answer = await whole.mesh.http("read").get("/performance")
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body.keys() == {
        *("timestamp", "gpu", "ai_models", "nemotron", "inference", "databases", "host", "containers", "alerts")
    }
    assert datetime.fromisoformat(body["timestamp"]).tzinfo is not None
    assert body["gpu"] == {
        "name": "NVIDIA H100",
        "utilization": 87.0,
        "vram_used_gb": 72.0,
        "vram_total_gb": 80.0,
        "vram_percent": 90.0,
        "temperature": 91.0,
        "power_watts": 650.5,
    }
    assert body["ai_models"] == {
        "flux": {
            "status": "healthy",
            "vram_gb": 20.0,
            "model": "flux",
            "device": "cuda:0",
            "memory_gb": 20.0,
            "workers": 1,
        }
    }
    assert (body["nemotron"], body["containers"]) == (None, [])
    inference = body["inference"]
    assert inference.keys() == {
        *("rtdetr_latency_ms", "nemotron_latency_ms", "pipeline_latency_ms", "throughput", "queues", "waiting")
    }
    assert (inference["rtdetr_latency_ms"], inference["nemotron_latency_ms"], inference["queues"]) == (None, None, None)
    assert inference["pipeline_latency_ms"] == pytest.approx({"avg": 50_500, "p95": 95_050, "p99": 99_010})
    throughput = inference["throughput"]
    assert throughput["images_per_min"] > 0
    assert throughput.keys() == {"images_per_min", "events_per_min"}
    assert inference["waiting"]["inference"] == 1
    postgres = body["databases"]["postgres"]
    assert postgres.keys() == {
        *("status", "connections_active", "connections_max", "cache_hit_ratio", "transactions_per_min")
    }
    assert postgres["status"] == "healthy"
    assert 0 < postgres["connections_active"] <= postgres["connections_max"]
    assert 0 <= postgres["cache_hit_ratio"] <= 100
    assert postgres["transactions_per_min"] >= 0
    assert body["databases"]["redis"] is None
    assert body["databases"]["nats"]["status"] == "healthy"
    assert body["databases"]["nats"]["version"].count(".") == 2
    assert tuple(body["host"]) == HOST
    assert 0 < body["host"]["ram_used_gb"] < body["host"]["ram_total_gb"]
    alerts = {one["metric"]: one for one in body["alerts"]}
    assert alerts["gpu_temperature"] == {
        "severity": "critical",
        "metric": "gpu_temperature",
        "value": 91.0,
        "threshold": 90.0,
        "message": "GPU temperature high: 91.0 C",
    }
    assert alerts["gpu_vram"]["severity"] == "warning"


async def leave_tasks(whole: Whole) -> None:
    """Have one task wait, and a hundred that took 1 s to 100 s completed."""
    await whole.create_task()
    async with whole.tasks.database.transaction() as conn:
        await conn.execute(
            "INSERT INTO tasks SELECT r.* FROM tasks t, generate_series(1, 100) n, LATERAL jsonb_populate_record(t, "
            "jsonb_build_object('id', gen_random_uuid(), 'status', 'COMPLETED', 'completed_at', now(), "
            "'created_at', now() - n * interval '1 s')) r"
        )


async def test_history_is_told_oldest_first_and_as_far_back_as_asked(
    start_mesh: StartMesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(performance_watch, "LIMIT_SECONDS", 1.5)
    away = "127.0.0.1:1"
    mesh = await start_mesh(tasks_address=away, workflows_address=away, training_address=away)
    http = mesh.http("read")
    for _ in range(3):
        await mesh.monitoring.performance.note()
    now = (await http.get("/performance")).json()
    assert (now["gpu"], now["ai_models"], now["inference"]) == (None, None, None), "the tasks service is away"
    assert now["databases"]["postgres"]["status"] == "healthy"
    for asked, expected in (({}, "5m"), ({"time_range": "15m"}, "15m"), ({"time_range": "60m"}, "60m")):
        body = (await http.get("/performance/history", params=asked)).json()
        assert body.keys() == {"snapshots", "time_range", "count"}
        assert (body["time_range"], body["count"]) == (expected, len(body["snapshots"]))
        assert body["count"] >= 3
        moments = [one["timestamp"] for one in body["snapshots"]]
        assert moments == sorted(moments)
        assert all(one.keys() == now.keys() for one in body["snapshots"])
    for bad in ("5", "1h", "", "5M"):
        assert (await http.get("/performance/history", params={"time_range": bad})).status_code == 422
    assert (await mesh.http("worker").get("/performance")).status_code == 403
