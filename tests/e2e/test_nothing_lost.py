"""Whichever process dies, every accepted task ends with one result, and its attempts are recorded correctly."""

import os
import signal
import uuid
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.e2e.harness import RunningMesh, story_fault, until

pytestmark = pytest.mark.timeout(600)

TASKS = 200
_STEPS = {"steps": 2, "step_ms": 20, "result_bytes": 64}


def _create_all(mesh: RunningMesh, client: httpx.Client, count: int, **fields: object) -> list[str]:
    """Create tasks from several threads; every answered create is accepted."""
    keys = [str(uuid.uuid4()) for _ in range(count)]
    with ThreadPoolExecutor(8) as pool:
        tasks = pool.map(lambda key: mesh.create(client, key, **{**_STEPS, **fields}), keys)
        return [task["id"] for task in tasks]


def _some_have_ended(mesh: RunningMesh, client: httpx.Client, some: int = 10) -> None:
    until(
        lambda: len([task for task in mesh.tasks(client, status="COMPLETED") if task]) >= some,
        f"{some} tasks have ended",
        60,
    )


def _assert_nothing_lost(mesh: RunningMesh, tenant: str, client: httpx.Client, accepted: list[str]) -> None:
    ended = mesh.wait_ended(client, len(accepted), 150)
    assert sorted(task["id"] for task in ended) == sorted(accepted), "a task is missing, or was made twice"
    assert {task["status"] for task in ended} == {"COMPLETED"}, [task for task in ended if task["errors"]][:3]
    results = {task["result_path"] for task in ended}
    assert len(results) == len(ended), "two tasks share a result"
    for task in ended:
        attempts = mesh.attempts(client, task["id"])
        assert story_fault(task, attempts) is None
    until(
        lambda: mesh.objects(tenant) == results,
        "the objects in the store are those of the results and no others",
        60,
        pause_seconds=0.5,
    )


@pytest.mark.parametrize("victim", ["child", "worker", "tasks", "gateway"])
def test_killed_process_loses_nothing(mesh: RunningMesh, victim: str) -> None:
    tenant = f"killed-{victim}"
    with mesh.http(tenant) as client, ThreadPoolExecutor(1) as pool:
        creating = pool.submit(_create_all, mesh, client, TASKS)
        _some_have_ended(mesh, client)
        struck = mesh.create(client, str(uuid.uuid4()), steps=40, step_ms=200, result_bytes=64)
        path = f"/api/v1/tasks/{struck['id']}"
        # What was leased may still wait in the worker: a child that dies takes with it what has begun.
        until(lambda: client.get(path).json()["progress"] > 0, "one has begun that is struck for sure")
        if victim == "child":
            os.kill(mesh.worker_child(), signal.SIGKILL)
        else:
            mesh.kill(victim)
        accepted = [struck["id"], *creating.result()]
        _assert_nothing_lost(mesh, tenant, client, accepted)
        outcomes = [each["outcome"] for each in mesh.attempts(client, struck["id"])]
        if victim == "child":
            assert outcomes == ["FAILED", "COMPLETED"]
        elif victim == "worker":
            assert outcomes == ["EXPIRED", "COMPLETED"]


def test_hung_child_costs_its_attempt_and_no_task(mesh: RunningMesh) -> None:
    with mesh.http("hung") as client:
        hanging = mesh.create(client, str(uuid.uuid4()), **_STEPS, fault="hang")
        accepted = [hanging["id"], *_create_all(mesh, client, 20)]
        _assert_nothing_lost(mesh, "hung", client, accepted)
        attempts = mesh.attempts(client, hanging["id"])
        assert attempts[0]["outcome"] == "FAILED"
        assert attempts[0]["error_category"] == "TIMEOUT"


def test_child_that_exits_costs_its_attempt_and_no_task(mesh: RunningMesh) -> None:
    with mesh.http("exits") as client:
        exiting = mesh.create(client, str(uuid.uuid4()), **_STEPS, fault="exit")
        accepted = [exiting["id"], *_create_all(mesh, client, 20)]
        _assert_nothing_lost(mesh, "exits", client, accepted)
        assert mesh.attempts(client, exiting["id"])[0]["error_category"] == "RESOURCE"
