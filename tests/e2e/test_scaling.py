"""Demand and cordons, as an operator drives them over HTTP."""

import uuid
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from tests.e2e.harness import RunningMesh, ended_task, until

pytestmark = pytest.mark.timeout(600)

_PATH = "/api/v1/scaling/"


def _demand(operator: httpx.Client) -> dict[str, Any]:
    answer = operator.get(f"{_PATH}demand")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = next(one for one in answer.json()["queues"] if one["name"] == "inference")
    return found


def _pool(operator: httpx.Client, **filters: Any) -> dict[str, Any] | None:
    answer = operator.get(f"{_PATH}workers", params=filters)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = [one for one in answer.json()["pools"] if "inference" in one["queues"]]
    assert len(found) <= 1
    return found[0] if found else None


def test_a_cordoned_worker_gets_no_task_and_an_uncordoned_one_does(mesh: RunningMesh) -> None:
    with mesh.http("scaled") as client, mesh.http("scaled", ("support", "operator")) as operator:
        pool = until(lambda: _pool(operator), "the worker has a session")
        worker = {"worker": pool["worker"]}
        assert client.post(f"{_PATH}cordon", json=worker).status_code == 403
        assert operator.post(f"{_PATH}cordon", json={"worker": ""}).status_code == 422
        try:
            [cordoned] = operator.post(f"{_PATH}cordon", json=worker).json()["pools"]
            assert (cordoned["name"], cordoned["cordoned_by"]) == (pool["name"], "operator")
            task = mesh.create(client, str(uuid.uuid4()))
            # The scheduler has seen the task, and that nobody may take it.
            waits = until(
                lambda: (told := _demand(operator))["waiting"] and told["cordoned"] and told, "the task is counted"
            )
            assert (waits["slots"], waits["workers"], waits["cordoned"]) == (0, 1, 1)
            assert (_pool(operator, cordoned_only=True) or {})["name"] == pool["name"]
            assert client.get(f"/api/v1/tasks/{task['id']}").json()["status"] == "PENDING"
            assert mesh.attempts(client, task["id"]) == []
        finally:
            asked = datetime.now(UTC)
            freed = operator.post(f"{_PATH}uncordon", json=worker)
        assert freed.status_code == 200, freed.text
        assert [one["cordoned_by"] for one in freed.json()["pools"]] == [None]
        assert ended_task(client, task["id"])["status"] == "COMPLETED"
        [attempt] = mesh.attempts(client, task["id"])
        assert datetime.fromisoformat(attempt["started_at"]) >= asked
        assert _pool(operator, cordoned_only=True) is None
