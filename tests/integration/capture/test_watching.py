"""Files of every kind of ill manners that land in the folders of cameras."""

import asyncio
import errno
import hashlib
import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from prometheus_client import REGISTRY

from services.monitoring.capture.watching import domain, files, service
from services.monitoring.capture.watching.domain import FileStamp
from services.monitoring.capture.watching.files import hash_file
from tests.heif import heic
from tests.integration.capture.conftest import StartStudio, Studio, until

# Quick, so that tests need not wait for what takes seconds in production.
QUICK: dict[str, Any] = {"capture_settle_seconds": 0.1, "capture_quiet_seconds": 0.5, "capture_scan_seconds": 600.0}
BOTH = pytest.mark.parametrize("observer", ["native", "polling"])


def picture(color: str = "red", kind: str = "JPEG", size: int = 32) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (size, size), color).save(out, kind)
    return out.getvalue()


def below(studio: Studio, place: bytes) -> Path:
    return studio.root / os.fsdecode(place)


async def begin(start: StartStudio, observer: str = "native", **settings: Any) -> Studio:
    quick = QUICK | {"capture_poll_seconds": 0.1} if observer == "polling" else QUICK
    return await start(**(quick | {"capture_observer": observer} | settings))


async def photos(studio: Studio) -> list[tuple[Any, ...]]:
    return await studio.rows("SELECT path, state, error FROM photos ORDER BY seen_at, id")


async def taken(studio: Studio, count: int) -> list[tuple[Any, ...]]:
    """Wait for so many photos, and until nothing waits any more."""

    async def check() -> list[tuple[Any, ...]] | None:
        found = await photos(studio)
        return found if len(found) >= count and not studio.capture.watcher.pending else None

    found: list[tuple[Any, ...]] = await until(check)
    return found


async def looked(studio: Studio) -> None:
    """Have everything looked through, and nothing left to do."""
    watcher = studio.capture.watcher
    watcher.look_again()

    async def check() -> bool:
        return not watcher._look_at_all and not watcher.pending

    await until(check)


@BOTH
async def test_photos_of_every_format_are_taken_and_nothing_else(start_studio: StartStudio, observer: str) -> None:
    studio = await begin(start_studio, observer)
    left = studio.root / "left"
    left.mkdir()
    for name, kind in (("a.JPG", "JPEG"), ("b.png", "PNG"), ("c.webp", "WEBP"), ("d.tiff", "TIFF"), ("f.avif", "AVIF")):
        (left / name).write_bytes(picture(kind=kind))
    (left / "IMG_1.HEIC").write_bytes(heic())
    for name in ("notes.txt", "raw.cr3", ".hidden.jpg", "IMG_1.MOV", "a.jpg.part"):
        (left / name).write_bytes(picture())
    (studio.root / "loose.jpg").write_bytes(picture())
    (left / "day 1" / "set").mkdir(parents=True)
    (left / "day 1" / "set" / "e.jpg").write_bytes(picture("blue"))
    found = await taken(studio, 7)
    assert {path for path, _, _ in found} == {
        f"left/{name}" for name in ("a.JPG", "b.png", "c.webp", "d.tiff", "f.avif", "IMG_1.HEIC", "day 1/set/e.jpg")
    }
    [(sha256,)] = await studio.rows("SELECT sha256 FROM photos WHERE path = 'left/IMG_1.HEIC'")
    assert sha256 == hashlib.sha256(heic()).hexdigest()
    assert {state for _, state, _ in found} == {"WAITING"}
    assert studio.capture.watcher.observer_type == observer


@BOTH
async def test_a_file_that_is_written_slowly_is_taken_once_when_it_is_whole(
    start_studio: StartStudio, observer: str
) -> None:
    studio = await begin(start_studio, observer, capture_quiet_seconds=30.0)
    (studio.root / "left").mkdir()
    content = picture(size=600)
    with (studio.root / "left" / "slow.jpg").open("wb", buffering=0) as file:
        for place in range(0, len(content), len(content) // 6 + 1):
            file.write(content[place : place + len(content) // 6 + 1])
            await asyncio.sleep(0.25)
            if place + len(content) // 6 + 1 < len(content):
                assert await photos(studio) == []
    assert await taken(studio, 1) == [("left/slow.jpg", "WAITING", None)]
    await looked(studio)
    assert len(await photos(studio)) == 1


@BOTH
async def test_a_file_that_stays_unfinished_is_taken_as_it_is_after_a_while(
    start_studio: StartStudio, observer: str
) -> None:
    studio = await begin(start_studio, observer)
    (studio.root / "left").mkdir()
    (studio.root / "left" / "half.jpg").write_bytes(picture(size=600)[:-100])
    (studio.root / "left" / "text.jpg").write_bytes(b"no picture at all")
    (studio.root / "left" / "empty.jpg").touch()
    found = {path: (state, error) for path, state, error in await taken(studio, 3)}
    assert found == {
        "left/half.jpg": ("WAITING", None),
        "left/text.jpg": ("FAILED", "Its content is none of JPEG, PNG, WebP, TIFF, HEIC and AVIF"),
        "left/empty.jpg": ("FAILED", "Its file is empty"),
    }


@BOTH
async def test_a_renamed_file_is_the_same_photo_and_a_copy_is_another(start_studio: StartStudio, observer: str) -> None:
    studio = await begin(start_studio, observer)
    left = studio.root / "left"
    left.mkdir()
    (left / "upload.tmp").write_bytes(picture())
    (left / "upload.tmp").rename(left / "a.jpg")
    [before] = await taken(studio, 1)
    assert before[0] == "left/a.jpg"
    (left / "a.jpg").rename(left / "b.jpg")

    async def moved() -> bool:
        return [path for path, _, _ in await photos(studio)] == ["left/b.jpg"]

    await until(moved)
    shutil.copy2(left / "b.jpg", left / "c.jpg")
    assert [path for path, _, _ in await taken(studio, 2)] == ["left/b.jpg", "left/c.jpg"]


@BOTH
async def test_new_content_of_a_file_is_a_new_photo_and_the_old_content_is_known(
    start_studio: StartStudio, observer: str
) -> None:
    studio = await begin(start_studio, observer)
    file = studio.root / "left" / "a.jpg"
    file.parent.mkdir()
    for count, color in ((1, "red"), (2, "blue")):
        file.write_bytes(picture(color))
        await taken(studio, count)
    file.write_bytes(picture("red"))
    await looked(studio)
    os.utime(file, (1, 1))
    await looked(studio)
    assert [path for path, _, _ in await photos(studio)] == ["left/a.jpg", "left/a.jpg"]
    assert await studio.rows("SELECT count(DISTINCT sha256) FROM photos") == [(2,)]


@BOTH
async def test_what_is_deleted_at_once_leaves_nothing_behind(start_studio: StartStudio, observer: str) -> None:
    studio = await begin(start_studio, observer)
    left = studio.root / "left"
    left.mkdir()
    for number in range(20):
        file = left / f"{number}.jpg"
        file.write_bytes(picture())
        file.unlink()
    (left / "last.jpg").write_bytes(picture("blue"))
    await taken(studio, 1)
    assert ("left/last.jpg", "WAITING", None) in await photos(studio)
    await looked(studio)
    assert studio.capture.watcher.pending == 0


@BOTH
async def test_links_are_refused_wherever_they_lead(start_studio: StartStudio, observer: str, tmp_path: Path) -> None:
    studio = await begin(start_studio, observer)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.jpg").write_bytes(picture())
    left = studio.root / "left"
    left.mkdir()
    (left / "out.jpg").symlink_to(outside / "secret.jpg")
    (left / "folder").symlink_to(outside)
    (studio.root / "right").symlink_to(outside)
    (left / "loop").symlink_to(left)
    os.mkfifo(left / "pipe.jpg")
    (left / "own.jpg").write_bytes(picture("blue"))
    await taken(studio, 1)
    await looked(studio)
    assert [path for path, _, _ in await photos(studio)] == ["left/own.jpg"]
    assert (await studio.http().get("/cameras")).json()["pagination"]["total"] == 1


async def test_a_huge_file_is_told_of_and_not_read(start_studio: StartStudio) -> None:
    studio = await begin(start_studio)
    (studio.root / "left").mkdir()
    with (studio.root / "left" / "huge.jpg").open("wb") as file:
        file.truncate(2 * 1024**3)
    [(path, state, error)] = await taken(studio, 1)
    assert (path, state) == ("left/huge.jpg", "FAILED")
    assert error == "Its file has 2147483648 bytes; 268435456 are the most that are read"
    assert await studio.rows("SELECT sha256 FROM photos") == [("",)]


@pytest.mark.parametrize(
    "settings",
    [
        {"capture_max_photo_bytes": 2000},
        {"max_image_bytes": 2000},
        {"capture_max_photo_bytes": 3000, "max_image_bytes": 2000},
    ],
)
async def test_no_photo_is_read_that_nothing_would_decode(start_studio: StartStudio, settings: dict[str, Any]) -> None:
    studio = await begin(start_studio, **settings)
    (studio.root / "left").mkdir()
    (studio.root / "left" / "just.tif").write_bytes(picture(kind="TIFF", size=16).ljust(2000, b"\0"))
    (studio.root / "left" / "above.tif").write_bytes(picture(kind="TIFF", size=16).ljust(2001, b"\0"))
    assert {path: error for path, _, error in await taken(studio, 2)} == {
        "left/just.tif": None,
        "left/above.tif": "Its file has 2001 bytes; 2000 are the most that are read",
    }


@BOTH
async def test_names_that_are_no_text_are_taken_and_shown(start_studio: StartStudio, observer: str) -> None:
    studio = await begin(start_studio, observer)
    (studio.root / "left").mkdir()
    below(studio, b"left/\xff\xfe.jpg").write_bytes(picture())
    (studio.root / "left" / "Bücher \n1.jpg").write_bytes(picture("blue"))
    below(studio, b"\xff").mkdir()
    found = await taken(studio, 2)
    assert {path for path, _, _ in found} == {r"left/\xff\xfe.jpg", r"left/Bücher \n1.jpg"}
    shown = (await studio.http().get("/photos")).json()["items"]
    assert {one["path"] for one in shown} == {path for path, _, _ in found}
    await looked(studio)
    assert len(await photos(studio)) == 2


@BOTH
async def test_a_restart_misses_nothing_and_takes_nothing_twice(start_studio: StartStudio, observer: str) -> None:
    first = await begin(start_studio, observer)
    left = first.root / "left"
    left.mkdir()
    for number in range(3):
        (left / f"{number}.jpg").write_bytes(picture(size=32 + number))
    await taken(first, 3)
    await first.stack.aclose()
    (left / "3.jpg").write_bytes(picture(size=99))
    (left / "1.jpg").write_bytes(picture("blue", size=99))
    (left / "0.jpg").rename(left / "moved.jpg")
    second = await begin(start_studio, observer)
    assert sorted(path for path, _, _ in await taken(second, 5)) == [
        f"left/{name}" for name in ("1.jpg", "1.jpg", "2.jpg", "3.jpg", "moved.jpg")
    ]


@BOTH
async def test_how_cameras_are_is_told_and_a_folder_that_vanishes_is_survived(
    start_studio: StartStudio, observer: str
) -> None:
    studio = await begin(start_studio, observer, capture_scan_seconds=1.0)
    async with studio.listening() as client:

        async def told() -> tuple[str, str, str, str | None]:
            async with asyncio.timeout(60):
                message = json.loads(await client.recv())
            assert message["type"] == "camera.status_changed"
            data = message["data"]
            return data["camera_id"], data["previous_status"], data["status"], data["message"]

        left = studio.root / "left"
        left.mkdir()
        (left / "a.jpg").write_bytes(picture())
        assert await told() == ("left", "unknown", "online", None)
        shutil.rmtree(left)
        assert await told() == ("left", "online", "error", "Its folder is not there")
        left.mkdir()
        (left / "b.jpg").write_bytes(picture("blue"))
        assert await told() == ("left", "error", "online", None)
        studio.root.rename(studio.root.with_name("away"))
        assert await told() == ("left", "online", "error", "Its folder is not there")
        studio.root.with_name("away").rename(studio.root)
        assert await told() == ("left", "error", "online", None)
    (left / "c.jpg").write_bytes(picture("green"))
    await taken(studio, 3)


async def test_a_camera_goes_offline(start_studio: StartStudio) -> None:
    studio = await begin(start_studio, camera_offline_seconds=0.5)
    (studio.root / "left").mkdir()
    (studio.root / "left" / "a.jpg").write_bytes(picture())
    http = studio.http()

    async def offline() -> dict[str, Any] | None:
        found = (await http.get("/cameras")).json()["items"]
        return found[0] if found and found[0]["status"] == "offline" else None

    camera = await until(offline)

    async def counted() -> bool:
        return REGISTRY.get_sample_value("atelier_capture_cameras", {"status": "offline"}) == 1

    assert await until(counted)
    assert camera["message"] == "No photo for 0.5 s"


async def test_photos_of_a_disabled_camera_wait_on_the_disk(start_studio: StartStudio) -> None:
    studio = await begin(start_studio)
    (studio.root / "left").mkdir()
    (studio.root / "right").mkdir()
    http = studio.http()

    async def there() -> bool:
        return len((await http.get("/cameras")).json()["items"]) == 2

    await until(there)
    await http.post("/cameras/left/disable")
    await looked(studio)
    (studio.root / "left" / "a.jpg").write_bytes(picture())
    (studio.root / "right" / "a.jpg").write_bytes(picture())
    assert [path for path, _, _ in await taken(studio, 1)] == ["right/a.jpg"]
    await looked(studio)
    assert len(await photos(studio)) == 1
    await http.post("/cameras/left/enable")
    assert [path for path, _, _ in await taken(studio, 2)] == ["right/a.jpg", "left/a.jpg"]


async def test_a_full_camera_that_is_disabled_keeps_no_other_from_being_looked_into(
    start_studio: StartStudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "_MOST_FOUND", 2)
    studio = await begin(start_studio, "polling")
    for name in ("left", "right"):
        (studio.root / name).mkdir()
    http = studio.http()

    async def there() -> bool:
        return len((await http.get("/cameras")).json()["items"]) == 2

    await until(there)
    await http.post("/cameras/left/disable")
    await looked(studio)
    for number in range(3):
        (studio.root / "left" / f"{number}.jpg").write_bytes(picture(size=32 + number))
    (studio.root / "right" / "a.jpg").write_bytes(picture())
    assert [path for path, _, _ in await taken(studio, 1)] == ["right/a.jpg"]
    await looked(studio)


@BOTH
async def test_files_that_cannot_be_read_keep_no_others_from_being_taken(
    start_studio: StartStudio, root: Path, observer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "_MOST_FOUND", 2)

    def stumbling(base: Path, file: bytes, stamp: FileStamp) -> str:
        if b"bad" in file:
            raise OSError(errno.EIO, "Input/output error")
        return hash_file(base, file, stamp)

    monkeypatch.setattr(files, "hash_file", stumbling)
    for camera in ("left", "right"):
        (root / camera).mkdir()
    for number in range(6):
        (root / "left" / f"bad-{number}.jpg").write_bytes(picture(size=32 + number))
        (root / "right" / f"{number}.jpg").write_bytes(picture(size=48 + number))
    studio = await begin(start_studio, observer)

    async def all_good() -> bool:
        return {path for path, _, _ in await photos(studio)} == {f"right/{number}.jpg" for number in range(6)}

    await until(all_good)
    assert studio.capture.watcher.pending == 6


@BOTH
async def test_a_file_that_the_drive_does_not_give_for_a_while_is_told_of_and_taken_when_it_does(
    start_studio: StartStudio, observer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(domain, "_LONGEST_PAUSE_SECONDS", 0.2)
    broken = {b"left/a.jpg"}

    def stumbling(root: Path, file: bytes, stamp: FileStamp) -> str:
        if file in broken:
            raise OSError(errno.EIO, "Input/output error")
        return hash_file(root, file, stamp)

    monkeypatch.setattr(files, "hash_file", stumbling)
    studio = await begin(start_studio, observer)
    (studio.root / "left").mkdir()
    (studio.root / "left" / "a.jpg").write_bytes(picture())
    (studio.root / "left" / "b.jpg").write_bytes(picture("blue"))
    http = studio.http()

    async def said() -> str | None:
        found = (await http.get("/cameras")).json()["items"]
        return str([found[0]["status"], found[0]["message"]]) if found and found[0]["last_file_at"] else None

    async def told() -> bool:
        return await said() == "['online', '1 file cannot be read: Input/output error']"

    await until(told)
    assert await photos(studio) == [("left/b.jpg", "WAITING", None)]
    broken.clear()
    assert [path for path, _, _ in await taken(studio, 2)] == ["left/b.jpg", "left/a.jpg"]

    async def untold() -> bool:
        return await said() == "['online', None]"

    await until(untold)
