"""Cameras, photos and batches over JSON."""

import asyncio
import json
import uuid

from atelier.events.v1 import live_pb2

from services.monitoring.capture.photos.domain import SeenFile
from services.monitoring.capture.postgres.cameras import PostgresCameraStore
from services.monitoring.capture.postgres.photos import PostgresPhotoStore
from tests.integration.capture.conftest import Studio, until


async def seen(studio: Studio, camera: str, name: str, content: int = 1) -> None:
    await PostgresCameraStore(studio.capture.changes).add_cameras([camera])
    (studio.root / camera).mkdir(exist_ok=True)
    file = f"{camera}/{name}".encode()
    await PostgresPhotoStore(studio.capture.changes).take([SeenFile(camera, file, 10, 1, f"{content:064x}")], {})


async def test_cameras_are_listed_shown_and_switched(studio: Studio) -> None:
    http = studio.http()
    await seen(studio, "left", "a.jpg")
    await seen(studio, "right hand", "a.jpg")
    listed = (await http.get("/cameras", params={"limit": 1})).json()
    assert [one["camera_id"] for one in listed["items"]] == ["left"]
    assert listed["pagination"] == {"total": 2, "limit": 1, "offset": 0, "items_count": 1, "has_more": True}
    shown = (await http.get("/cameras/right%20hand")).json()
    assert (shown["camera_id"], shown["enabled"], shown["message"]) == ("right hand", True, None)
    assert shown["last_file_at"] is not None
    assert (await http.post("/cameras/left/disable")).json()["enabled"] is False
    assert (await http.post("/cameras/left/disable")).json()["enabled"] is False
    assert (await http.post("/cameras/left/enable")).json()["enabled"] is True
    missing = await http.get("/cameras/middle")
    assert (missing.status_code, missing.json()["detail"]) == (404, "Camera middle not found")


async def test_a_switch_is_told_once_to_the_tenant_alone(studio: Studio) -> None:
    async with studio.listening() as own, studio.listening("others") as other:
        await seen(studio, "left", "a.jpg")
        async with asyncio.timeout(60):
            assert json.loads(await own.recv())["type"] == "camera.status_changed"
        http = studio.http()
        for what in ("disable", "disable", "enable"):
            await http.post(f"/cameras/left/{what}")
        async with asyncio.timeout(60):
            heard = [json.loads(await own.recv()) for _ in range(2)]
        assert [(one["type"], one["data"]) for one in heard] == [
            ("camera.disabled", {"camera_id": "left"}),
            ("camera.enabled", {"camera_id": "left"}),
        ]
        await other.send('{"type": "ping"}')
        assert await other.recv() == '{"type":"pong"}', "nothing of another tenant comes before it"


async def test_what_is_announced_is_told_if_the_change_is_committed_alone(studio: Studio) -> None:
    async with studio.listening() as client:
        for camera in ("lost", "kept"):
            try:
                async with studio.capture.changes.change() as change:
                    change.announce(live_pb2.CameraEnabledEvent(camera_id=camera))
                    if camera == "lost":
                        raise LookupError
            except LookupError:
                continue
        async with asyncio.timeout(60):
            assert json.loads(await client.recv())["data"] == {"camera_id": "kept"}


async def test_other_tenants_see_nothing_and_readers_change_nothing(studio: Studio) -> None:
    await seen(studio, "left", "a.jpg")
    [(photo_id,)] = await studio.rows("SELECT id::text FROM photos")
    other, reader, support = studio.http("others"), studio.http(scopes=("read",)), studio.http("o", ("support",))
    for path in ("/cameras", "/photos", "/batches"):
        assert (await other.get(path)).json()["items"] == []
    for path in ("/cameras/left", f"/photos/{photo_id}", f"/batches/{uuid.uuid4()}"):
        assert (await other.get(path)).status_code == 404
    assert (await other.post("/cameras/left/disable")).status_code == 404
    assert (await reader.post("/cameras/left/disable")).status_code == 403
    assert (await support.get("/cameras/left")).status_code == 200
    assert (await support.post("/cameras/left/disable")).status_code == 403
    assert await studio.rows("SELECT enabled FROM cameras") == [(True,)]


async def test_photos_are_listed_by_camera_state_and_batch(studio: Studio) -> None:
    http = studio.http()
    for number in range(3):
        await seen(studio, "left", f"{number}.jpg", number)
    await seen(studio, "right", "0.jpg")

    async def gathered() -> bool:
        return not await studio.rows("SELECT id FROM photos WHERE batch_id IS NULL")

    await until(gathered)
    listed = (await http.get("/photos", params={"camera_id": "left"})).json()
    assert [one["path"] for one in listed["items"]] == ["left/2.jpg", "left/1.jpg", "left/0.jpg"]
    assert {one["state"] for one in listed["items"]} == {"WAITING"}
    [batch] = (await http.get("/batches", params={"camera_id": "left", "state": "open"})).json()["items"]
    assert (batch["photo_count"], batch["detection_count"], batch["closed_at"]) == (3, 0, None)
    of_batch = (await http.get("/photos", params={"batch_id": batch["batch_id"]})).json()["items"]
    assert of_batch == listed["items"]
    assert (await http.get(f"/batches/{batch['batch_id']}")).json() == batch
    shown = (await http.get(f"/photos/{of_batch[0]['photo_id']}")).json()
    assert (shown["sha256"], shown["detections"], shown["findings"]) == (f"{2:064x}", [], None)
    assert (await http.get("/photos", params={"state": "FAILED"})).json()["items"] == []
    assert (await http.get("/photos", params={"batch_id": "none"})).status_code == 422


async def test_a_camera_is_removed_once_its_folder_is_gone_and_comes_again_with_it(studio: Studio) -> None:
    http = studio.http()
    await seen(studio, "left", "a.jpg")
    await seen(studio, "right", "a.jpg")
    await http.post("/cameras/left/disable")
    refused = await http.delete("/cameras/left")
    assert (refused.status_code, refused.json()["detail"]) == (
        409,
        "The folder of camera left is there: disable it instead",
    )
    (studio.root / "left").rmdir()

    async def state(camera: str) -> tuple[str, str | None] | None:
        found = (await http.get(f"/cameras/{camera}")).json()
        return (found["status"], found["message"]) if "status" in found else None

    async def in_error() -> bool:
        return await state("left") == ("error", "Its folder is not there")

    await until(in_error)
    for client, status in (
        (studio.http("others"), 404),
        (studio.http(scopes=("read",)), 403),
        (http, 200),
        (http, 404),
    ):
        assert (await client.delete("/cameras/left")).status_code == status
    assert [one["camera_id"] for one in (await http.get("/cameras")).json()["items"]] == ["right"]
    for answer in (await http.get("/cameras/left"), await http.post("/cameras/left/enable")):
        assert answer.status_code == 404
    assert (await http.get("/photos", params={"camera_id": "left"})).json()["pagination"]["total"] == 1
    (studio.root / "left").mkdir()

    async def online() -> bool:
        return await state("left") == ("online", None)

    await until(online)
    assert (await http.get("/cameras/left")).json()["enabled"] is False, "whoever had disabled it is not overruled"
