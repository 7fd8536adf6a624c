"""Photos as phones and studios write them, HEIC and large TIFF, from the watched folder to what was found on them."""

import hashlib
import io
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.bodies import stored_picture
from tests.e2e.conftest import StartMesh
from tests.e2e.harness import RunningMesh, until
from tests.heif import heic, original

pytestmark = pytest.mark.timeout(600)

_WORKFLOW = """
name: Cut out
steps:
  - id: cutout
    task_type: BACKGROUND_REMOVE
    config: {input_image_paths: ["@photo"]}
"""
_PIXELS = (6000, 4000)


def started(start_mesh: StartMesh, root: Path, **settings: str) -> RunningMesh:
    (root / "studio").mkdir(parents=True)
    return start_mesh(
        ATELIER_CAMERA_ROOT=str(root),
        ATELIER_CAPTURE_SUMMARY="NONE",
        ATELIER_DEVICE="cpu",
        ATELIER_TORCH_THREADS="1",
        ATELIER_STEP_DEADLINE_SECONDS="120",
        ATELIER_FIRST_STEP_DEADLINE_SECONDS="300",
        **settings,
    )


def photos(client: httpx.Client) -> dict[str, dict[str, Any]]:
    """Photos by their names, once all of them were looked at or given up."""

    def ended() -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = client.get("/api/capture/photos").json()["items"]
        return items if all(one["state"] in {"DETECTED", "FAILED"} for one in items) else []

    found = until(ended, "all photos were looked at", 300, 0.5)
    shown = [client.get(f"/api/capture/photos/{one['photo_id']}").json() for one in found]
    return {Path(one["path"]).name: one for one in shown}


def test_a_photo_of_a_phone_is_looked_at_and_runs_its_workflow(start_mesh: StartMesh, tmp_path: Path) -> None:
    (tmp_path / "cut.yaml").write_text(_WORKFLOW, encoding="utf-8")
    root = tmp_path / "cameras"
    mesh = started(
        start_mesh,
        root,
        ATELIER_CAPTURE_WORKFLOW=str(tmp_path / "cut.yaml"),
        ATELIER_WORKER_TASK_TYPES="PHOTO_DETECTION,BACKGROUND_REMOVE",
    )
    (root / "studio" / "IMG_0001.HEIC").write_bytes(heic("turned"))
    (root / "studio" / "IMG_0001.MOV").write_bytes(b"no photo")
    with mesh.http() as client:
        # A gateway that has looked for capture before it served looks again a second later.
        until(lambda: client.get("/api/capture/photos").json().get("items"), "the photo was seen", 60, 0.5)
        [photo] = photos(client).values()
        assert (photo["state"], photo["sha256"]) == ("DETECTED", hashlib.sha256(heic("turned")).hexdigest())
        assert (photo["findings"]["width"], photo["findings"]["height"]) == original().size
        assert photo["findings"]["people"] == 1
        boxes = [one["bbox"] for one in photo["detections"] if one["object_type"] == "face"]
        assert [box["y"] + box["height"] < 128 for box in boxes] == [True], "she is upright: her head is above"

        def run() -> dict[str, Any] | None:
            shown: dict[str, Any] = client.get(f"/api/capture/photos/{photo['photo_id']}").json()["run"]
            return shown if shown["state"] in {"COMPLETED", "FAILED"} else None

        ended = until(run, "the workflow has ended", 300, 0.5)
        assert (ended["state"], ended["error"]) == ("COMPLETED", None)
        [cut] = (stored_picture(client, path) for path in ended["result_paths"])
        assert cut.size == original().size
    mesh.down()


@pytest.mark.long
def test_a_large_tiff_is_looked_at_and_one_above_the_bound_is_told_by_name(
    start_mesh: StartMesh, tmp_path: Path
) -> None:
    out = io.BytesIO()
    original().resize(_PIXELS).save(out, "TIFF")
    most = out.tell() + 1000
    assert most > 72_000_000
    root = tmp_path / "cameras"
    mesh = started(start_mesh, root, ATELIER_MAX_IMAGE_BYTES=str(most), ATELIER_WORKER_TASK_TYPES="PHOTO_DETECTION")
    (root / "studio" / "above.tif").write_bytes(out.getvalue() + bytes(1001))
    (root / "studio" / "just.tif").write_bytes(out.getvalue() + bytes(1000))
    with mesh.http() as client:
        until(lambda: len(client.get("/api/capture/photos").json().get("items", [])) == 2, "both were seen", 120, 0.5)
        found = photos(client)
        assert found["above.tif"]["error"] == f"Its file has {most + 1} bytes; {most} are the most that are read"
        assert (found["just.tif"]["state"], found["just.tif"].get("error")) == ("DETECTED", None)
        assert (found["just.tif"]["findings"]["width"], found["just.tif"]["findings"]["people"]) == (_PIXELS[0], 1)
        assert len(mesh.tasks(client)) == 1, "of what is above the bound nothing is stored"
    mesh.down()
