"""What operators see over HTTP, and clients that nobody here wrote."""

import uuid
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.documented import documented
from tests.e2e.bodies import body, data_url, photo
from tests.e2e.harness import RunningMesh, ended_task, post_until_answered, until

pytestmark = pytest.mark.timeout(600)


def _get(client: httpx.Client, path: str, **parameters: Any) -> dict[str, Any]:
    answer = client.get(f"/api/v1/monitoring/{path}", params=parameters)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


@pytest.fixture
def client(mesh: RunningMesh) -> Iterator[httpx.Client]:
    with mesh.http("monitored") as client:
        yield client


def test_a_task_is_listed_counted_and_told_of(mesh: RunningMesh, client: httpx.Client) -> None:
    made = mesh.create(client, str(uuid.uuid4()), origin_zone="eu")
    ended_task(client, made["id"])
    page = _get(client, "tasks", search=made["id"].replace("-", "")[:10].upper(), status="COMPLETED")
    assert (page["total"], page["page"], page["page_size"], page["pages"]) == (1, 1, 50, 1)
    [item] = page["items"]
    assert (item["id"], item["task_type"], item["status"], item["progress"]) == (made["id"], "NOOP", "COMPLETED", 100.0)
    assert item["duration_ms"] > 0
    assert item["has_error"] is False
    detail = _get(client, f"tasks/{made['id']}")
    assert (detail["celery_task_id"], detail["errors"], detail["service_requests"]) == (made["id"], None, None)
    stats = _get(client, "stats", origin_zone="eu")
    assert (stats["total_tasks"], stats["by_status"]["COMPLETED"], stats["by_status"]["FAILED"]) == (1, 1, 0)
    assert (stats["by_task_type"], stats["tasks_last_24h"]) == ({"NOOP": 1}, 1)
    queues = _get(client, "queues")
    assert {"inference", "training", "fal"} <= {one["name"] for one in queues["queues"]}


def test_what_a_task_has_used_is_told_in_json_and_as_a_table(mesh: RunningMesh) -> None:
    with mesh.http("spender") as client:
        ended_task(client, mesh.create(client, str(uuid.uuid4()))["id"])
        answer = client.get("/api/v1/usage", params={"group_by": ["task_type", "device"]})
        assert answer.status_code == 200, answer.text
        [row] = [row for row in answer.json()["rows"] if row["attempts"]]
        assert (row["task_type"], row["device"], row["attempts"], row["day"]) == ("NOOP", "cpu", 1, None)
        table = client.get("/api/v1/usage.csv")
        assert table.headers["content-type"] == "text/csv; charset=utf-8"
        assert table.text.startswith("day,attempts,failed_attempts,")
        refused = client.get("/api/v1/usage", params={"first_day": "yesterday"})
        assert refused.status_code == 422


def test_workers_tell_their_memory_of_parent_and_child(client: httpx.Client) -> None:
    def told() -> dict[str, Any] | None:
        found = _get(client, "workers")
        return found if found["workers"] and found["workers"][0]["memory_mb"] else None

    found = until(told, "a heartbeat tells the memory")
    documented("GET", "/api/v1/monitoring/workers").holds(found)
    for worker in found["workers"]:
        assert worker["memory_mb"] > 20
    health = _get(client, "workers/health")
    assert (health["healthy"], "inference" in health["queues_with_workers"]) == (True, True)


def test_pictures_of_a_task_are_shown_without_a_token(device_mesh: RunningMesh) -> None:
    with device_mesh.http("monitored") as client:
        _shows_pictures(device_mesh, client)


def _shows_pictures(mesh: RunningMesh, client: httpx.Client) -> None:
    made = post_until_answered(client, "/api/v1/tasks/", body("IMAGE_ADJUSTER", data_url(photo())), str(uuid.uuid4()))
    waiting = _get(client, f"tasks/{made['id']}/media")
    assert waiting["task_id"] == made["id"]
    ended_task(client, made["id"])
    media = _get(client, f"tasks/{made['id']}/media")
    answer = documented("GET", "/api/v1/monitoring/tasks/{task_id}/media")
    answer.holds(media)
    assert answer.empty_lists(media) == []
    for one in media["inputs"] + media["outputs"]:
        assert one["media_type"] == "image"
        shown = httpx.get(httpx.URL(mesh.url).join(one["url"]), timeout=60)
        assert shown.status_code == 200
        assert shown.headers["content-type"].startswith("image/")
    assert client.get(f"/api/v1/tasks/{made['id']}").json()["result_image_path"] == media["outputs"][0]["path"]


def test_a_client_of_celery_statistics_reads_them(mesh: RunningMesh) -> None:
    # A large package, which a run of other tests need not load.
    from waldur_api_client.api.celery_stats import celery_stats_retrieve  # noqa: PLC0415 -- as above
    from waldur_api_client.client import AuthenticatedClient  # noqa: PLC0415 -- as above

    token = mesh.token("monitored", ("read", "support"))
    with AuthenticatedClient(base_url=mesh.url, token=token) as client:  # it sends `Token`, not `Bearer`
        found = celery_stats_retrieve.sync(client=client)
    assert found is not None
    maps = found.to_dict()
    assert set(maps) == {"active", "scheduled", "reserved", "revoked", "query_task", "stats"}
    [name] = maps["stats"]
    assert name.startswith("celery@")
    assert all(set(by_worker) == {name} for by_worker in maps.values())
    assert maps["stats"][name]["pool"]["max-concurrency"] > 0
    assert maps["stats"][name]["pid"] == mesh.pid("worker")


def test_celery_statistics_want_support(mesh: RunningMesh, client: httpx.Client) -> None:
    assert client.get("/api/celery-stats/").status_code == 403
    assert httpx.get(f"{mesh.url}/api/celery-stats/", timeout=60).status_code == 401
