"""Tasks through HTTP that applications of fal execute: each by one request, also where the worker is killed."""

import signal
import uuid
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.e2e.bodies import stored_picture
from tests.e2e.harness import RunningMesh, ended_task, post_until_answered, until
from tests.providers.called import CalledProviders
from tests.providers.fal import FalServer

pytestmark = pytest.mark.timeout(600)

APP = "fal-ai/flux/dev"


@pytest.fixture
def fal(called: CalledProviders) -> Iterator[FalServer]:
    """fal, as it is when nothing is wrong with it."""
    server = called.fal
    server.never = False
    yield server
    server.never = False


def drawing(**more: Any) -> dict[str, Any]:
    return {
        "task_type": "GENERATION",
        "origin_instance": "e2e",
        "prompt": "a hat",
        "width": 64,
        "height": 48,
        "provider_type": "FAL_STANDARD",
        "fal_app_id": APP,
        **more,
    }


def ended(client: httpx.Client, body: dict[str, Any]) -> dict[str, Any]:
    task = post_until_answered(client, "/api/v1/tasks/", body, str(uuid.uuid4()))
    return ended_task(client, task["id"])


def test_a_picture_is_drawn_by_an_application(device_mesh: RunningMesh, fal: FalServer) -> None:
    before = fal.submits
    with device_mesh.http("fal-drawn") as client:
        task = ended(client, drawing())
        assert task["status"] == "COMPLETED", task["errors"]
        assert stored_picture(client, task["result_image_path"]).size == (64, 48)
    request = list(fal.requests.values())[-1]
    assert (request.application, request.arguments["seed"]) == (APP, task["seed"])
    assert task["service_task_id"] == task["fal_request_id"] == task["provider_config"]["fal_request_id"] == request.id
    assert fal.submits == before + 1


def test_any_application_is_called_with_any_parameters(device_mesh: RunningMesh, fal: FalServer) -> None:
    body = {
        "task_type": "EXPERIMENTAL_FAL",
        "origin_instance": "e2e",
        "fal_app_id": "acme/anything",
        "fal_parameters": {
            "image_size": {"width": 40, "height": 30},
            "steps": 3,
            "webhook_url": "https://evil.example",
        },
    }
    with device_mesh.http("fal-any") as client:
        task = ended(client, body)
        assert task["status"] == "COMPLETED", task["errors"]
        assert task["result_url"].startswith(fal.url)
        request = list(fal.requests.values())[-1]
        assert task["fal_request_id"] == request.id
        assert request.arguments == {"image_size": {"width": 40, "height": 30}, "steps": 3}
        assert isinstance(request.arguments["steps"], int)
        found = client.get("/api/v1/storage/images", params={"prefix": f"fal/{task['id']}"}).json()
        assert any(one["path"].endswith("result-0.png") for one in found["images"]), found


def test_what_fal_does_not_take_is_the_callers_mistake(device_mesh: RunningMesh, fal: FalServer) -> None:
    before = fal.submits
    with device_mesh.http("fal-refused") as client:
        for wrong in ("../evil", "fal-ai/x?fal_webhook=https://evil.example", "one"):
            assert client.post("/api/v1/tasks/", json=drawing(fal_app_id=wrong)).status_code == 422
        stolen = drawing(provider_config={"fal_request_id": "another-tenants"})
        assert client.post("/api/v1/tasks/", json=stolen).status_code == 422
    assert fal.submits == before


@pytest.mark.parametrize(
    ("tasks", "number"),
    [
        pytest.param(10, signal.SIGKILL, id="killed"),
        pytest.param(50, signal.SIGKILL, id="killed-fifty", marks=pytest.mark.long),
        pytest.param(50, signal.SIGTERM, id="drained-fifty", marks=pytest.mark.long),
    ],
)
def test_each_task_of_a_worker_that_goes_ends_by_the_request_that_it_had(
    device_mesh: RunningMesh, fal: FalServer, tasks: int, number: signal.Signals
) -> None:
    fal.never = True
    before, restarts = set(fal.requests), device_mesh.restarts("providers")
    with device_mesh.http(f"fal-{number.name.lower()}-{tasks}", timeout_seconds=60) as client:
        for _ in range(tasks):
            assert client.post("/api/v1/tasks/", json=drawing()).status_code == 200

        def mine() -> list[Any]:
            return [request for name, request in list(fal.requests.items()) if name not in before]

        until(lambda: len(mine()) == tasks and all(request.looks for request in mine()), "all run")
        device_mesh.kill("providers", number)
        device_mesh.wait_restarted("providers", restarts)
        fal.never = False
        ended_tasks = device_mesh.wait_ended(client, tasks, 90)
        assert {task["status"] for task in ended_tasks} == {"COMPLETED"}
        assert {task["retry_count"] for task in ended_tasks} == {0}
    assert sorted(task["service_task_id"] for task in ended_tasks) == sorted(request.id for request in mine())
    assert len(mine()) == tasks
