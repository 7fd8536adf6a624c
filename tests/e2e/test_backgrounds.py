"""BACKGROUND_REMOVE and BACKGROUND_FIX over HTTP: what they make of a photo, measured, and what they refuse."""

import io
import uuid
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from modelkit.background import background_colour
from tests.e2e.bodies import data_url, stored_picture
from tests.e2e.harness import ENDED, RunningMesh, ended_task, post_until_answered, until

pytestmark = pytest.mark.timeout(600)

DATA = Path(__file__).parents[1] / "unit" / "modelkit" / "data"
BLUE = (190, 210, 240)


def photo() -> Image.Image:
    with Image.open(DATA / "astronaut.jpg") as image:
        return image.convert("RGB")


def subject() -> Any:
    with Image.open(DATA / "astronaut-subject.png") as image:
        return np.asarray(image.convert("L")) > 127


def store(client: httpx.Client, name: str, image: Image.Image) -> str:
    content = io.BytesIO()
    image.save(content, "PNG")
    answer = client.post(
        f"/api/v1/storage/images/{name}", content=content.getvalue(), headers={"content-type": "image/png"}
    )
    assert answer.status_code == 200, answer.text
    return name


def ended(client: httpx.Client, fields: dict[str, Any]) -> dict[str, Any]:
    task = post_until_answered(client, "/api/v1/tasks/", {"origin_instance": "e2e", **fields}, str(uuid.uuid4()))
    return ended_task(client, task["id"])


def test_pictures_are_cut_out_and_one_that_shows_nothing_is_told(device_mesh: RunningMesh) -> None:
    with device_mesh.http("cutouts") as client:
        store(client, "photo.png", photo())
        store(client, "plain.png", Image.new("RGB", (64, 48), "grey"))
        paths = ["plain.png", "photo.png"]
        task = ended(client, {"task_type": "BACKGROUND_REMOVE", "input_image_paths": paths})
        assert task["status"] == "COMPLETED", task["errors"]
        assert task["input_image_paths"] == paths
        empty, path = task["result_image_paths"]
        assert empty == ""
        assert path.startswith(f"backgrounds/{task['id']}/")
        assert task["errors"] == [
            "input_image_paths[0]: The picture shows nothing that stands out from its background."
        ]
        cut = stored_picture(client, path)
        assert (cut.mode, cut.size) == ("RGBA", (220, 256))
        mask = np.asarray(cut.getchannel("A")) > 127
        assert (mask & subject()).sum() / (mask | subject()).sum() > 0.96
        alone = ended(client, {"task_type": "BACKGROUND_REMOVE", "input_image_paths": ["plain.png"]})
        assert (alone["status"], alone["error_category"], alone["retry_count"]) == ("FAILED", "VALIDATION", 0)
        assert alone["result_image_paths"] is None


def test_a_background_is_moved_to_the_palettes_and_the_person_stays(device_mesh: RunningMesh) -> None:
    with device_mesh.http("fixes") as client:
        fields = {
            "task_type": "BACKGROUND_FIX",
            "base_image": data_url(photo()),
            "palette_image": data_url(Image.new("RGB", (32, 32), BLUE)),
            "shadow_threshold": 60,
            "light_threshold": 100,
        }
        task = ended(client, fields)
        assert task["status"] == "COMPLETED", task["errors"]
        defaults = {name: task[name] for name in ("strategy", "mask_expansion_percentage", "edge_blur_sigma")}
        assert defaults == {"strategy": "color_shift", "mask_expansion_percentage": 0.005, "edge_blur_sigma": 20.0}
        assert (task["shadow_threshold"], task["light_threshold"]) == (60, 100)
        made = np.asarray(stored_picture(client, task["result_image_path"]).convert("RGB"))
        before = np.asarray(photo())
        person = subject()
        assert (made != before).any(-1)[person].mean() < 0.05
        wanted = np.array(background_colour(np.full((4, 4, 3), BLUE, np.uint8), None))
        away = np.array(background_colour(before, person.astype(np.float32), 100)) - wanted
        left = np.array(background_colour(made, person.astype(np.float32), 100)) - wanted
        assert np.linalg.norm(left) < np.linalg.norm(away) / 2.5
        plain = {**fields, "base_image": data_url(Image.new("RGB", (64, 48), "grey"))}
        refused = ended(client, plain)
        assert (refused["status"], refused["error_category"], refused["retry_count"]) == ("FAILED", "VALIDATION", 0)
        assert refused["errors"][0].startswith("base_image shows neither a person nor ")


@pytest.mark.parametrize(
    ("fields", "where", "said"),
    [
        ({"shadow_threshold": 230}, [], "150 and 220 where absent"),
        ({"light_threshold": 256}, ["light_threshold"], ""),
        ({"shadow_threshold": 150.5}, ["shadow_threshold"], ""),
        ({"mask_expansion_percentage": 1.1}, ["mask_expansion_percentage"], ""),
        ({"edge_blur_sigma": -1}, ["edge_blur_sigma"], ""),
        ({"strategy": "paint"}, ["strategy"], ""),
        ({"palette_image": None}, ["palette_image"], ""),
        (
            {"provider_config": {"provider_type": "LOCAL", "rembg_model": "isnet-anime"}},
            ["provider_config", "rembg_model"],
            "this installation has u2net, u2netp",
        ),
        ({"provider_config": {"provider_type": "LOCAL", "rembg_model": "other"}}, ["provider_config"], ""),
        (
            {"task_type": "BACKGROUND_REMOVE", "input_image_paths": ["a.png"], "config": {"cloth_category": "hat"}},
            ["config", "cloth_category"],
            "all",
        ),
        ({"task_type": "BACKGROUND_REMOVE", "input_image_paths": []}, ["input_image_paths"], ""),
        ({"task_type": "BACKGROUND_REMOVE", "input_image_paths": ["gone.png"]}, ["input_image_paths", 0], "no object"),
    ],
)
def test_what_cannot_work_is_refused_at_once(
    device_mesh: RunningMesh, fields: dict[str, Any], where: list[str | int], said: str
) -> None:
    body = {
        "task_type": "BACKGROUND_FIX",
        "origin_instance": "e2e",
        "base_image": data_url(photo()),
        "palette_image": data_url(photo()),
        **fields,
    }
    if body["task_type"] == "BACKGROUND_REMOVE":
        del body["base_image"], body["palette_image"]
    with device_mesh.http("refusals") as client:
        answer = client.post("/api/v1/tasks/", json=body)
        assert answer.status_code == 422, answer.text
        [error] = answer.json()["detail"]
        assert error["loc"][1 : 1 + len(where)] == where
        assert said in error["msg"]


def test_a_packshot_is_generated_cut_out_and_set_before_a_background(device_mesh: RunningMesh) -> None:
    steps = [
        {
            "id": "generate",
            "task_type": "GENERATION",
            "config": {"prompt": "a red dress", "width": 128, "height": 128, "seed": 3},
        },
        {
            "id": "cut",
            "task_type": "BACKGROUND_REMOVE",
            "depends_on": ["generate"],
            "config": {},
            "input_mappings": [
                {
                    "from_step": "generate",
                    "from_field": "result_image_path",
                    "to_field": "input_image_paths",
                    "transform": "to_list",
                }
            ],
        },
        {
            "id": "fix",
            "task_type": "BACKGROUND_FIX",
            "depends_on": ["cut"],
            "config": {"palette_image": data_url(Image.new("RGB", (32, 32), BLUE)), "strategy": "replace"},
            "input_mappings": [
                {
                    "from_step": "cut",
                    "from_field": "result_image_paths",
                    "to_field": "base_image",
                    "transform": "first",
                }
            ],
        },
    ]
    with device_mesh.http("packshots") as client:
        body = {"name": "packshot", "origin_instance": "e2e", "steps": steps}
        answer = client.post("/api/v1/workflows/", json=body)
        assert answer.status_code == 200, answer.text
        url = f"/api/v1/workflows/{answer.json()['id']}"

        def found() -> dict[str, Any] | None:
            now = dict(client.get(url).json())
            return now if now["status"] in ENDED else None

        workflow = until(found, "the workflow ends", 200)
        assert workflow["status"] == "COMPLETED", workflow
        [made] = [
            stored_picture(client, path)
            for path in device_mesh.objects("packshots")
            if path.endswith("/image.png") and path.startswith("backgrounds/")
        ]
        assert (made.mode, made.size) == ("RGB", (128, 128))
        pixels = np.asarray(made).astype(int)
        assert np.abs(pixels[:6] - BLUE).max() <= 4
        middle = pixels[56:72, 56:72].reshape(-1, 3).mean(0)
        assert middle[0] > middle[1] + 60  # the red dress
