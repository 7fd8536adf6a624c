"""REFINE over HTTP: how close it comes to the photo, what it shows and fills in, and what it refuses."""

import io
import uuid
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.e2e.bodies import stored_picture
from tests.e2e.harness import ENDED, RunningMesh, ended_task, post_until_answered, until

pytestmark = pytest.mark.timeout(600)

PHOTO = Path(__file__).parents[1] / "unit" / "modelkit" / "data" / "photo-coffee.png"
BICUBIC = Image.Resampling.BICUBIC


def photo() -> Image.Image:
    with Image.open(PHOTO) as image:
        return image.convert("RGB")


def store(client: httpx.Client, name: str, image: Image.Image) -> str:
    content = io.BytesIO()
    image.save(content, "PNG")
    answer = client.post(
        f"/api/v1/storage/images/{name}", content=content.getvalue(), headers={"content-type": "image/png"}
    )
    assert answer.status_code == 200, answer.text
    return name


def ended(client: httpx.Client, **fields: Any) -> dict[str, Any]:
    body = {"task_type": "REFINE", "origin_instance": "e2e", **fields}
    task = post_until_answered(client, "/api/v1/tasks/", body, str(uuid.uuid4()))
    return ended_task(client, task["id"])


def psnr(made: Image.Image, truth: Image.Image) -> float:
    error = (np.asarray(made).astype(float) - np.asarray(truth)) ** 2
    return float(10 * np.log10(255**2 / error.mean()))


def test_a_photo_is_enlarged_and_the_task_shows_what_it_relied_on(device_mesh: RunningMesh) -> None:
    truth = photo()
    half = truth.resize((96, 96), BICUBIC)
    with device_mesh.http("refines") as client:
        task = ended(client, base_image_url=store(client, "half.png", half), upscale_factor=2)
        assert task["status"] == "COMPLETED", task["errors"]
        assert task["result_image_path"].startswith(f"refines/{task['id']}/")
        made = stored_picture(client, task["result_image_path"])
        assert psnr(made, truth) >= psnr(half.resize(truth.size, BICUBIC), truth) + 2
        assert task["active_provider_capabilities"] == ["UPSCALE_2X"]
        shown = {name: task[name] for name in ("upscale_factor", "upscale_steps", "upscale_denoise")}
        assert shown == {"upscale_factor": 2.0, "upscale_steps": 20, "upscale_denoise": 0.0}
        assert (task["face_detail_steps"], task["face_detail_denoise"]) == (20, 0.4)
        seeds = task["upscale_seed"], task["face_detail_seed"]
        assert all(0 <= seed < 2**53 for seed in seeds)
        assert seeds[0] != seeds[1]
        wide = ended(client, base_image_url="half.png", target_width=150, face_detail_enabled=False)
        assert stored_picture(client, wide["result_image_path"]).size == (150, 150)
        assert wide["active_provider_capabilities"] == ["OUTPUT_SIZE"]


def test_repainting_follows_the_seed_and_keeps_the_picture(device_mesh: RunningMesh) -> None:
    small = photo().resize((64, 64), BICUBIC)
    fields = {"upscale_factor": 2, "upscale_denoise": 0.2, "upscale_seed": 5, "face_detail_enabled": False}
    with device_mesh.http("repaints") as client:
        store(client, "small.png", small)
        first, second = (ended(client, base_image_url="small.png", **fields) for _ in range(2))
        assert first["status"] == "COMPLETED", first["errors"]
        made, again = (stored_picture(client, task["result_image_path"]) for task in (first, second))
        assert made.size == (128, 128)
        assert made.tobytes() == again.tobytes()
        box = Image.Resampling.BOX
        coarse = [np.asarray(image.resize((8, 8), box)).astype(int) for image in (made, small)]
        assert np.abs(coarse[0] - coarse[1]).mean() < 8
        refused = ended(client, base_image_url="small.png", **{**fields, "upscale_steps": 900})
        assert (refused["status"], refused["error_category"], refused["retry_count"]) == ("FAILED", "VALIDATION", 0)
        assert "steps" in refused["errors"][0]


def test_a_result_that_would_be_too_large_fails_once(device_mesh: RunningMesh) -> None:
    with device_mesh.http("large") as client:
        store(client, "wide.png", Image.new("RGB", (2000, 2), "grey"))
        task = ended(client, base_image_url="wide.png", upscale_factor=5)
        assert (task["status"], task["error_category"], task["retry_count"]) == ("FAILED", "VALIDATION", 0)
        assert task["errors"][0].startswith("upscale_factor: the result would be 10000 x 10 pixels")


@pytest.mark.parametrize(
    ("fields", "where", "said"),
    [
        ({}, [], "upscale_factor, target_width or target_height is required"),
        ({"upscale_factor": 2, "target_width": 64}, [], "upscale_factor excludes target_width and target_height"),
        ({"upscale_factor": 0.5}, ["upscale_factor"], ""),
        ({"upscale_factor": 17}, ["upscale_factor"], ""),
        ({"target_width": 9000}, ["target_width"], ""),
        ({"upscale_factor": 2, "upscale_denoise": 1.1}, ["upscale_denoise"], ""),
        ({"upscale_factor": 2, "face_detail_seed": -1}, ["face_detail_seed"], ""),
        ({"upscale_factor": 2, "base_image_url": "nowhere.png"}, ["base_image_url"], "There is no object"),
        (
            {"upscale_factor": 4, "active_provider_capabilities": ["UPSCALE_2X"]},
            ["active_provider_capabilities"],
            "must contain UPSCALE_4X, which upscale_factor asks for",
        ),
        (
            {"target_width": 64, "active_provider_capabilities": ["SEED"]},
            ["active_provider_capabilities"],
            "must contain OUTPUT_SIZE, which upscale_factor asks for",
        ),
    ],
)
def test_what_cannot_work_is_refused_at_once(
    device_mesh: RunningMesh, fields: dict[str, Any], where: list[str], said: str
) -> None:
    with device_mesh.http("refusals") as client:
        store(client, "a.png", Image.new("RGB", (16, 16)))
        body = {"task_type": "REFINE", "origin_instance": "e2e", "base_image_url": "a.png", **fields}
        answer = client.post("/api/v1/tasks/", json=body)
        assert answer.status_code == 422, answer.text
        [error] = answer.json()["detail"]
        assert error["loc"][1 : 1 + len(where)] == where
        assert said in error["msg"]


def test_a_workflow_refines_what_it_has_generated(device_mesh: RunningMesh) -> None:
    mapping = {"from_step": "generate", "from_field": "result_image_path", "to_field": "base_image_url"}
    steps = [
        {
            "id": "generate",
            "task_type": "GENERATION",
            "config": {"prompt": "a red dress", "width": 64, "height": 64, "seed": 3},
        },
        {
            "id": "refine",
            "task_type": "REFINE",
            "depends_on": ["generate"],
            "config": {"upscale_factor": 4},
            "input_mappings": [mapping],
        },
    ]
    with device_mesh.http("chains") as client:
        answer = client.post("/api/v1/workflows/", json={"name": "refined", "origin_instance": "e2e", "steps": steps})
        assert answer.status_code == 200, answer.text
        url = f"/api/v1/workflows/{answer.json()['id']}"

        def found() -> dict[str, Any] | None:
            now = dict(client.get(url).json())
            return now if now["status"] in ENDED else None

        workflow = until(found, "the workflow ends", 200)
        assert workflow["status"] == "COMPLETED", workflow
        [path] = [one for one in device_mesh.objects("chains") if one.startswith("refines/")]
        made = stored_picture(client, path)
        assert made.size == (256, 256)
        middle = np.asarray(made)[112:144, 112:144].reshape(-1, 3).mean(0)
        assert middle[0] > middle[1] + 60  # the red dress
