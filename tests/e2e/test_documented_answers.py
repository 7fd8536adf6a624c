"""The documented JSON examples of monitoring, shape for shape, against a running mesh, and the rules of its lists."""

import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from tests.documented import documented, documented_requests
from tests.e2e.bodies import body, data_url, photo
from tests.e2e.harness import ENDED, RunningMesh, ended_task, post_until_answered, until

pytestmark = pytest.mark.timeout(300)

_SUPERVISOR = "/api/system/supervisor"
# These are compared where a Prometheus runs (test_prometheus.py), cameras are watched (test_capture.py), or below with
# the name of a loop of this mesh.
_ELSEWHERE = {
    ("GET", "/api/system/monitoring/health"),
    ("GET", "/api/system/monitoring/targets"),
    ("POST", f"{_SUPERVISOR}/workers/file_watcher/start"),
    ("POST", f"{_SUPERVISOR}/workers/file_watcher/stop"),
    ("POST", f"{_SUPERVISOR}/workers/file_watcher/restart"),
    ("POST", f"{_SUPERVISOR}/reset/detection_worker"),
}


@pytest.fixture(scope="module")
def tenant() -> str:
    return f"shown{uuid.uuid4().hex[:8]}"


@pytest.fixture
def client(mesh: RunningMesh, tenant: str) -> Iterator[httpx.Client]:
    with mesh.http(tenant) as client:
        yield client


@pytest.fixture
def operator(mesh: RunningMesh) -> Iterator[httpx.Client]:
    with mesh.http("somebody", ("read", "operator")) as client:
        yield client


def _get(client: httpx.Client, path: str, **parameters: Any) -> dict[str, Any]:
    answer = client.get(path, params=parameters)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def _holds(client: httpx.Client, path: str, **values: str) -> dict[str, Any]:
    """Ask as the reference prints it, and compare what is answered; every list has an element."""
    answer = documented("GET", path)
    found = _get(client, path.format(**values))
    answer.holds(found)
    assert answer.empty_lists(found) == [], path
    return found


@pytest.fixture(scope="module")
def task(mesh: RunningMesh, tenant: str) -> dict[str, Any]:
    """A task that has completed after an attempt that failed."""
    with mesh.http(tenant) as client:
        made = mesh.create(client, str(uuid.uuid4()), origin_zone="eu", origin_reference="shop-7", failures=1)
        ended = ended_task(client, made["id"])
        assert ended["status"] == "COMPLETED", ended
        return ended


@pytest.fixture(scope="module")
def workflow(mesh: RunningMesh, tenant: str) -> dict[str, Any]:
    """A workflow that has failed at its second step."""
    first = {"id": "cut", "task_type": "NOOP", "config": {"steps": 1, "result_bytes": 16}}
    mapped = [{"from_step": "cut", "from_field": "result_path", "to_field": "payload"}]
    second = {"id": "sew", "task_type": "NOOP", "depends_on": ["cut"], "input_mappings": mapped, "max_retries": 0}
    second["config"] = {"failures": 100, "max_retries": 0}
    wanted = {"name": "Autumn lookbook", "origin_instance": "e2e", "origin_zone": "eu", "steps": [second, first]}
    with mesh.http(tenant) as client:
        made = post_until_answered(client, "/api/v1/workflows/", wanted, str(uuid.uuid4()))

        def ended() -> dict[str, Any] | None:
            now = _get(client, f"/api/v1/monitoring/workflows/{made['id']}")
            return now if now["status"] in ENDED else None

        found = until(ended, "the workflow has ended", 120)
        assert found["status"] == "FAILED", found
        return found


def test_no_example_is_left_out() -> None:
    paths = {path for method, path in documented_requests() if method == "GET"}
    assert paths | {path for _, path in _ELSEWHERE} == {path for _, path in documented_requests()}
    assert paths == {
        *(f"/api/v1/monitoring/{each}" for each in ("tasks", "tasks/{task_id}", "tasks/{task_id}/media", "stats")),
        *(f"/api/v1/monitoring/workflows{each}" for each in ("", "/stats", "/{workflow_id}")),
        *(f"/api/v1/monitoring/{each}" for each in ("queues", "workers", "workers/health")),
        *(f"/api/system/{each}" for each in ("monitoring/health", "monitoring/targets", "pipeline", "health/full")),
        *(f"/api/system/{each}" for each in ("supervisor", "supervisor/restart-history", "websocket/events")),
    }


def test_tasks_have_the_documented_shape(client: httpx.Client, task: dict[str, Any]) -> None:
    page = _holds(client, "/api/v1/monitoring/tasks")
    item = next(one for one in page["items"] if one["id"] == task["id"])
    assert (item["status"], item["has_error"], item["origin_zone"]) == ("COMPLETED", True, "eu")
    detail = _holds(client, "/api/v1/monitoring/tasks/{task_id}", task_id=task["id"])
    assert (detail["origin_reference"], len(detail["errors"]), detail["retry_count"]) == ("shop-7", 1, 1)
    stats = _holds(client, "/api/v1/monitoring/stats")
    assert set(stats["by_status"]) == {"PENDING", "EXECUTING", "COMPLETED", "FAILED", "CANCELLED"}
    assert sum(stats["by_status"].values()) == sum(stats["by_task_type"].values()) == stats["total_tasks"]


def test_workflows_have_the_documented_shape(client: httpx.Client, workflow: dict[str, Any]) -> None:
    page = _holds(client, "/api/v1/monitoring/workflows")
    item = next(one for one in page["items"] if one["id"] == workflow["id"])
    assert (item["status"], item["has_error"], item["total_steps"], item["completed_steps"]) == ("FAILED", True, 2, 1)
    detail = documented("GET", "/api/v1/monitoring/workflows/{workflow_id}")
    detail.holds(workflow)
    assert [one["step_id"] for one in workflow["steps"]] == ["cut", "sew"], "in the order of their execution"
    assert [one["dependencies"] for one in workflow["steps"]] == [[], ["cut"]]
    assert workflow["steps"][1]["input_mappings"][0]["from_step"] == "cut"
    assert workflow["errors"]
    stats = _holds(client, "/api/v1/monitoring/workflows/stats")
    assert set(stats["by_status"]) <= {"PENDING", "RUNNING", "PAUSED", "COMPLETED", "FAILED", "CANCELLED"}
    assert (stats["by_status"]["FAILED"], stats["avg_steps_per_workflow"]) == (1, 2.0)


def test_queues_and_workers_have_the_documented_shape(client: httpx.Client, task: dict[str, Any]) -> None:
    del task
    queues = _holds(client, "/api/v1/monitoring/queues")["queues"]
    assert next(one for one in queues if one["name"] == "inference")["avg_wait_time_ms"] > 0
    until(lambda: _get(client, "/api/v1/monitoring/workers")["workers"], "a worker is told of")
    _holds(client, "/api/v1/monitoring/workers")
    _holds(client, "/api/v1/monitoring/workers/health")


def test_pictures_of_a_task_that_waits_are_its_inputs_alone(client: httpx.Client) -> None:
    waiting = body("IMAGE_ADJUSTER", data_url(photo()))  # no worker of this mesh takes it
    made = post_until_answered(client, "/api/v1/tasks/", waiting, str(uuid.uuid4()))
    media = documented("GET", "/api/v1/monitoring/tasks/{task_id}/media")
    found = _get(client, f"/api/v1/monitoring/tasks/{made['id']}/media")
    media.holds(found)
    assert [one["media_type"] for one in found["inputs"]] == ["image"]
    assert found["outputs"] == []
    assert _get(client, f"/api/v1/monitoring/tasks/{made['id']}")["status"] == "PENDING"


def test_the_supervisor_answers_in_the_documented_shapes(operator: httpx.Client) -> None:
    until(lambda: _get(operator, _SUPERVISOR)["workers"], "loops are known")
    shown = _holds(operator, _SUPERVISOR)
    assert _get(operator, f"{_SUPERVISOR}/status").keys() == shown.keys()
    loop = "monitoring_performance"
    for path, other in (
        ("workers/file_watcher/stop", f"workers/{loop}/stop"),
        ("workers/file_watcher/start", f"workers/{loop}/start"),
        ("workers/file_watcher/restart", f"workers/{loop}/restart"),
        ("reset/detection_worker", f"reset/{loop}"),
    ):
        answer = operator.post(f"{_SUPERVISOR}/{other}")
        assert answer.status_code == 200, answer.text
        documented("POST", f"{_SUPERVISOR}/{path}").holds(answer.json())
        assert answer.json()["success"] is True
    page = _holds(operator, f"{_SUPERVISOR}/restart-history")
    assert page["items"][0]["status"] == "manual"


def test_the_system_answers_in_the_documented_shapes(operator: httpx.Client) -> None:
    until(lambda: _get(operator, "/api/system/pipeline")["degradation"]["services"], "all parts have been asked")
    pipeline = _holds(operator, "/api/system/pipeline")
    assert (pipeline["file_watcher"], pipeline["batch_aggregator"]) == (None, None), "this mesh has no cameras"
    _holds(operator, "/api/system/websocket/events")
    answer = operator.get("/api/system/health/full")
    documented("GET", "/api/system/health/full").holds(answer.json())
    assert answer.json()["workers"]
    assert answer.json()["ai_services"]


def test_a_time_without_a_zone_is_utc(client: httpx.Client, task: dict[str, Any], workflow: dict[str, Any]) -> None:
    for kind, row in (("tasks", task), ("workflows", workflow)):
        made = datetime.fromisoformat(row["created_at"]).astimezone(UTC)
        naive = made.replace(tzinfo=None)
        path = f"/api/v1/monitoring/{kind}"

        def ids(path: str = path, **query: str) -> set[str]:
            return {one["id"] for one in _get(client, path, **query)["items"]}

        assert row["id"] in ids(created_after=naive.isoformat()), "inclusive"
        assert row["id"] not in ids(created_before=naive.isoformat()), "exclusive"
        later = naive + timedelta(milliseconds=1)
        assert row["id"] in ids(created_before=later.isoformat())
        assert row["id"] not in ids(created_after=later.isoformat())
        # The same clock elsewhere is another time.
        assert row["id"] not in ids(created_after=f"{naive.isoformat()}-05:00")
        assert row["id"] in ids(created_after=f"{naive.isoformat()}+05:00")


@pytest.mark.parametrize("kind", ["tasks", "workflows"])
@pytest.mark.parametrize(
    ("query", "member"),
    [
        ({"created_after": "yesterday"}, "created_after"),
        ({"created_before": "2026-13-01T00:00:00Z"}, "created_before"),
        ({"status": "DONE"}, "status"),
        ({"page": "0"}, "page"),
        ({"page": "x"}, "page"),
        ({"page_size": "0"}, "page_size"),
        ({"page_size": "101"}, "page_size"),
        ({"sort_by": "prompt"}, "sort_by"),
        ({"sort_order": "up"}, "sort_order"),
    ],
)
def test_a_filter_that_cannot_be_is_refused(
    client: httpx.Client, kind: str, query: dict[str, str], member: str
) -> None:
    answer = client.get(f"/api/v1/monitoring/{kind}", params=query)
    assert answer.status_code == 422, answer.text
    [told] = answer.json()["detail"]
    assert told.keys() >= {"loc", "msg", "type"}
    assert told["loc"] == ["query", member]


@pytest.mark.parametrize("query", [{"task_type": "DRAWING"}, {"provider_type": "NOBODY"}])
def test_a_type_that_does_not_exist_is_refused(client: httpx.Client, query: dict[str, str]) -> None:
    answer = client.get("/api/v1/monitoring/tasks", params=query)
    assert (answer.status_code, answer.json()["detail"][0]["loc"]) == (422, ["query", next(iter(query))])


def test_workflows_are_filtered_paged_and_searched(
    mesh: RunningMesh, client: httpx.Client, tenant: str, workflow: dict[str, Any]
) -> None:
    step = {"id": "one", "task_type": "NOOP", "config": {"steps": 1}}
    other = {"name": "Spring", "origin_instance": "studio", "origin_zone": "us", "steps": [step]}
    made = post_until_answered(client, "/api/v1/workflows/", other, str(uuid.uuid4()))
    path, first, second = "/api/v1/monitoring/workflows", workflow["id"], made["id"]
    until(lambda: _get(client, f"{path}/{second}")["status"] == "COMPLETED", "the other one is done", 120)

    def ids(**query: Any) -> list[str]:
        return [one["id"] for one in _get(client, path, **query)["items"]]

    for query, expected in (
        ({}, [second, first]),
        ({"sort_order": "asc"}, [first, second]),
        ({"sort_by": "name", "sort_order": "asc"}, [first, second]),
        ({"status": "FAILED"}, [first]),
        ({"status": "PAUSED"}, []),
        ({"origin_instance": "studio"}, [second]),
        ({"origin_zone": "eu"}, [first]),
        ({"origin_zone": "us", "status": "FAILED"}, []),
        ({"origin_tenant_id": tenant}, [second, first]),
        ({"search": "LOOK"}, [first]),
        ({"search": first[:18].upper()}, [first]),
        ({"search": second.replace("-", "")[:20]}, [second]),
        ({"search": "nothing is called so"}, []),
        ({"task_type": "none"}, [second, first]),  # no filter of workflows, and so ignored
    ):
        assert ids(**query) == expected, query
    page = _get(client, path, page_size=1)
    assert (page["total"], page["page"], page["page_size"], page["pages"]) == (2, 1, 1, 2)
    beyond = _get(client, path, page_size=100, page=9)
    assert (beyond["items"], beyond["total"], beyond["pages"]) == ([], 2, 1)
    stats = _get(client, f"{path}/stats", origin_zone="us")
    assert (stats["total_workflows"], stats["workflows_last_hour"]) == (1, 1)
    nothing = _get(client, f"{path}/stats", origin_instance="nobody")
    assert (nothing["total_workflows"], nothing["avg_steps_per_workflow"]) == (0, 0.0)
    with mesh.http(f"{tenant}x") as stranger:
        for kind in ("workflows", "tasks"):
            refused = stranger.get(f"/api/v1/monitoring/{kind}", params={"origin_tenant_id": tenant})
            assert refused.status_code == 403, kind
        assert _get(stranger, path) == {"items": [], "total": 0, "page": 1, "page_size": 50, "pages": 0}
        assert stranger.get(f"{path}/{first}").status_code == 404
        assert stranger.get(f"{path}/none").status_code == 422
    with mesh.http(f"{tenant}x", ("read", "support")) as support:
        assert _get(support, path, origin_tenant_id=tenant)["total"] == 2
