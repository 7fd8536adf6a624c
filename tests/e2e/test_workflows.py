"""Fifty workflows of six steps while what carries them is killed: all end right, and no task is made twice."""

import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.e2e.harness import ENDED, RunningMesh, until

pytestmark = pytest.mark.timeout(300)

WORKFLOWS = 50
SHAPE = {"a": [], "b": ["a"], "c": ["a"], "d": ["b", "c"], "e": ["d"], "f": ["d"]}


def step(name: str, needs: list[str], **config: Any) -> dict[str, Any]:
    mapped = [{"from_step": needs[0], "from_field": "result_path", "to_field": "payload"}] if needs else []
    return {
        "id": name,
        "task_type": "NOOP",
        "depends_on": needs,
        "input_mappings": mapped,
        "config": {"steps": 1, "step_ms": 20, "result_bytes": 16, **config},
    }


def diamond(name: str) -> dict[str, Any]:
    return {"name": name, "origin_instance": "e2e", "steps": [step(one, needs) for one, needs in SHAPE.items()]}


def create(client: httpx.Client, body: dict[str, Any]) -> str:
    key = str(uuid.uuid4())

    def once() -> httpx.Response | None:
        try:
            answer = client.post("/api/v1/workflows/", json=body, headers={"idempotency-key": key})
        except httpx.TransportError:
            return None
        return None if answer.status_code in {502, 503, 504} else answer

    answer = until(once, "a create is answered", 60)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


def read(client: httpx.Client, ident: str) -> dict[str, Any]:
    def once() -> dict[str, Any] | None:
        try:
            answer = client.get(f"/api/v1/workflows/{ident}")
        except httpx.TransportError:
            return None
        return dict(answer.json()) if answer.status_code == 200 else None

    return until(once, "a workflow is read", 60)


def ended(client: httpx.Client, ident: str, seconds: float = 90) -> dict[str, Any]:
    def once() -> dict[str, Any] | None:
        found = read(client, ident)
        return found if found["status"] in ENDED else None

    return until(once, "a workflow ends", seconds)


def done(client: httpx.Client) -> int:
    answer = client.get("/api/v1/workflows/", params={"status": "COMPLETED", "limit": 1})
    return int(answer.json()["total"]) if answer.status_code == 200 else 0


@pytest.mark.parametrize("role", ["workflows", "tasks", "nats", "worker"])
def test_whatever_is_killed_every_workflow_completes_and_makes_each_task_once(mesh: RunningMesh, role: str) -> None:
    with mesh.http(tenant := f"workflows-{role}") as client:
        with ThreadPoolExecutor(8) as pool:
            made = list(pool.map(lambda at: create(client, diamond(f"{role} {at}")), range(WORKFLOWS)))
        until(lambda: done(client) >= 5, "some have completed")
        before = mesh.restarts(role)
        mesh.kill(role)
        mesh.wait_restarted(role, before)
        for ident in made:
            found = ended(client, ident, 150)
            assert found["status"] == "COMPLETED", found["errors"]
            assert (found["completed_steps"], found["progress"]) == (len(SHAPE), 100)
        with mesh.database() as connection:
            rows = connection.execute("SELECT workflow_id FROM tasks.tasks WHERE tenant = %s", (tenant,)).fetchall()
    made_tasks = Counter(str(row[0]) for row in rows)
    assert made_tasks == dict.fromkeys(made, len(SHAPE)), "a step's task was made twice, or not at all"


def test_a_resume_makes_only_the_tasks_that_are_left(mesh: RunningMesh) -> None:
    with mesh.http(tenant := "workflows-resume") as client:
        body = diamond("resumed")
        # More failures than the tasks service's own retries at the first try, none left for the second.
        body["steps"][3] |= {"config": {"steps": 1, "failures": 1000}, "max_retries": 0}
        ident = create(client, body)
        failed = ended(client, ident)
        assert failed["status"] == "FAILED"
        assert failed["completed_steps"] == 3
        assert client.post(f"/api/v1/workflows/{ident}/resume").status_code == 200
        until(lambda: read(client, ident)["status"] == "FAILED", "it fails again", 90)
        with mesh.database() as connection:
            rows = connection.execute("SELECT id FROM tasks.tasks WHERE tenant = %s", (tenant,)).fetchall()
    assert len(rows) == 5, "three results were reused, and the failed step was tried once more"
