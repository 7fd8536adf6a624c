"""The supervisor over processes that it knows by NATS alone."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from meshkit import loops as loops_module
from meshkit.loops import Loop, Loops, LoopState
from tests.integration.monitoring.conftest import Mesh, StartMesh


async def nothing() -> None:
    return


class Crashing(Loop):
    """A loop whose run ends by itself so many times, at once."""

    def __init__(self, name: str, crashes: int) -> None:
        super().__init__(name, nothing, 3600)
        self.left = crashes

    async def run_for_ever(self) -> None:
        if self.left:
            self.left -= 1
            raise ConnectionResetError
        await super().run_for_ever()


async def until(condition: Callable[[], Awaitable[object]]) -> None:
    async with asyncio.timeout(60):
        while not await condition():  # noqa: ASYNC110 -- what is waited for has no event
            await asyncio.sleep(0.02)


async def worker(mesh: Mesh, name: str) -> dict[str, Any] | None:
    answer = await mesh.http().get("/supervisor")
    assert answer.status_code == 200
    return next((one for one in answer.json()["workers"] if one["name"] == name), None)


async def history(mesh: Mesh, total: int, **params: str | int) -> dict[str, Any]:
    """A page of restarts, once so many are noted: that comes after the report that shows them."""
    page: dict[str, Any] = {}

    async def noted() -> bool:
        page.update((await mesh.http().get("/supervisor/restart-history", params=params)).json())
        return bool(page["pagination"]["total"] >= total)

    await until(noted)
    return page


async def shows(mesh: Mesh, name: str, status: str) -> None:
    async def does() -> bool:
        found = await worker(mesh, name)
        return found is not None and found["status"] == status

    await until(does)


async def test_a_loop_is_stopped_and_started_through_two_processes(mesh: Mesh) -> None:
    processes = [Loops(Loop("tasks-expiry", nothing, 3600)) for _ in range(2)]
    for process in processes:
        await mesh.process(process, "tasks")
    await shows(mesh, "tasks_expiry", "running")
    http = mesh.http()
    for _ in range(2):
        answer = await http.post("/supervisor/workers/tasks_expiry/stop")
        assert answer.status_code == 200, answer.text
        assert answer.json() == {
            "success": True,
            "message": "Worker 'tasks_expiry' stopped successfully",
            "worker_name": "tasks_expiry",
        }
        assert {one.kept[0].state for one in processes} == {LoopState.STOPPED}
    await shows(mesh, "tasks_expiry", "stopped")
    late = Loops(Loop("tasks-expiry", nothing, 3600))
    await mesh.process(late, "tasks")
    await mesh.monitoring.supervisor.tell()

    async def has_stopped() -> bool:
        return late.kept[0].state is LoopState.STOPPED

    await until(has_stopped)
    for _ in range(2):
        answer = await http.post("/supervisor/workers/tasks_expiry/start")
        assert answer.json()["message"] == "Worker 'tasks_expiry' started successfully"
        assert {one.kept[0].state for one in (*processes, late)} == {LoopState.RUNNING}
    assert (await http.get("/supervisor/restart-history")).json()["items"] == []


async def test_a_loop_that_crashes_comes_back_and_one_that_goes_on_crashing_is_given_up(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loops_module, "_RESTART_SECONDS", 0.001)
    await mesh.process(Loops(Crashing("three-times", 3), Crashing("six-times", 6), Loop("other", nothing, 60)), "tasks")
    await shows(mesh, "six_times", "failed")
    found = await worker(mesh, "three_times")
    assert found is not None
    assert found["status"] == "running"
    assert (found["restart_count"], found["max_restarts"]) == (3, 5)
    assert found["error"] == "ConnectionResetError"
    assert found["last_crashed_at"] <= found["last_started_at"]
    other = await worker(mesh, "other")
    assert other is not None
    assert (other["status"], other["restart_count"], other["error"], other["last_crashed_at"]) == (
        "running",
        0,
        None,
        None,
    )
    http = mesh.http()
    page = await history(mesh, 6, worker_name="three_times", limit=2)
    assert [(one["status"], one["attempt"]) for one in page["items"]] == [("success", 3), ("crashed", 2)]
    assert page["items"][0].keys() == {"worker_name", "timestamp", "attempt", "status", "error"}
    assert page["pagination"] == {"total": 6, "limit": 2, "offset": 0, "items_count": 2, "has_more": True}
    page = await history(mesh, 12, worker_name="six_times", limit=50, offset=11)
    assert [one["status"] for one in page["items"]] == ["crashed"]
    assert page["pagination"] == {"total": 12, "limit": 50, "offset": 11, "items_count": 1, "has_more": False}

    answer = await http.post("/supervisor/reset/six_times")
    assert answer.json() == {"success": True, "message": "Worker 'six_times' restart count reset"}
    await shows(mesh, "six_times", "stopped")
    await mesh.monitoring.supervisor.tell()
    found = await worker(mesh, "six_times")
    assert found is not None
    assert (found["status"], found["restart_count"]) == ("stopped", 0), "a reset starts nothing"
    answer = await http.post("/supervisor/workers/six_times/restart")
    assert answer.json()["message"] == "Worker 'six_times' restarted successfully"
    await shows(mesh, "six_times", "running")
    page = await history(mesh, 13, worker_name="six_times", limit=1)
    assert (page["items"][0]["status"], page["items"][0]["attempt"]) == ("manual", 0)


async def test_wishes_and_history_outlive_the_service(start_mesh: StartMesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops_module, "_RESTART_SECONDS", 0.001)
    first = await start_mesh()
    process = Loops(Crashing("once", 1))
    await first.process(process, "tasks")
    await shows(first, "once", "running")
    assert (await first.http().post("/supervisor/workers/once/stop")).json()["success"]
    # A second replica, which knows what the first was told, and answers for it too.
    second = await start_mesh()
    await shows(second, "once", "stopped")
    page = await history(second, 2)
    assert [one["status"] for one in page["items"]] == ["success", "crashed"]
    assert (await second.http().post("/supervisor/workers/once/start")).json()["success"]
    await shows(first, "once", "running")


async def test_names_and_pages_are_checked(mesh: Mesh) -> None:
    http = mesh.http()
    for path in ("workers/{}/start", "workers/{}/stop", "workers/{}/restart", "reset/{}"):
        answer = await http.post("/supervisor/" + path.format("has-hyphens"))
        assert answer.status_code == 400
        assert "has-hyphens" in answer.json()["detail"]
        answer = await http.post("/supervisor/" + path.format("nobody"))
        assert (answer.status_code, answer.json()) == (404, {"detail": "Worker 'nobody' not found"})
        answer = await mesh.http("read").post("/supervisor/" + path.format("nobody"))
        assert answer.status_code == 403
    history = "/supervisor/restart-history"
    assert (await http.get(history, params={"worker_name": "1st"})).status_code == 400
    unknown = await http.get(history, params={"worker_name": "nobody"})
    assert (unknown.status_code, unknown.json()["items"]) == (200, [])
    for params in ({"limit": 0}, {"limit": 101}, {"offset": -1}):
        assert (await http.get(history, params=params)).status_code == 422


async def test_the_service_supervises_its_own_loops_and_both_routes_answer_alike(mesh: Mesh) -> None:
    await shows(mesh, "monitoring_wishes", "running")
    http = mesh.http("read")
    bodies = [(await http.get(f"/supervisor{path}")).json() for path in ("", "/status")]
    for body in bodies:
        assert body.pop("timestamp")
        assert body["running"] is True
        assert body["worker_count"] == len(body["workers"])
    assert bodies[0] == bodies[1]


async def test_a_gateway_obeys_for_its_loop_and_goes_on_answering(mesh: Mesh) -> None:
    await shows(mesh, "live_status", "running")
    http = mesh.http()
    for order, status in (("stop", "stopped"), ("start", "running")):
        answer = await http.post(f"/supervisor/workers/live_status/{order}")
        assert answer.json()["success"] is True
        await shows(mesh, "live_status", status)


async def test_without_nats_there_is_no_supervisor(start_mesh: StartMesh) -> None:
    mesh = await start_mesh(nats_url="nats://127.0.0.1:1")
    body = (await mesh.http().get("/supervisor")).json()
    assert (body["running"], body["worker_count"], body["workers"]) == (False, 0, [])
    answer = await mesh.http().post("/supervisor/workers/tasks_expiry/start")
    assert answer.status_code == 503
    assert "supervisor" in answer.json()["detail"]
    assert (await mesh.http().post("/supervisor/workers/tasks-expiry/start")).status_code == 400
    assert (await mesh.http().get("/supervisor/restart-history")).status_code == 200
