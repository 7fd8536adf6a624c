"""Photos that land while each part is killed in turn: each has one set of detections, one task, one batch and event."""

import io
import itertools
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

from tests.e2e.bodies import stored_picture
from tests.e2e.conftest import StartMesh
from tests.e2e.harness import RunningMesh, until

CAMERAS = ("left", "middle", "right")
KILLED = ("capture", "tasks", "worker", "nats", "postgres")
BATCH_SECONDS, IDLE_SECONDS = 6, 2
_PEOPLE = Path(__file__).parents[1] / "unit" / "modelkit" / "data" / "people"
_EXAMPLE = Path(__file__).parents[2] / "examples" / "capture" / "packshot.yaml"
_NAMES = ("astronaut", "obama", "coffee", "grace-hopper", "biden", "chelsea")


def photo(number: int) -> bytes:
    """A photo like no other."""
    with Image.open(_PEOPLE / f"{_NAMES[number % len(_NAMES)]}.jpg") as opened:
        image = opened.convert("RGB")
    image.thumbnail((256, 256))
    ImageDraw.Draw(image).rectangle((0, 0, 15, 15), fill=(number % 256, number // 256, 128))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=90)
    return out.getvalue()


def drop(root: Path, number: int) -> None:
    camera = root / CAMERAS[number % len(CAMERAS)]
    camera.mkdir(exist_ok=True)
    (camera / f"{number:04d}.jpg").write_bytes(photo(number))


def rows(mesh: RunningMesh, query: str) -> list[tuple[Any, ...]]:
    with mesh.database() as connection:
        return connection.execute(query).fetchall()


def all_looked_at(mesh: RunningMesh, count: int) -> bool:
    try:
        found = dict(rows(mesh, "SELECT state, count(*) FROM capture.photos GROUP BY state"))
    except Exception:  # PostgreSQL is killed meanwhile
        return False
    return found == {"DETECTED": count}


def check_once(mesh: RunningMesh, count: int) -> None:
    """Each photo has the detections that its findings tell, and one task."""
    assert rows(mesh, "SELECT count(*), count(DISTINCT sha256) FROM capture.photos") == [(count, count)]
    differing = rows(
        mesh,
        "SELECT p.path FROM capture.photos p LEFT JOIN capture.detections d ON d.photo_id = p.id GROUP BY p.id "
        "HAVING count(d.id) <> jsonb_array_length(p.findings -> 'detections')",
    )
    assert differing == []
    with mesh.http() as client:
        made = [task for task in mesh.tasks(client) if task["task_type"] == "PHOTO_DETECTION"]
        shown = client.get("/api/capture/photos", params={"state": "DETECTED", "limit": 1}).json()
    assert len({task["id"] for task in made}) == len(made) == count
    assert {task["status"] for task in made} == {"COMPLETED"}
    assert shown["pagination"]["total"] == count
    seen = dict(rows(mesh, "SELECT path, (findings ->> 'people')::int FROM capture.photos"))
    assert {count for path, count in seen.items() if int(Path(path).stem) % len(_NAMES) == 1} == {1}
    assert {count for path, count in seen.items() if int(Path(path).stem) % len(_NAMES) == 2} == {0}


def all_judged(mesh: RunningMesh, count: int) -> bool:
    try:
        [(judged,)] = rows(mesh, "SELECT coalesce(sum(photo_count), 0) FROM capture.batches WHERE state = 'analysed'")
    except Exception:  # PostgreSQL is killed meanwhile
        return False
    return bool(judged == count)


def check_batches(mesh: RunningMesh, count: int) -> None:
    """The photos of a batch are those of the rule as it is told to people, and each batch has one event."""
    seen = "SELECT camera_id, extract(epoch FROM seen_at), batch_id FROM capture.photos ORDER BY camera_id, seen_at, id"
    batches: list[list[Any]] = []
    first = last = 0.0
    camera = ""
    for of, at, batch in rows(mesh, seen):
        if of == camera and at - first < BATCH_SECONDS and at - last < IDLE_SECONDS:
            batches[-1].append(batch)
        else:
            batches.append([batch])
            camera, first = of, at
        last = at
    assert sum(map(len, batches)) == count
    assert all(len(set(one)) == 1 for one in batches)
    assert len({one[0] for one in batches}) == len(batches) >= len(CAMERAS)
    told = rows(mesh, "SELECT batch_id, (facts ->> 'photos')::int FROM capture.events")
    assert sorted(told, key=str) == sorted(((one[0], len(one)) for one in batches), key=str)


@pytest.mark.parametrize(
    "count",
    [
        pytest.param(20, marks=pytest.mark.timeout(600)),
        pytest.param(300, marks=(pytest.mark.long, pytest.mark.timeout(1800))),
    ],
)
def test_each_photo_has_one_set_of_detections_and_one_event_while_all_parts_are_killed(
    start_mesh: StartMesh, tmp_path: Path, count: int
) -> None:
    root = tmp_path / "cameras"
    root.mkdir()
    mesh = start_mesh(
        ATELIER_CAMERA_ROOT=str(root),
        ATELIER_CAPTURE_BATCH_SECONDS=str(BATCH_SECONDS),
        ATELIER_CAPTURE_IDLE_SECONDS=str(IDLE_SECONDS),
        ATELIER_CAPTURE_SUMMARY="NONE",
        ATELIER_WORKER_TASK_TYPES="PHOTO_DETECTION",
        ATELIER_DEVICE="cpu",
        ATELIER_TORCH_THREADS="1",
        ATELIER_STEP_DEADLINE_SECONDS="60",
        ATELIER_FIRST_STEP_DEADLINE_SECONDS="120",
    )
    victims = itertools.cycle(KILLED)
    for number in range(count):
        drop(root, number)
        time.sleep((0.0, 0.3, 0.0, 0.1)[number % 4])
        if number % max(4, count // 15) == 3:
            mesh.kill(next(victims))
    until(lambda: all_looked_at(mesh, count), "all photos were looked at", 300 + 3 * count, 0.5)
    check_once(mesh, count)
    until(lambda: all_judged(mesh, count), "all batches were judged", 60 + count, 0.5)
    check_batches(mesh, count)
    mesh.down()


@pytest.mark.long
@pytest.mark.timeout(600)
def test_the_hot_folder_makes_pictures_of_a_photo_once(start_mesh: StartMesh, tmp_path: Path) -> None:
    root = tmp_path / "cameras"
    root.mkdir()
    mesh = start_mesh(
        ATELIER_CAMERA_ROOT=str(root),
        ATELIER_CAPTURE_WORKFLOW=str(_EXAMPLE),
        ATELIER_WORKER_TASK_TYPES="PHOTO_DETECTION,BACKGROUND_REMOVE,BACKGROUND_FIX,REFINE",
        ATELIER_WORKER_SLOTS="1",
        ATELIER_DEVICE="cpu",
        ATELIER_TORCH_THREADS="1",
        ATELIER_STEP_DEADLINE_SECONDS="120",
        ATELIER_FIRST_STEP_DEADLINE_SECONDS="300",
    )
    drop(root, 1)
    with mesh.http() as client:

        def run() -> dict[str, Any] | None:
            items = client.get("/api/capture/photos").json()["items"]
            shown = [client.get(f"/api/capture/photos/{one['photo_id']}").json()["run"] for one in items]
            return next((one for one in shown if one and one["state"] in {"COMPLETED", "FAILED"}), None)

        ended = until(run, "the workflow has ended", 400, 0.5)
        assert (ended["state"], ended["error"]) == ("COMPLETED", None)
        cut, studio, refined = (stored_picture(client, path) for path in ended["result_paths"])
        assert cut.getchannel("A").getextrema() == (0, 255)
        assert (studio.size, refined.size) == (cut.size, (2 * cut.width, 2 * cut.height))
        assert len(client.get("/api/v1/workflows/").json()["workflows"]) == 1
    mesh.down()
