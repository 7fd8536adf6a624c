"""Large images in JSON, through gateway, object store and tasks service: one task, and nothing left over."""

import base64
import concurrent.futures
import io
import random
import secrets
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.e2e.harness import RunningMesh


@pytest.fixture(scope="module")
def picture() -> str:
    """An image that is large enough to be staged."""
    out = io.BytesIO()
    Image.frombytes("RGB", (400, 400), random.Random(2).randbytes(400 * 400 * 3)).save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()


def adjust(picture: str, **fields: Any) -> dict[str, Any]:
    size = {"target_width": 64, "target_height": 64}
    return {"task_type": "IMAGE_ADJUSTER", "origin_instance": "e2e", "input_image": picture, **size, **fields}


def test_repeated_creates_at_once_make_one_task_and_leave_no_upload(mesh: RunningMesh, picture: str) -> None:
    key = secrets.token_hex(8)

    def create(_: int) -> httpx.Response:
        with mesh.http("uploads") as client:
            return client.post("/api/v1/tasks/", json=adjust(picture), headers={"idempotency-key": key}, timeout=60)

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(create, range(8)))
    assert {one.status_code for one in answers} == {200}, [one.text for one in answers if one.status_code != 200]
    assert len({one.json()["id"] for one in answers}) == 1
    assert sum("idempotent-replayed" in one.headers for one in answers) == 7
    assert not [path for path in mesh.objects("uploads") if path.startswith("staging/")]


def test_a_result_is_fetched_by_its_address_without_a_token(mesh: RunningMesh) -> None:
    with mesh.http("media") as client:
        task = mesh.create(client, secrets.token_hex(8), result_bytes=1000)
        assert task["media_url"] is None
        [done] = mesh.wait_ended(client, 1, 60)
        answer = httpx.get(done["media_url"], timeout=60)
        assert (answer.status_code, len(answer.content)) == (200, 1000)
        stored = client.get(f"/api/v1/storage/images/{done['result_path']}")
        assert stored.content == answer.content
        with client.stream("GET", f"/api/v1/tasks/{task['id']}/events") as events:
            assert any('"media_url":"http' in line for line in events.iter_lines())


def test_a_refused_create_leaves_no_upload(mesh: RunningMesh, picture: str) -> None:
    with mesh.http("refused") as client:
        for headers in ({}, {"idempotency-key": secrets.token_hex(8)}):
            body = {"task_type": "GENERATION", "origin_instance": "e2e", "prompt": "x", "reference_image_data": picture}
            body["subject_model_path"] = "none/of/that/name.safetensors"
            answer = client.post("/api/v1/tasks/", json=body, headers=headers, timeout=60)
            assert answer.status_code == 422
            assert "LoRA" in answer.text
    assert mesh.objects("refused") == set()
