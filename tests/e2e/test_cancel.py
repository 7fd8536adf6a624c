"""Cancelling ends an executing task after its step, a waiting one at once, and an ended one never."""

import uuid

import pytest

from tests.e2e.harness import RunningMesh, until

pytestmark = pytest.mark.timeout(600)


def test_cancel_ends_an_executing_task_long_before_its_last_step(mesh: RunningMesh) -> None:
    with mesh.http("cancel") as client:
        task = mesh.create(client, str(uuid.uuid4()), steps=1000, step_ms=500)

        def status() -> str:
            return str(client.get(f"/api/v1/tasks/{task['id']}").json()["status"])

        until(lambda: status() == "EXECUTING", "the task executes")
        answer = client.post(f"/api/v1/tasks/{task['id']}/cancel")
        assert answer.status_code == 200
        assert answer.json()["status"] == "CANCELLED"
        # Others go on, and the attempt ends long before the 500 s are over that all its steps take.
        follower = mesh.create(client, str(uuid.uuid4()), steps=0)
        until(
            lambda: client.get(f"/api/v1/tasks/{follower['id']}").json()["status"] == "COMPLETED",
            "the next task completes",
        )
        attempts = until(
            lambda: [each for each in mesh.attempts(client, task["id"]) if each["ended_at"]],
            "the attempt has ended",
        )
        assert [each["outcome"] for each in attempts] == ["CANCELLED"]
        assert status() == "CANCELLED"


def test_cancel_of_a_cancelled_task_answers_with_it(mesh: RunningMesh) -> None:
    with mesh.http("cancel") as client:
        task = mesh.create(client, str(uuid.uuid4()), steps=100, step_ms=200)
        first = client.post(f"/api/v1/tasks/{task['id']}/cancel")
        second = client.post(f"/api/v1/tasks/{task['id']}/cancel")
        assert (first.status_code, second.status_code) == (200, 200)
        assert second.json()["status"] == "CANCELLED"


def test_cancel_of_a_completed_task_is_a_conflict(mesh: RunningMesh) -> None:
    with mesh.http("cancel") as client:
        task = mesh.create(client, str(uuid.uuid4()), steps=0)
        until(lambda: client.get(f"/api/v1/tasks/{task['id']}").json()["status"] == "COMPLETED", "the task completes")
        assert client.post(f"/api/v1/tasks/{task['id']}/cancel").status_code == 409


def test_watch_ends_with_the_cancelled_task(mesh: RunningMesh) -> None:
    with mesh.http("cancel") as client:
        task = mesh.create(client, str(uuid.uuid4()), steps=100, step_ms=200)
    assert mesh.cli("task", "cancel", task["id"], "--tenant", "cancel").returncode == 0
    watched = mesh.cli("task", "watch", task["id"], "--tenant", "cancel")
    assert watched.returncode == 1
    assert "was cancelled" in watched.stderr
    assert '"CANCELLED"' in watched.stdout
