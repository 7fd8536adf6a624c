"""Tasks through HTTP that providers execute: by a worker of their own, each paid once, or by the device after all."""

import uuid
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.e2e.bodies import data_url, stored_picture
from tests.e2e.harness import RunningMesh, ended_task, post_until_answered
from tests.e2e.test_refine import store
from tests.providers.called import CalledProviders
from tests.providers.fashn import FashnServer

pytestmark = pytest.mark.timeout(600)

PERSON, GARMENT = Image.new("RGB", (60, 90), "teal"), Image.new("RGB", (40, 40), "red")


def ended(client: httpx.Client, **fields: Any) -> dict[str, Any]:
    body = {"origin_instance": "e2e", **fields}
    task = post_until_answered(client, "/api/v1/tasks/", body, str(uuid.uuid4()))
    return ended_task(client, task["id"])


def edit(**fields: Any) -> dict[str, Any]:
    asked: dict[str, Any] = {
        "task_type": "EDITING",
        "prompt": "make it blue",
        "base_image": data_url(PERSON),
        "reference_images": [data_url(GARMENT)],
        "width": 64,
        "height": 64,
        "provider_type": "FASHN_STANDARD",
    }
    return {**asked, **fields}


def edited(client: httpx.Client, **fields: Any) -> dict[str, Any]:
    return ended(client, **edit(**fields))


@pytest.fixture
def fashn(called: CalledProviders) -> FashnServer:
    """FASHN, as it is when nothing is wrong with it."""
    server = called.fashn
    server.ending, server.error, server.refusal = "completed", None, None
    return server


def test_a_garment_is_tried_on_by_a_worker_without_torch(device_mesh: RunningMesh, fashn: FashnServer) -> None:
    paid = fashn.paid
    with device_mesh.http("tried-on") as client:
        task = edited(client)
        assert task["status"] == "COMPLETED", task["errors"]
        assert (task["provider_type"], task["executor_instance"]) == ("FASHN_STANDARD", "providers/fashn")
        assert stored_picture(client, task["result_image_path"]).size == (64, 64)
        prediction = fashn.predictions[-1]
        assert task["service_task_id"] == task["provider_config"]["fashn_task_id"] == prediction.id
        assert task["provider_config"]["max_image_height"] == 2000
        [attempt] = device_mesh.attempts(client, task["id"])
        assert attempt["outcome"] == "COMPLETED"
    assert fashn.paid == paid + 1
    mapped = Path(f"/proc/{device_mesh.pid('providers')}/maps").read_text()
    assert "libtorch" not in mapped
    knows = {
        role: fashn.key in Path(f"/proc/{device_mesh.pid(role)}/environ").read_text() for role in ("worker", "tasks")
    }
    assert knows == {"worker": False, "tasks": False}


def test_a_picture_is_enlarged_by_magnific(device_mesh: RunningMesh, called: CalledProviders) -> None:
    paid = called.freepik.paid
    with device_mesh.http("magnified") as client:
        task = ended(
            client,
            task_type="REFINE",
            base_image_url=store(client, "base.png", PERSON),
            upscale_factor=2.5,
            provider_type="FREEPIK_MAGNIFIC",
            provider_config={"creativity": 3, "defaultPrompt": "a face"},
        )
        assert task["status"] == "COMPLETED", task["errors"]
        assert stored_picture(client, task["result_image_path"]).size == (150, 225)
        assert task["active_provider_capabilities"] == ["UPSCALE_FLOAT"]
    made = called.freepik.tasks[-1]
    assert task["service_task_id"] == made.id
    assert (made.body["creativity"], made.body["prompt"], made.body["scale_factor"]) == (3, "a face", "4x")
    assert called.freepik.paid == paid + 1


def test_a_mistake_of_the_caller_fails_once_and_says_why(device_mesh: RunningMesh, fashn: FashnServer) -> None:
    asked = fashn.count("POST")
    fashn.ending, fashn.error = "failed", {"name": "PoseError", "message": "No person in the picture"}
    with device_mesh.http("tried-wrongly") as client:
        task = edited(client, config={"fashn": {"model": "edit"}}, fallback_provider_type="LOCAL")
    assert (task["status"], task["error_category"], task["retry_count"]) == ("FAILED", "VALIDATION", 0)
    [error] = task["errors"]
    assert "No person in the picture" in error
    assert fashn.count("POST") == asked + 1


def test_a_member_that_no_model_takes_is_refused_at_once(device_mesh: RunningMesh, fashn: FashnServer) -> None:
    asked = len(fashn.asked)
    with device_mesh.http("tried-wrongly") as client:
        body = edit(origin_instance="tests", config={"fashn": {"model": "tryon-v9"}})
        refused = client.post("/api/v1/tasks/", json=body)
    assert refused.status_code == 422
    [problem] = refused.json()["detail"]
    assert problem["loc"] == ["body", "config", "fashn", "model"]
    assert "tryon-v1.6, tryon-max" in problem["msg"]
    assert len(fashn.asked) == asked


@pytest.mark.parametrize("why", ["moderation", "out of credits"])
def test_the_device_edits_what_fashn_does_not(device_mesh: RunningMesh, fashn: FashnServer, why: str) -> None:
    asked, made = fashn.count("POST"), len(fashn.predictions)
    if why == "moderation":
        fashn.ending, fashn.error = "failed", {"name": "ContentModerationError", "message": "Prohibited content"}
    else:
        fashn.refusal = 429, "OutOfCredits", "No API credits remaining"
    with device_mesh.http(f"fallen-back-{why.replace(' ', '-')}") as client:
        task = edited(
            client, reference_images=None, config={"fashn": {"model": "edit"}}, fallback_provider_type="LOCAL"
        )
        assert task["status"] == "COMPLETED", task["errors"]
        assert task["provider_type"] == "LOCAL"
        assert stored_picture(client, task["result_image_path"]).size == (64, 64)
        outcomes = [attempt["outcome"] for attempt in device_mesh.attempts(client, task["id"])]
        assert outcomes == ["FAILED", "COMPLETED"]
    # It is asked once, whether or not it takes the request.
    assert fashn.count("POST") == asked + 1
    assert len(fashn.predictions) == made + int(why == "moderation")
