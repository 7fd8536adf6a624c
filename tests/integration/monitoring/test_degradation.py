"""What the mesh tells of itself while parts of it are away, and what becomes of work meanwhile."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from atelier.tasks.v1 import enums_pb2, worker_service_pb2
from atelier.tasks.v1.worker_service_pb2_grpc import WorkerServiceStub
from prometheus_client import REGISTRY

from meshkit.channel import MeshChannel
from services.inference.evaluation import composition as evaluation
from services.inference.evaluation.config import EvaluationSettings
from services.tasks.composition import TasksRuntime
from tests.conftest import NatsControl, S3Store
from tests.integration.monitoring.conftest import SECRET, Mesh, StartMesh, open_breaker, start_tasks
from tests.integration.tasks.conftest import Worker

APP = "house/painter"
NOOP = {"task_type": "NOOP", "origin_instance": "tests"}
PAINTED = {"task_type": "EXPERIMENTAL_FAL", "origin_instance": "tests", "fal_app_id": APP}


@dataclass
class Watched:
    """A mesh whose parts are asked when a test says so."""

    mesh: Mesh
    tasks: TasksRuntime
    system: httpx.AsyncClient
    callers: httpx.AsyncClient
    judges: AsyncExitStack
    judging: str

    async def judge(self) -> None:
        """Start evaluation again where it was."""
        await _evaluation(self.judges, self.judging)

    async def degradation(self, checks: int) -> dict[str, Any]:
        """Ask every part so many times; return what follows."""
        for _ in range(checks):
            await self.mesh.monitoring.watch.check()
        found: dict[str, Any] = (await self.system.get("/pipeline")).json()["degradation"]
        return found

    async def turned(self, mode: str) -> dict[str, Any]:
        """Ask every part until the mode is so."""
        async with asyncio.timeout(60):
            while (found := await self.degradation(1))["mode"] != mode:  # noqa: ASYNC110 -- what is waited for has no event
                await asyncio.sleep(0.2)
        return found

    async def worker(self, queue: str, task_type: int, provider: int) -> Worker:
        token = self.mesh.issuer.issue(f"worker-of-{queue}", "", ("worker",), 600)
        channel = MeshChannel(self.tasks.address, lambda: token)
        self.mesh.stack.push_async_callback(channel.close)
        stub = channel.stub(WorkerServiceStub)
        pair = worker_service_pb2.ServedPair(task_type=task_type, provider_type=provider)  # type: ignore[arg-type] # numbers off the wire
        opened = await stub.OpenSession(
            worker_service_pb2.OpenSessionRequest(
                name=f"{queue}/0", kind="tests", queues=[queue], slots=4, pairs=[pair]
            )
        )
        return Worker(stub, opened.session_id)

    async def create(self, body: dict[str, Any]) -> str:
        answer = await self.callers.post("/api/v1/tasks/", json=body)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["id"])

    async def states(self, ids: list[str]) -> list[str]:
        return [(await self.callers.get(f"/api/v1/tasks/{one}")).json()["status"] for one in ids]


async def _evaluation(stack: AsyncExitStack, listen: str) -> str:
    settings: dict[str, Any] = {"listen": listen, "auth_secret": SECRET, "shutdown_grace_seconds": 0.2}
    return (await evaluation.start(EvaluationSettings(**settings), stack)).address


@pytest.fixture
async def watched(
    start_mesh: StartMesh, mesh_dsn: str, nats_server: NatsControl, s3: S3Store
) -> AsyncIterator[Watched]:
    async with AsyncExitStack() as stack:
        behind = await start_tasks(
            stack,
            s3,
            database_url=mesh_dsn,
            nats_url=nats_server.url,
            enable_noop=True,
            served_task_types=("NOOP", "EXPERIMENTAL_FAL"),
            # It opens by hand, and does not close by itself meanwhile; sessions outlive a busy machine.
            provider_limits={"FAL_STANDARD": {"recovery_timeout": 3600}},
            lease_ttl_seconds=600,
        )
        # The tasks service answers health checks as workflows and training do, which this mesh has not.
        judges = await stack.enter_async_context(AsyncExitStack())
        judging = await _evaluation(judges, "127.0.0.1:0")
        mesh = await start_mesh(
            nats_url=nats_server.url,
            tasks_address=behind.address,
            workflows_address=behind.address,
            training_address=behind.address,
            evaluation_address=judging,
        )
        token = mesh.issuer.issue("ada", "acme", ("read", "write"), 600)
        callers = await stack.enter_async_context(
            httpx.AsyncClient(base_url=mesh.gateway, headers={"authorization": f"Bearer {token}"}, timeout=60)
        )
        here = Watched(mesh, behind, mesh.http(), callers, judges, judging)
        stopped = await here.system.post("/supervisor/workers/monitoring_degradation/stop")
        assert stopped.json()["success"], "nobody else asks meanwhile"
        mesh.monitoring.watch.parts = {}
        yield here


async def test_without_nats_and_a_provider_work_is_kept_and_the_status_says_so(
    watched: Watched, nats_server: NatsControl
) -> None:
    here = await watched.worker("inference", enums_pb2.TASK_TYPE_NOOP, enums_pb2.PROVIDER_TYPE_UNSPECIFIED)
    assert (await watched.degradation(1))["mode"] == "normal"
    assert (await watched.system.get("/health/full")).status_code == 200

    await asyncio.to_thread(nats_server.kill)
    await open_breaker(watched.tasks, APP)
    created = [await watched.create(NOOP) for _ in range(3)]
    painted = [await watched.create(PAINTED) for _ in range(2)]

    told = await watched.degradation(3)
    assert (told["mode"], told["is_degraded"], told["redis_healthy"]) == ("minimal", True, False)
    parts = {one["name"]: one for one in told["services"]}
    assert {name for name, one in parts.items() if one["status"] == "unhealthy"} == {
        *("redis", "fal_standard", "fal_workers")
    }
    assert parts["fal_standard"]["error_message"] == "its breaker is open"
    assert (told["memory_queue_size"], told["fallback_queues"]) == (0, {"fal": 2})
    assert set(told["available_features"]) == {"tasks", "workflows", "training", "evaluation", "inference_workers"}
    answer = await watched.system.get("/health/full")
    whole = answer.json()
    assert (answer.status_code, whole["status"], whole["ready"]) == (503, "unhealthy", False)
    assert whole["message"] == "Critical parts are unhealthy: redis"
    assert (whole["redis"]["status"], whole["postgres"]["status"]) == ("unhealthy", "healthy")
    services = {one["name"]: one for one in whole["ai_services"]}
    assert services["fal_standard"]["circuit_state"] == services["fal_workers"]["circuit_state"] == "open"
    assert (whole["circuit_breakers"]["open"], services["tasks"]["status"]) == (1, "healthy")
    assert set(await watched.states(created + painted)) == {"PENDING"}, "nothing is lost and nothing has failed"

    await asyncio.to_thread(nats_server.start)
    assert (await watched.turned("degraded"))["redis_healthy"] is True, "the provider is away still"
    caller = await watched.worker("fal", enums_pb2.TASK_TYPE_EXPERIMENTAL_FAL, enums_pb2.PROVIDER_TYPE_FAL_STANDARD)
    [name] = [one["name"] for one in (await breakers(watched)) if one["state"] == "open"]
    assert (await watched.system.post(f"/circuit-breakers/{name}/reset")).status_code == 200
    for worker, ids in ((here, created), (caller, painted)):
        left = set(ids)
        async with asyncio.timeout(60):
            while left:
                for lease in await worker.lease(len(left)):
                    await worker.complete(lease)
                    left.remove(lease.job_id)
    assert set(await watched.states(created + painted)) == {"COMPLETED"}
    told = await watched.turned("normal")
    assert (told["is_degraded"], told["fallback_queues"]) == (False, {})
    started = await watched.system.post("/supervisor/workers/monitoring_degradation/start")
    assert started.json()["success"]
    answer = await watched.system.get("/health/full")
    assert (answer.status_code, answer.json()["message"]) == (200, "All systems operational")


async def test_evaluation_that_dies_degrades_the_mesh_until_it_is_back(watched: Watched) -> None:
    await watched.worker("inference", enums_pb2.TASK_TYPE_NOOP, enums_pb2.PROVIDER_TYPE_UNSPECIFIED)
    told = await watched.degradation(3)
    assert (told["mode"], "evaluation" in told["available_features"]) == ("normal", True)
    await watched.judges.aclose()
    told = await watched.degradation(3)
    parts = {one["name"]: one["status"] for one in told["services"]}
    assert (told["mode"], parts["evaluation"], parts["tasks"]) == ("degraded", "unhealthy", "healthy")
    assert "evaluation" not in told["available_features"]
    shown = {part: REGISTRY.get_sample_value("atelier_mesh_part_healthy", {"part": part}) for part in parts}
    assert {part for part, value in shown.items() if value != 1} == {"evaluation"}
    answer = await watched.system.get("/health/full")
    whole = answer.json()
    assert (answer.status_code, whole["status"], whole["ready"]) == (200, "degraded", True), "the mesh can do without"
    [found] = [one for one in whole["ai_services"] if one["name"] == "evaluation"]
    assert (found["status"], found["error"] is not None) == ("unhealthy", True)
    await watched.judge()
    assert (await watched.turned("normal"))["is_degraded"] is False


async def test_capture_is_a_part_where_the_mesh_has_it_and_what_it_has_not_is_none(start_mesh: StartMesh) -> None:
    away = "127.0.0.1:1"
    mesh = await start_mesh(tasks_address=away, workflows_address=away, training_address=away, capture_address=away)
    await mesh.monitoring.watch.check()
    parts = mesh.monitoring.watch.parts
    assert (parts["capture"].critical, parts["capture"].failures > 0) == (False, True)
    assert "evaluation" not in parts, "none is configured"


async def breakers(watched: Watched) -> list[dict[str, Any]]:
    return list((await watched.system.get("/circuit-breakers")).json()["circuit_breakers"].values())
