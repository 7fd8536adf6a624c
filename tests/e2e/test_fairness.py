"""A tenant's flood does not keep another tenant waiting."""

import contextlib
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any

import httpx
import pytest

from tests.e2e.harness import RunningMesh, until

pytestmark = pytest.mark.timeout(600)

FLOOD = 400
SHARED = 200
# What was already leased, or is leased in the same poll, cannot be overtaken: slots and prefetch, twice.
_FEW = 16


def _flood(mesh: RunningMesh, client: httpx.Client, count: int = FLOOD, **fields: object) -> list[str]:
    with ThreadPoolExecutor(8) as pool:
        keys = [str(uuid.uuid4()) for _ in range(count)]
        return [task["id"] for task in pool.map(lambda key: mesh.create(client, key, **fields), keys)]


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _overtaken_by(flood: list[dict[str, Any]], one: dict[str, Any]) -> int:
    """How many tasks of the flood were dispatched between the one's creation and its dispatch."""
    created, started = _moment(one["created_at"]), _moment(one["started_at"])
    return sum(1 for task in flood if task["started_at"] and created < _moment(task["started_at"]) < started)


def _send_one(mesh: RunningMesh, tenant: str) -> dict[str, Any]:
    with mesh.http(tenant) as client:
        task = mesh.create(client, str(uuid.uuid4()), steps=0)

        def done() -> dict[str, Any] | None:
            now = dict(client.get(f"/api/v1/tasks/{task['id']}").json())
            return now if now["status"] == "COMPLETED" else None

        return until(done, f"the task of {tenant} completes", 60)


@contextlib.contextmanager
def _cordoned(mesh: RunningMesh) -> Iterator[None]:
    """Have the workers take nothing, so that all of a flood waits, however long it takes to send."""
    with mesh.http("floods", ("support", "operator")) as operator:
        pools = until(lambda: operator.get("/api/v1/scaling/workers").json()["pools"], "the worker has a session")
        names = {pool["worker"] for pool in pools}
        for name in names:
            assert operator.post("/api/v1/scaling/cordon", json={"worker": name}).status_code == 200
        try:
            yield
        finally:
            for name in names:
                assert operator.post("/api/v1/scaling/uncordon", json={"worker": name}).status_code == 200


@pytest.mark.parametrize(("story", "priority"), [("plain", 1), ("urgent", 3)])
def test_one_task_beside_a_flood_is_among_the_next(mesh: RunningMesh, story: str, priority: int) -> None:
    with mesh.http(f"flood-{story}", timeout_seconds=60) as client:
        with _cordoned(mesh):
            _flood(mesh, client, steps=1, step_ms=100, priority=priority)
        one = _send_one(mesh, f"single-{story}")
        flood = mesh.wait_ended(client, FLOOD, 120)
        later = sum(_moment(task["started_at"]) > _moment(one["started_at"]) for task in flood)
        assert later > _FEW, "the flood was over before the one was sent"
        assert _overtaken_by(flood, one) <= _FEW


def test_flood_that_is_cancelled_buys_no_advantage(mesh: RunningMesh) -> None:
    with mesh.http("flood-cancelled", timeout_seconds=60) as client:
        flood = _flood(mesh, client, steps=1, step_ms=100)
        with ThreadPoolExecutor(8) as pool:
            answers = pool.map(
                lambda task: client.post(f"/api/v1/tasks/{task}/cancel").status_code, flood[FLOOD // 2 :]
            )
            assert set(answers) <= {200, 409}
        one = _send_one(mesh, "single-cancelled")
        assert _overtaken_by(mesh.tasks(client), one) <= _FEW
        mesh.wait_ended(client, FLOOD, 120)


def test_weights_share_out_the_mesh(start_mesh: Callable[..., RunningMesh]) -> None:
    mesh = start_mesh(ATELIER_TENANT_WEIGHTS="heavy=3,light=1", ATELIER_WORKER_SLOTS="2", ATELIER_WORKER_PREFETCH="0")
    with mesh.http("heavy", timeout_seconds=60) as heavy, mesh.http("light", timeout_seconds=60) as light:
        with _cordoned(mesh), ThreadPoolExecutor(2) as pool:
            waiting = [pool.submit(_flood, mesh, client, SHARED, steps=1, step_ms=50) for client in (light, heavy)]
            for each in waiting:
                each.result()
        # Until the last of heavy's has begun both have work: each lease is decided by the weights.
        last = max(_moment(task["started_at"]) for task in mesh.wait_ended(heavy, SHARED, 200))
        begun = sum(1 for task in mesh.tasks(light) if task["started_at"] and _moment(task["started_at"]) <= last)
        assert SHARED / begun == pytest.approx(3, rel=0.15), begun
