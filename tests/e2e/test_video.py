"""Clips through the HTTP surface: made, decoded frame by frame, read in parts, and as a step of a workflow."""

import io
from typing import Any

import av
import httpx
import numpy as np
import pytest
from PIL import Image

from models.garments.catalogue import GarmentFacts
from models.garments.draw import draw
from models.motions.ruler import motion_of
from tests.documented import documented
from tests.e2e.bodies import data_url
from tests.e2e.harness import ENDED, RunningMesh, until

pytestmark = pytest.mark.timeout(600)


def garment(side: int = 128) -> Image.Image:
    return Image.fromarray(draw(GarmentFacts("bag", "red"), np.random.default_rng(3), side).picture)


def request(**fields: Any) -> dict[str, Any]:
    return {
        "task_type": "VIDEO_GENERATION",
        "origin_instance": "e2e",
        "prompt": "the camera pans left over the bag",
        "input_image_data": data_url(garment()),
        "duration_seconds": 1,
        "cfg_scale": 1.0,
        **fields,
    }


def ended(client: httpx.Client, task: dict[str, Any]) -> dict[str, Any]:
    def found() -> dict[str, Any] | None:
        now = dict(client.get(f"/api/v1/tasks/{task['id']}").json())
        return now if now["status"] in ENDED else None

    return until(found, "it ends", 120)


def frames_of(content: bytes) -> tuple[Any, list[Any]]:
    with av.open(io.BytesIO(content), "r") as container:
        stream = container.streams.video[0]
        facts = (stream.codec_context.name, stream.codec_context.pix_fmt, float(stream.average_rate or 0))
        return facts, [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]


def test_a_clip_is_made_decoded_and_read_in_parts(device_mesh: RunningMesh) -> None:
    with device_mesh.http("film") as client:
        answer = client.post("/api/v1/tasks/", json=request(config={"fps": 12, "mine": "kept"}))
        assert answer.status_code == 200, answer.text
        task = answer.json()
        # Drawn at the creation and stored: the same request with it makes the same clip.
        seed = task["config"]["seed"]
        assert 0 <= seed < 2**53
        assert task["config"]["mine"] == "kept"
        waiting = client.get(f"/api/v1/monitoring/tasks/{task['id']}/media").json()
        assert (waiting["outputs"], [one["media_type"] for one in waiting["inputs"]]) == ([], ["image"])
        assert (task["duration_seconds"], task["cfg_scale"], task["result_video_path"]) == (1, 1.0, None)
        done = ended(client, task)
        assert (done["status"], done["errors"], done["progress"]) == ("COMPLETED", None, 100)
        path = done["result_video_path"]
        assert path.startswith(f"videos/{task['id']}/")
        assert path.endswith(".mp4")
        whole = client.get(f"/api/v1/storage/images/{path}")
        assert (whole.status_code, whole.headers["content-type"]) == (200, "video/mp4")
        facts, frames = frames_of(whole.content)
        assert facts == ("h264", "yuv420p", 12)
        assert len(frames) == 12
        assert frames[0].shape == (128, 128, 3)
        wrong = np.mean((frames[0].astype(float) - np.asarray(garment(), float)) ** 2)
        assert 10 * np.log10(255**2 / wrong) > 24
        assert motion_of(np.stack([frames[index] for index in (0, 3, 6, 9, 11)])) == "pan left"

        poster = client.get(f"/api/v1/storage/images/{path.rpartition('/')[0]}/poster.jpg")
        assert poster.headers["content-type"] == "image/jpeg"
        with Image.open(io.BytesIO(poster.content)) as image:
            assert image.size == (128, 128)

        public = httpx.get(done["media_url"], headers={"range": "bytes=100-299"}, timeout=60)
        assert (public.status_code, public.headers["content-type"]) == (206, "video/mp4")
        assert public.headers["content-range"] == f"bytes 100-299/{len(whole.content)}"
        assert public.content == whole.content[100:300]
        # A page shows the film and what it was made of in tags, which send no token.
        media = client.get(f"/api/v1/monitoring/tasks/{task['id']}/media").json()
        documented("GET", "/api/v1/monitoring/tasks/{task_id}/media").holds(media)
        assert [one["media_type"] for one in media["inputs"]] == ["image"]
        assert ("video", path) in [(one["media_type"], one["path"]) for one in media["outputs"]]
        film = next(one for one in media["outputs"] if one["media_type"] == "video")
        part = httpx.get(httpx.URL(device_mesh.url).join(film["url"]), headers={"range": "bytes=100-299"})
        assert (part.status_code, part.headers["content-type"]) == (206, "video/mp4")
        assert part.content == whole.content[100:300]
        beyond = client.get(f"/api/v1/storage/images/{path}", headers={"range": f"bytes={len(whole.content)}-"})
        assert beyond.status_code == 416

        again = client.post("/api/v1/tasks/", json=request(config={"fps": 12, "seed": seed})).json()
        repeated = client.get(f"/api/v1/storage/images/{ended(client, again)['result_video_path']}")
        assert repeated.content == whole.content


def test_bad_clips_are_refused_with_the_member(device_mesh: RunningMesh) -> None:
    with device_mesh.http("film-bad") as client:
        for fields, member in (
            ({"input_image_data": None}, "input_image"),
            ({"input_image_url": "a/b.png"}, "input_image"),
            ({"duration_seconds": 61}, "duration_seconds"),
            ({"duration_seconds": 0}, "duration_seconds"),
            ({"cfg_scale": 2.1}, "cfg_scale"),
            ({"prompt": ""}, "prompt"),
            ({"config": {"width": 33}}, "must be even"),
        ):
            answer = client.post("/api/v1/tasks/", json=request(**fields))
            assert answer.status_code == 422, (fields, answer.text)
            assert member in answer.text
        task = client.post("/api/v1/tasks/", json=request(config={"steps": 51})).json()
        done = ended(client, task)
        assert (done["status"], done["error_category"], done["retry_count"]) == ("FAILED", "VALIDATION", 0)
        assert "takes 1 to 50 steps" in done["errors"][0]


def test_a_step_films_what_the_step_before_it_made(device_mesh: RunningMesh) -> None:
    picture = {"prompt": "a red bag", "width": 64, "height": 64, "seed": 1}
    film = {"prompt": "zoom in on the bag", "duration_seconds": 1, "config": {"fps": 8, "seed": 2}}
    definition = {
        "name": "film",
        "origin_instance": "e2e",
        "steps": [
            {"id": "draw", "task_type": "GENERATION", "config": picture},
            {
                "id": "film",
                "task_type": "VIDEO_GENERATION",
                "depends_on": ["draw"],
                "config": film,
                "input_mappings": [
                    {"from_step": "draw", "from_field": "result_image_path", "to_field": "input_image_url"}
                ],
            },
        ],
    }
    with device_mesh.http("film-flow") as client:
        answer = client.post("/api/v1/workflows/", json=definition)
        assert answer.status_code in {200, 201, 202}, answer.text
        workflow = answer.json()

        def over() -> dict[str, Any] | None:
            now = dict(client.get(f"/api/v1/workflows/{workflow['id']}").json())
            return now if now["status"] in ENDED else None

        done = until(over, "the workflow ends", 180)
        assert done["status"] == "COMPLETED", done
        task = client.get(f"/api/v1/tasks/{done['steps'][1]['task_id']}").json()
        content = client.get(f"/api/v1/storage/images/{task['result_video_path']}").content
        _, frames = frames_of(content)
        assert (len(frames), frames[0].shape) == (8, (64, 64, 3))
