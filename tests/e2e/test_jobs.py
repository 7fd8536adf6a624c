"""`/api/jobs`: tasks and workflows of a running mesh as jobs, and their logs as they come."""

import json
import uuid
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from tests.e2e.bodies import data_url, photo
from tests.e2e.harness import RunningMesh, ended_task, post_until_answered, until

pytestmark = pytest.mark.timeout(600)

_MEMBERS = {
    *("job_id", "job_type", "status", "progress", "message", "created_at", "started_at", "completed_at"),
    *("result", "error"),
}


@pytest.fixture
def tenant() -> str:
    return f"jobs{uuid.uuid4().hex[:8]}"


@pytest.fixture
def client(mesh: RunningMesh, tenant: str) -> Iterator[httpx.Client]:
    with mesh.http(tenant) as client:
        yield client


def _get(client: httpx.Client, path: str = "", **query: Any) -> Any:
    answer = client.get(f"/api/jobs{path}", params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_task_is_a_job_with_its_history_and_log(mesh: RunningMesh, client: httpx.Client, tenant: str) -> None:
    made = mesh.create(client, str(uuid.uuid4()))
    ended_task(client, made["id"])
    job = _get(client, f"/{made['id']}")
    assert set(job) == _MEMBERS
    assert (job["job_id"], job["job_type"], job["status"], job["progress"]) == (made["id"], "NOOP", "completed", 100.0)
    assert (job["error"], job["completed_at"] is not None) == (None, True)
    detail = _get(client, f"/{made['id']}/detail")
    assert (detail["kind"], detail["detail"]["id"]) == ("task", made["id"])
    history = _get(client, f"/{made['id']}/history")["history"]
    assert [one["status"] for one in history] == ["pending", "running", "completed", "completed"]
    logs = _get(client, f"/{made['id']}/logs")
    assert logs["total"] == len(logs["logs"]) == 4
    assert set(logs["logs"][0]) == {"timestamp", "level", "message"}
    with mesh.http(f"{tenant}x") as stranger:
        for path in ("", "/detail", "/history", "/logs"):
            assert stranger.get(f"/api/jobs/{made['id']}{path}").status_code == 404
        assert stranger.post(f"/api/jobs/{made['id']}/cancel").status_code == 404


def test_jobs_are_listed_counted_found_cancelled_and_deleted(mesh: RunningMesh, client: httpx.Client) -> None:
    done = mesh.create(client, str(uuid.uuid4()))
    ended_task(client, done["id"])
    long = [mesh.create(client, str(uuid.uuid4()), steps=600, step_ms=200) for _ in range(3)]
    ids = [one["id"] for one in long]
    until(lambda: _get(client, f"/{ids[0]}")["status"] == "running", "the first runs")
    assert client.post(f"/api/jobs/{done['id']}/abort").status_code == 409
    assert client.post(f"/api/jobs/{done['id']}/cancel").status_code == 409
    aborted = client.post(f"/api/jobs/{ids[0]}/abort")
    assert (aborted.status_code, aborted.json()["status"], aborted.json()["error"]) == (200, "failed", "cancelled")
    unknown = str(uuid.uuid4())
    bulk = client.post("/api/jobs/bulk-cancel", json={"job_ids": [*ids[1:], unknown]}).json()
    assert bulk["cancelled"] == ids[1:]
    assert [(one["job_id"], one["status"]) for one in bulk["failed"]] == [(unknown, 404)]
    page = _get(client, limit=2)
    assert [one["job_id"] for one in page["items"]] == [ids[2], ids[1]]
    assert page["pagination"] == {"total": 4, "limit": 2, "offset": 0, "items_count": 2, "has_more": True}
    rest = _get(client, limit=2, offset=2)
    assert [one["job_id"] for one in rest["items"]] == [ids[0], done["id"]]
    assert rest["pagination"]["has_more"] is False
    failed = _get(client, status="failed", job_type="NOOP")
    assert {one["job_id"] for one in failed["items"]} == set(ids)
    assert {one["error"] for one in failed["items"]} == {"cancelled"}
    stats = _get(client, "/stats")
    assert stats["by_status"] == {"pending": 0, "running": 0, "completed": 1, "failed": 3}
    assert (stats["total"], stats["by_type"]) == (4, {"NOOP": 4})
    assert {"GENERATION", "WORKFLOW", "TRAINING"} <= set(_get(client, "/types")["job_types"])
    [found] = _get(client, "/search", q=done["id"][:13].upper())["items"]
    assert found["job_id"] == done["id"]
    assert _get(client, "/search", q="nothing is called so")["items"] == []
    deleted = client.delete(f"/api/jobs/{done['id']}")
    assert (deleted.status_code, deleted.json()) == (200, {"deleted": True, "job_id": done["id"]})
    assert client.get(f"/api/jobs/{done['id']}").status_code == 404


def test_a_workflow_is_a_job(client: httpx.Client) -> None:
    step = {"id": "one", "task_type": "NOOP", "config": {"steps": 1}}
    body = {"name": "two dresses", "origin_instance": "e2e", "steps": [step]}
    made = post_until_answered(client, "/api/v1/workflows/", body, str(uuid.uuid4()))
    until(lambda: _get(client, f"/{made['id']}")["status"] == "completed", "the workflow is done")
    job = _get(client, f"/{made['id']}")
    assert (job["job_type"], job["message"]) == ("WORKFLOW", "two dresses: 1 of 1 steps")
    [found] = _get(client, "/search", q="two dre")["items"]
    assert found == job
    both = _get(client)["items"]
    assert {one["job_type"] for one in both} == {"WORKFLOW", "NOOP"}
    assert client.post(f"/api/jobs/{made['id']}/cancel").status_code == 409
    assert client.delete(f"/api/jobs/{made['id']}").json() == {"deleted": True, "job_id": made["id"]}


def test_a_training_is_a_job(mesh: RunningMesh, client: httpx.Client, tenant: str) -> None:
    # This mesh has no trainer: trainings wait.
    made = [
        post_until_answered(client, "/api/v1/training/", training(f"tok{number}"), str(uuid.uuid4()))["id"]
        for number in range(3)
    ]
    first, second, third = made
    job = _get(client, f"/{first}")
    assert set(job) == _MEMBERS
    assert (job["job_id"], job["job_type"], job["status"], job["error"]) == (first, "TRAINING", "pending", None)
    detail = _get(client, f"/{first}/detail")
    assert (detail["kind"], detail["detail"]["id"], detail["detail"]["trigger_word"]) == ("training", first, "tok0")
    page = _get(client, job_type="TRAINING", limit=2)
    assert [one["job_id"] for one in page["items"]] == [third, second]
    assert page["pagination"] == {"total": 3, "limit": 2, "offset": 0, "items_count": 2, "has_more": True}
    assert [one["job_id"] for one in _get(client, limit=2, offset=2)["items"]] == [first]
    [found] = _get(client, "/search", q=first.upper())["items"]
    assert found == job
    assert [one["status"] for one in _get(client, f"/{first}/history")["history"]] == ["pending"]

    assert client.post(f"/api/jobs/{first}/abort").status_code == 409, "it does not run"
    cancelled = client.post(f"/api/jobs/{first}/cancel")
    assert cancelled.status_code == 200, cancelled.text
    assert (cancelled.json()["status"], cancelled.json()["error"]) == ("failed", "cancelled")
    assert cancelled.json()["completed_at"] is not None
    again = client.post(f"/api/jobs/{first}/cancel")
    assert (again.status_code, again.json()) == (200, cancelled.json()), "a second one answers with the same"
    unknown = str(uuid.uuid4())
    bulk = client.post("/api/jobs/bulk-cancel", json={"job_ids": [second, unknown]}).json()
    assert bulk["cancelled"] == [second]
    assert [(one["job_id"], one["status"]) for one in bulk["failed"]] == [(unknown, 404)]
    history = _get(client, f"/{first}/history")
    assert (history["job_id"], history["job_type"]) == (first, "TRAINING")
    assert [one["status"] for one in history["history"]] == ["pending", "failed"]
    assert history["history"][-1]["message"] == "cancelled"
    logs = _get(client, f"/{first}/logs")
    assert (logs["total"], [one["level"] for one in logs["logs"]]) == (2, ["INFO", "ERROR"])
    failed = _get(client, job_type="TRAINING", status="failed")
    assert {one["job_id"] for one in failed["items"]} == {first, second}
    assert {one["error"] for one in failed["items"]} == {"cancelled"}
    assert [one["job_id"] for one in _get(client, status="pending")["items"]] == [third]
    stats = _get(client, "/stats")
    assert stats["by_status"] == {"pending": 1, "running": 0, "completed": 0, "failed": 2}
    assert (stats["total"], stats["by_type"]) == (3, {"TRAINING": 3})
    with mesh.http(f"{tenant}x") as stranger:
        for path in ("", "/detail", "/history", "/logs"):
            assert stranger.get(f"/api/jobs/{first}{path}").status_code == 404
        assert stranger.post(f"/api/jobs/{third}/cancel").status_code == 404
    deleted = client.delete(f"/api/jobs/{first}")
    assert (deleted.status_code, deleted.json()) == (200, {"deleted": True, "job_id": first})
    assert client.get(f"/api/jobs/{first}").status_code == 404
    assert client.post(f"/api/jobs/{third}/cancel").status_code == 200


def training(word: str) -> dict[str, Any]:
    """The body of a training on four pictures."""
    pictures = [data_url(photo()) for _ in range(4)]
    return {"trigger_word": word, "base_model_path": "garments", "source_images": pictures}


def test_bad_requests_name_their_member(client: httpx.Client) -> None:
    for path, member in (
        ("?limit=0", "limit"),
        ("?limit=101", "limit"),
        ("?offset=-1", "offset"),
        ("?status=EXECUTING", "status"),
        ("?job_type=none", "job_type"),
        ("/search", "q"),
        ("/none", "job_id"),
    ):
        answer = client.get(f"/api/jobs{path}")
        assert (answer.status_code, answer.json()["detail"][0]["loc"][1]) == (422, member), path
    long = {"job_ids": [str(uuid.uuid4())], "note": "x" * 20_000}
    bodies: list[Any] = [{}, {"job_ids": []}, {"job_ids": ["x"]}, [], long]
    for body in bodies:
        assert client.post("/api/jobs/bulk-cancel", json=body).status_code == 422


def _lines(socket: ClientConnection, last: str) -> list[str]:
    """Read the log up to a line that contains a text."""
    lines: list[str] = []
    while not lines or last not in lines[-1]:
        message = json.loads(socket.recv(timeout=60))
        if message.get("type") == "log":
            assert set(message["data"]) == {"timestamp", "level", "message"}
            lines.append(message["data"]["message"])
    return lines


def test_the_log_of_a_job_comes_as_it_is_written(mesh: RunningMesh, client: httpx.Client, tenant: str) -> None:
    made = mesh.create(client, str(uuid.uuid4()), steps=20, step_ms=100)
    address = f"ws{mesh.url.removeprefix('http')}/ws/jobs/{made['id']}/logs"
    with connect(f"{address}?token={mesh.token(tenant)}") as socket:
        lines = _lines(socket, "completed")
    assert lines[0] == "accepted"
    ended_task(client, made["id"])
    with connect(f"{address}?token={mesh.token(tenant)}") as socket:
        assert _lines(socket, "completed")[0] == "accepted"
    with connect(f"{address}?token={mesh.token('stranger')}") as socket:
        with pytest.raises(ConnectionClosed):
            socket.recv(timeout=60)
        assert socket.close_code == 1008
