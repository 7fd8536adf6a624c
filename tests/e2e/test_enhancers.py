"""FACE_ENHANCER and DETAIL_ENHANCER through HTTP on a mesh: a real photo, with the networks that ship."""

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

FACE = (74, 22, 151, 99)


@pytest.fixture(scope="module")
def client(device_mesh: RunningMesh) -> Iterator[httpx.Client]:
    """A client of a mesh whose worker has the networks."""
    with device_mesh.http("enhancers", timeout_seconds=60) as opened:
        yield opened


def done(client: httpx.Client, task_type: str, **fields: Any) -> dict[str, Any]:
    """Run one task to its end."""
    answer = client.post("/api/v1/tasks/", json={"task_type": task_type, "origin_instance": "e2e", **fields})
    assert answer.status_code == 200, answer.text
    created = answer.json()
    return ended_task(client, created["id"])


def test_a_soft_face_is_restored_and_the_rest_of_the_photo_is_left_alone(client: httpx.Client) -> None:
    truth = photo(220)
    soft = truth.resize((110, 128), Image.Resampling.BOX).resize(truth.size, Image.Resampling.BICUBIC)
    task = done(client, "FACE_ENHANCER", input_image=data_url(soft), config={"save_debug_images": True})
    assert task["status"] == "COMPLETED", task
    assert (task["face_detected"], task["attempts_used"], task["fallback_used"]) == (True, 1, False)
    assert 0.7 <= task["final_ssim_score"] < 1
    assert (task["final_lpips_score"], task["final_dists_score"]) == (None, None)
    assert task["result_image_path"].startswith(f"faces/{task['id']}/")
    made = stored_picture(client, task["result_image_path"])
    assert made.size == truth.size
    before, after, was = (np.asarray(each.crop(FACE)) for each in (soft, made, truth))
    assert ssim(after, was) > ssim(before, was)
    outside = np.ones((truth.height, truth.width), bool)
    outside[FACE[1] : FACE[3], FACE[0] : FACE[2]] = False
    np.testing.assert_array_equal(np.asarray(made)[outside], np.asarray(soft)[outside])
    draft = stored_picture(client, task["result_image_path"].replace("image.png", "debug-face-1-attempt-1.png"))
    assert draft.width == 2 * draft.height


def test_a_picture_without_a_face_is_its_own_result(client: httpx.Client) -> None:
    plain = Image.new("RGBA", (40, 30), (200, 60, 70, 120))
    task = done(client, "FACE_ENHANCER", input_image=data_url(plain))
    assert (task["status"], task["face_detected"], task["attempts_used"]) == ("COMPLETED", False, 0)
    assert task["final_ssim_score"] is None
    assert stored_picture(client, task["result_image_path"]).tobytes() == plain.tobytes()


def test_what_cannot_work_is_a_422_that_names_the_member(client: httpx.Client) -> None:
    for config, member in (({"lpips_threshold": 0.1}, "lpips_threshold"), ({"max_retries": 99}, "max_retries")):
        body = {"task_type": "FACE_ENHANCER", "origin_instance": "e2e", "input_image": data_url(photo(96))}
        answer = client.post("/api/v1/tasks/", json={**body, "config": config})
        assert answer.status_code == 422
        assert [one["loc"] for one in answer.json()["detail"]] == [["body", "config", member]]


def test_the_detail_of_a_worn_suit_comes_back_from_another_view_of_it(client: httpx.Client) -> None:
    truth = photo(220)
    lost = truth.resize((73, 85), Image.Resampling.BOX).resize(truth.size, Image.Resampling.BICUBIC)
    darker = Image.fromarray((np.asarray(photo(440)) * 0.85).astype(np.uint8))
    view = darker.rotate(4, Image.Resampling.BICUBIC, fillcolor=(120, 120, 120))
    task = done(
        client, "DETAIL_ENHANCER", base_image=data_url(lost), reference_image=data_url(view), detail_label="shirt"
    )
    assert task["status"] == "COMPLETED", task
    assert (task["detail_label"], task["fallback_used"]) == ("shirt", False)
    made = stored_picture(client, task["result_image_path"])
    assert made.size == truth.size
    before, after, was = np.asarray(lost), np.asarray(made), np.asarray(truth)
    np.testing.assert_array_equal(before[:60], after[:60])  # the face is no part of the suit
    suit = (slice(150, 240), slice(30, 140))
    assert ssim(after[suit], was[suit]) > ssim(before[suit], was[suit]) + 0.05

    def detail(pixels: np.ndarray) -> float:
        return float(np.abs(np.diff(pixels[suit].astype(float), axis=1)).mean())

    # The reference is darker than the photo, and so is its detail.
    assert detail(before) + 0.5 * (detail(was) - detail(before)) < detail(after) < 1.1 * detail(was)
    assert np.abs(after[suit].astype(float).mean((0, 1)) - before[suit].astype(float).mean((0, 1))).max() < 4
