"""The three SARTIQ_ULTIMATE pipelines through HTTP: they run on the worker's device, as any task's provider."""

import io
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from modelkit.consistency import ssim
from tests.e2e.bodies import data_url, photo, stored_picture
from tests.e2e.harness import RunningMesh, ended_task

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def client(device_mesh: RunningMesh) -> Iterator[httpx.Client]:
    """A client of a mesh whose worker has the networks, with a picture in its storage."""
    with device_mesh.http("ultimate", timeout_seconds=60) as opened:
        content = io.BytesIO()
        photo(64).save(content, "PNG")
        answer = opened.post(
            "/api/v1/storage/images/small.png", content=content.getvalue(), headers={"content-type": "image/png"}
        )
        assert answer.status_code == 200, answer.text
        yield opened


def done(client: httpx.Client, task_type: str, provider: str, config: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """Run one task to its end."""
    body = {
        "task_type": task_type,
        "origin_instance": "e2e",
        "provider_type": provider,
        "provider_config": {"provider_type": provider, **config},
        **fields,
    }
    answer = client.post("/api/v1/tasks/", json=body)
    assert answer.status_code == 200, answer.text
    return ended_task(client, answer.json()["id"])


def test_a_picture_is_refined_tile_by_tile_to_the_size_asked_for(
    device_mesh: RunningMesh, client: httpx.Client
) -> None:
    config = {"version": "2", "num_tiles": 2, "save_debug_tiles": True}
    task = done(client, "REFINE", "SARTIQ_ULTIMATE_REFINER", config, base_image_url="small.png", upscale_factor=2.5)
    assert task["status"] == "COMPLETED", task["errors"]
    assert task["active_provider_capabilities"] == ["UPSCALE_FLOAT"]
    shown = task["provider_config"]
    assert (shown["provider_type"], shown["version"], shown["num_tiles"]) == ("SARTIQ_ULTIMATE_REFINER", "2", 2)
    assert (shown["max_retries"], shown["ssim_threshold"], shown["feather_px"]) == (3, 0.7, 32)
    made = stored_picture(client, task["result_image_path"])
    small = photo(64)
    assert made.size == (160, int(small.height * 2.5 + 0.5))
    again = np.asarray(made.resize(small.size, Image.Resampling.BOX))
    assert ssim(again, np.asarray(small)) > 0.9
    folder = task["result_image_path"].removesuffix("image.png")
    kept = {path.removeprefix(folder) for path in device_mesh.objects("ultimate") if path.startswith(folder)}
    assert kept == {"image.png", "debug-tile-1-attempt-1.png", "debug-tile-2-attempt-1.png"}


def test_a_garment_is_fixed(client: httpx.Client) -> None:
    truth = photo(220)
    lost = truth.resize((73, 85), Image.Resampling.BOX).resize(truth.size, Image.Resampling.BICUBIC)
    task = done(
        client,
        "DETAIL_ENHANCER",
        "SARTIQ_ULTIMATE_GARMENT_FIXER",
        {"max_retries": 1},
        base_image=data_url(lost),
        reference_image=data_url(photo(440)),
        detail_label="shirt",
    )
    assert (task["status"], task["fallback_used"]) == ("COMPLETED", False), task
    made = stored_picture(client, task["result_image_path"])
    before, after, was = np.asarray(lost), np.asarray(made), np.asarray(truth)
    suit = (slice(150, 240), slice(30, 140))
    assert ssim(after[suit], was[suit]) > ssim(before[suit], was[suit]) + 0.05
    np.testing.assert_array_equal(before[:60], after[:60])


def test_a_face_is_fixed(client: httpx.Client) -> None:
    soft = photo(110).resize((160, 186), Image.Resampling.BICUBIC)
    config = {"expand_percent": 0.2, "max_retries": 0, "save_debug_images": True}
    task = done(client, "FACE_ENHANCER", "SARTIQ_ULTIMATE_FACE_FIXER", config, input_image=data_url(soft))
    assert (task["status"], task["face_detected"], task["attempts_used"]) == ("COMPLETED", True, 1), task
    assert task["final_ssim_score"] is not None
    made = stored_picture(client, task["result_image_path"])
    changed = (np.asarray(made) != np.asarray(soft)).any(-1)
    assert changed.any()
    assert not changed[100:].any()
    draft = stored_picture(client, task["result_image_path"].replace("image.png", "debug-face-1-attempt-1.png"))
    assert draft.width > draft.height


@pytest.mark.parametrize(
    ("config", "member"), [({"lpips_threshold": 0.2}, "lpips_threshold"), ({"version": "3"}, "version")]
)
def test_what_cannot_work_is_a_422_that_names_the_member(
    client: httpx.Client, config: dict[str, Any], member: str
) -> None:
    body = {
        "task_type": "REFINE",
        "origin_instance": "e2e",
        "base_image_url": "small.png",
        "upscale_factor": 2,
        "provider_type": "SARTIQ_ULTIMATE_REFINER",
        "provider_config": {"provider_type": "SARTIQ_ULTIMATE_REFINER", **config},
    }
    answer = client.post("/api/v1/tasks/", json=body)
    assert answer.status_code == 422, answer.text
    assert [error["loc"][:2] + error["loc"][-1:] for error in answer.json()["detail"]] == [
        ["body", "provider_config", member]
    ]
