"""Photos and the tasks that look at them: one set of findings each, whatever is away and however often it is tried."""

import asyncio
import errno
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from atelier.events.v1 import events_pb2
from atelier.tasks.v1 import enums_pb2, task_pb2
from atelier.tasks.v1.photo_detection_pb2 import PhotoBox, PhotoDetection, PhotoDetectionTaskPublic, PhotoFindings

from meshkit.bus import BusMessage
from meshkit.errors import ErrorKind, MeshError, invalid, not_found, unavailable
from services.monitoring.capture.detection import service
from services.monitoring.capture.detection.domain import FILE_GONE, missed
from services.monitoring.capture.detection.service import DetectionWorker
from services.monitoring.capture.photos.domain import SeenFile
from services.monitoring.capture.postgres.cameras import PostgresCameraStore
from services.monitoring.capture.postgres.detections import PostgresDetectionStore
from services.monitoring.capture.postgres.photos import PostgresPhotoStore
from services.monitoring.capture.watching.files import read_photo
from tests.integration.capture.conftest import StartStudio, Studio, until

# What the watcher takes for a whole picture.
PICTURE = b"\xff\xd8\xffphoto\xff\xd9"
FINDINGS = PhotoFindings(
    width=100,
    height=80,
    people=1,
    presence_confidence=0.9,
    exposure="normal",
    detections=[
        PhotoDetection(object_type="person", confidence=0.9, bbox=PhotoBox(left=1, top=2, width=30, height=40)),
        PhotoDetection(object_type="face", confidence=0.8, bbox=PhotoBox(left=5, top=6, width=7, height=8)),
    ],
)


class Tasks:
    """The tasks service as detection sees it: a task of each identifier, which ends when a test says so."""

    def __init__(self) -> None:
        self.made: dict[UUID, task_pb2.Task] = {}
        self.contents: dict[UUID, bytes] = {}
        self.references: dict[UUID, str] = {}
        self.creates = 0
        self.failure: MeshError | None = None
        self.lost_answers = 0
        self.ends_at_once = False
        self.stumbles: set[UUID] = set()

    async def create(self, photo_id: UUID, content: bytes, reference: str) -> task_pb2.Task:
        if self.failure is not None:
            raise self.failure
        self.creates += 1
        if self.references.setdefault(photo_id, reference) != reference:
            raise MeshError(ErrorKind.CONFLICT, "The key was used for another request")
        if photo_id not in self.made:
            self.made[photo_id] = task_pb2.Task(id=str(photo_id), status=enums_pb2.TASK_STATUS_PENDING)
            self.contents[photo_id] = content
            if self.ends_at_once:
                self.end(photo_id)
        if self.lost_answers:
            self.lost_answers -= 1
            raise unavailable("the answer was lost")
        return self.made[photo_id]

    async def get(self, photo_id: UUID) -> task_pb2.Task:
        if self.failure is not None:
            raise self.failure
        if photo_id in self.stumbles:
            raise MeshError(ErrorKind.INTERNAL, "Internal error")
        if photo_id not in self.made:
            raise not_found("Task", str(photo_id))
        return self.made[photo_id]

    def end(self, photo_id: UUID, status: enums_pb2.TaskStatus.ValueType = enums_pb2.TASK_STATUS_COMPLETED) -> None:
        task = self.made[photo_id]
        task.status = status
        if status == enums_pb2.TASK_STATUS_COMPLETED:
            task.photo_detection.CopyFrom(PhotoDetectionTaskPublic(findings=FINDINGS))
        elif status == enums_pb2.TASK_STATUS_FAILED:
            task.errors.append("The image could not be read.")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def worker_of(
    studio: Studio,
    tasks: Tasks,
    *,
    at_once: int = 4,
    clock: Clock | None = None,
    most_bytes: int = 1000,
    on_missed: Callable[[bytes], None] = lambda _file: None,
) -> DetectionWorker:
    return DetectionWorker(
        PostgresDetectionStore(studio.capture.changes),
        tasks,
        studio.root,
        at_once=at_once,
        most_bytes=most_bytes,
        clock=clock or Clock(),
        on_missed=on_missed,
    )


async def drop(studio: Studio, name: str, content: bytes = b"photo", camera: str = "left") -> Path:
    """Put a file below the root, and write the row that the watcher writes of it."""
    await PostgresCameraStore(studio.capture.changes).add_cameras([camera])
    path = studio.root / camera / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    found = path.stat()
    seen = SeenFile(
        camera, f"{camera}/{name}".encode(), found.st_size, found.st_mtime_ns, hashlib.sha256(content).hexdigest()
    )
    await PostgresPhotoStore(studio.capture.changes).take([seen], {})
    return path


async def photos(studio: Studio) -> dict[str, tuple[str, str | None]]:
    rows = await studio.rows("SELECT path, state, error FROM photos ORDER BY path")
    return {path: (state, error) for path, state, error in rows}


async def test_a_photo_has_one_set_of_detections_and_listeners_hear_of_each(studio: Studio) -> None:
    tasks = Tasks()
    worker = worker_of(studio, tasks)
    async with studio.listening() as client:
        await drop(studio, "a.jpg")
        await worker.run_once()
        assert await photos(studio) == {"left/a.jpg": ("DETECTING", None)}
        [(photo_id, task_id)] = await studio.rows("SELECT id, task_id FROM photos")
        assert photo_id == task_id
        assert tasks.contents == {photo_id: b"photo"}
        tasks.end(photo_id)
        event = events_pb2.TaskStatusEvent(task_id=str(photo_id))
        await worker.notice(BusMessage("atelier.tasks.v1.task.completed", event.SerializeToString(), {}))
        for _ in range(3):
            await worker.run_once()
        async with asyncio.timeout(60):
            heard: list[dict[str, Any]] = []
            while len(heard) < 3:
                told = json.loads(await client.recv())
                # How the camera is may be told before or after.
                heard += [told] if told["type"] != "camera.status_changed" else []
    assert [one["type"] for one in heard] == ["detection.new", "detection.new", "detection.batch"]
    rows = await studio.rows("SELECT id, object_type, confidence, bbox FROM detections ORDER BY id")
    assert [tuple(row[1:]) for row in rows] == [("person", 0.9, [1, 2, 30, 40]), ("face", 0.8, [5, 6, 7, 8])]
    new = heard[0]["data"]
    assert (new["detection_id"], new["camera_id"], new["object_type"]) == (rows[0][0], "left", "person")
    assert new["bbox"] == {"x": 1, "y": 2, "width": 30, "height": 40}
    assert heard[2]["data"]["photo_id"] == str(photo_id)
    assert [one["detection_id"] for one in heard[2]["data"]["detections"]] == [row[0] for row in rows]
    shown = (await studio.http().get(f"/photos/{photo_id}")).json()
    assert (shown["state"], shown["findings"]["people"], shown["findings"]["blurred"]) == ("DETECTED", 1, False)
    assert len(shown["detections"]) == 2


async def test_photos_wait_while_tasks_is_away_and_go_on_when_it_is_back(studio: Studio) -> None:
    tasks = Tasks()
    worker = worker_of(studio, tasks)
    for number in range(3):
        await drop(studio, f"{number}.jpg", f"photo {number}".encode())
    tasks.failure = unavailable("away")
    for _ in range(2):
        assert await worker.run_once() is False
    assert {state for state, _ in (await photos(studio)).values()} == {"WAITING"}
    tasks.failure = None
    await worker.run_once()
    tasks.failure = unavailable("away again")
    await worker.run_once()
    assert {state for state, _ in (await photos(studio)).values()} == {"DETECTING"}
    tasks.failure = None
    for photo_id in tasks.made:
        tasks.end(photo_id)
    # A process that starts anew asks for all that are under way.
    await worker_of(studio, tasks).run_once()
    assert {state for state, _ in (await photos(studio)).values()} == {"DETECTED"}
    assert await studio.rows("SELECT count(*) FROM detections") == [(6,)]


async def test_a_lost_answer_makes_no_second_task_and_two_workers_no_second_set(studio: Studio) -> None:
    tasks = Tasks()
    tasks.lost_answers, tasks.ends_at_once = 2, True
    for number in range(6):
        await drop(studio, f"{number}.jpg", f"photo {number}".encode())
    workers = [worker_of(studio, tasks), worker_of(studio, tasks)]
    for _ in range(6):
        await asyncio.gather(*(worker.run_once() for worker in workers))
    assert {state for state, _ in (await photos(studio)).values()} == {"DETECTED"}
    assert len(tasks.made) == 6
    assert await studio.rows("SELECT count(*), count(DISTINCT photo_id) FROM detections") == [(12, 6)]
    told = await studio.rows("SELECT count(*) FROM detections GROUP BY photo_id HAVING count(*) <> 2")
    assert told == []


async def test_no_more_photos_are_under_way_than_may_be(studio: Studio) -> None:
    tasks, clock = Tasks(), Clock()
    worker = worker_of(studio, tasks, at_once=2, clock=clock)
    for number in range(5):
        await drop(studio, f"{number}.jpg", f"photo {number}".encode())
    for _ in range(3):
        await worker.run_once()
    assert len(tasks.made) == 2
    first, _ = tasks.made
    tasks.end(first)
    await worker.run_once()
    assert len(tasks.made) == 2, "nobody has told that it ended, and it was asked for just now"
    clock.now = 10.0
    await worker.run_once()
    assert len(tasks.made) == 3
    assert [state for state, _ in (await photos(studio)).values()].count("DETECTED") == 1


async def test_what_nobody_can_look_at_is_told_and_the_others_go_on(studio: Studio) -> None:
    tasks = Tasks()
    worker = worker_of(studio, tasks, at_once=8)
    (await drop(studio, "gone.jpg", b"gone")).unlink()
    (await drop(studio, "replaced.jpg", b"first")).write_bytes(b"other")
    await drop(studio, "large.jpg", b"x" * 2000)
    link = await drop(studio, "link.jpg", b"link")
    link.unlink()
    link.symlink_to("/etc/hostname")
    await drop(studio, "linked.jpg", b"linked", camera="moved")
    (studio.root / "moved").rename(studio.root.parent / "elsewhere")
    (studio.root / "moved").symlink_to(studio.root.parent / "elsewhere")
    await drop(studio, "good.jpg", b"good")
    await worker.run_once()
    told = await photos(studio)
    assert told["left/gone.jpg"] == ("FAILED", "The file was gone before it could be looked at.")
    assert told["left/replaced.jpg"] == ("FAILED", "The file had another content before it could be looked at.")
    assert told["left/large.jpg"] == ("FAILED", "The file is too large to be looked at.")
    assert told["left/link.jpg"][0] == "FAILED"
    assert told["moved/linked.jpg"][0] == "FAILED"
    assert told["left/good.jpg"] == ("DETECTING", None)
    assert list(tasks.contents.values()) == [b"good"]


async def test_a_photo_that_is_refused_or_fails_says_why(studio: Studio) -> None:
    tasks = Tasks()
    worker = worker_of(studio, tasks)
    await drop(studio, "text.jpg", b"text")
    tasks.failure = invalid("task.photo_detection.input_image", "is no image that can be read")
    await worker.run_once()
    tasks.failure = None
    ends = {"broken": enums_pb2.TASK_STATUS_FAILED, "cancelled": enums_pb2.TASK_STATUS_CANCELLED}
    for name, status in ends.items():
        await drop(studio, f"{name}.jpg", name.encode())
        await worker.run_once()
        [(photo_id,)] = await studio.rows("SELECT id FROM photos WHERE state = 'DETECTING'")
        tasks.end(photo_id, status)
        await worker_of(studio, tasks).run_once()
    await drop(studio, "forgotten.jpg", b"forgotten")
    await worker.run_once()
    tasks.made.clear()
    await worker_of(studio, tasks).run_once()
    assert await photos(studio) == {
        "left/broken.jpg": ("FAILED", "The image could not be read."),
        "left/cancelled.jpg": ("FAILED", "The task that was to look at it was cancelled."),
        "left/forgotten.jpg": ("FAILED", "The task that was to look at it is there no more."),
        "left/text.jpg": ("FAILED", "is no image that can be read"),
    }


async def test_a_photo_at_which_tasks_stumbles_gives_way_to_the_others(studio: Studio) -> None:
    tasks = Tasks()
    worker = worker_of(studio, tasks)
    await drop(studio, "poison.jpg", b"poison")
    tasks.failure = MeshError(ErrorKind.INTERNAL, "Internal error")
    for _ in range(4):
        await worker.run_once()
        assert await photos(studio) == {"left/poison.jpg": ("WAITING", None)}
    await worker.run_once()
    assert await photos(studio) == {"left/poison.jpg": ("FAILED", "Internal error")}


async def test_a_task_at_which_tasks_stumbles_keeps_no_other_photo_waiting(studio: Studio) -> None:
    tasks, clock = Tasks(), Clock()
    worker = worker_of(studio, tasks, clock=clock)
    await drop(studio, "a.jpg", b"a")
    await drop(studio, "b.jpg", b"b")
    await worker.run_once()
    for photo_id, path in tasks.references.items():
        tasks.end(photo_id)
        if path == "left/a.jpg":
            tasks.stumbles.add(photo_id)
    await drop(studio, "c.jpg", b"c")
    clock.now += 10
    await worker.run_once()
    assert {path: state for path, (state, _) in (await photos(studio)).items()} == {
        "left/a.jpg": "DETECTING",
        "left/b.jpg": "DETECTED",
        "left/c.jpg": "DETECTING",
    }
    tasks.stumbles.clear()
    clock.now += 10
    await worker.run_once()
    assert (await photos(studio))["left/a.jpg"] == ("DETECTED", None)


async def test_photos_wait_while_the_drive_of_the_cameras_is_away(studio: Studio) -> None:
    tasks = Tasks()
    worker = worker_of(studio, tasks)
    await drop(studio, "a.jpg")
    aside = studio.root.with_name("aside")
    studio.root.rename(aside)
    await worker.run_once()
    assert await photos(studio) == {"left/a.jpg": ("WAITING", None)}
    studio.root.mkdir()  # what is left where a drive is not mounted
    await worker.run_once()
    assert await photos(studio) == {"left/a.jpg": ("WAITING", None)}
    studio.root.rmdir()
    aside.rename(studio.root)
    await worker.run_once()
    assert await photos(studio) == {"left/a.jpg": ("DETECTING", None)}


async def test_news_of_other_tasks_wakes_nobody(studio: Studio) -> None:
    worker = worker_of(studio, Tasks())
    for data in (b"\xff\xff", events_pb2.TaskStatusEvent(task_id="x").SerializeToString()):
        await worker.notice(BusMessage("atelier.tasks.v1.task.completed", data, {}))
    assert not worker.loop._wake.is_set()


class Drive:
    """A drive that does not give some of its files."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.broken: set[bytes] = set()
        self.reads = 0
        monkeypatch.setattr(service, "read_photo", self.read)

    def read(self, root: Path, file: bytes, sha256: str, most: int) -> bytes:
        if file in self.broken:
            self.reads += 1
            raise OSError(errno.EIO, "Input/output error")
        return read_photo(root, file, sha256, most)


async def test_a_photo_whose_file_is_not_given_for_a_while_is_looked_at_and_keeps_no_other_waiting(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    drive, tasks, clock = Drive(monkeypatch), Tasks(), Clock()
    worker = worker_of(studio, tasks, at_once=2, clock=clock)
    drive.broken = {b"left/1.jpg", b"left/2.jpg"}
    for name in ("1", "2", "good"):
        await drop(studio, f"{name}.jpg", name.encode())
    while await worker.run_once():
        pass
    waiting = {"left/1.jpg": ("WAITING", None), "left/2.jpg": ("WAITING", None)}
    assert await photos(studio) == {**waiting, "left/good.jpg": ("DETECTING", None)}
    for seconds, reads in ((0.9, 2), (0.2, 4), (1.0, 4), (1.0, 6)):
        clock.now += seconds
        while await worker.run_once():
            pass
        assert drive.reads == reads, "it is read again after 1 s, then after 2 s"
    drive.broken.clear()
    clock.now += 4.0
    tasks.ends_at_once = True
    while await worker.run_once():
        pass
    told = await photos(studio)
    assert (told["left/1.jpg"], told["left/2.jpg"]) == (("DETECTED", None), ("DETECTED", None))


async def test_a_photo_whose_file_is_not_given_for_minutes_is_given_up_and_comes_anew_when_it_is(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    drive, clock = Drive(monkeypatch), Clock()
    worker = worker_of(studio, Tasks(), clock=clock, on_missed=studio.capture.watcher.missed)
    drive.broken = {b"left/a.jpg"}
    await drop(studio, "a.jpg", PICTURE)
    for _ in range(9):
        await worker.run_once()
        assert await photos(studio) == {"left/a.jpg": ("WAITING", None)}
        clock.now += 61.0
    await worker.run_once()
    drive.broken.clear()
    assert await comes_anew(studio) == ["The file cannot be read: Input/output error.", None]
    await worker.run_once()
    assert await studio.rows("SELECT count(*) FROM photos WHERE state = 'DETECTING'") == [(1,)]


@pytest.mark.parametrize("observer", ["native", "polling"])
@pytest.mark.parametrize("content", [PICTURE, PICTURE.replace(b"photo", b"other")])
async def test_a_file_that_was_gone_and_comes_back_is_a_new_photo(
    start_studio: StartStudio, observer: str, content: bytes
) -> None:
    studio = await start_studio(capture_observer=observer, capture_poll_seconds=0.1)
    worker = worker_of(studio, Tasks(), on_missed=studio.capture.watcher.missed)
    path = await drop(studio, "a.jpg", PICTURE)
    await settled(studio)
    times = path.stat()
    aside = path.rename(studio.root.parent / "aside.jpg")
    await worker.run_once()
    assert await photos(studio) == {"left/a.jpg": ("FAILED", FILE_GONE)}
    aside.write_bytes(content)
    # As a drive that was away brings it back: nothing but its content tells that it is another.
    os.utime(aside, ns=(times.st_atime_ns, times.st_mtime_ns))
    aside.rename(path)
    assert await comes_anew(studio) == [FILE_GONE, None]
    await worker.run_once()
    digest = hashlib.sha256(content).hexdigest()
    assert await studio.rows("SELECT sha256 FROM photos WHERE state = 'DETECTING'") == [(digest,)]


async def test_a_file_that_was_missed_is_looked_for_again(studio: Studio) -> None:
    """Where it is back before that is written, and nobody tells of it."""
    store = PostgresDetectionStore(studio.capture.changes)
    await drop(studio, "a.jpg", PICTURE)
    await settled(studio)
    [(photo_id,)] = await studio.rows("SELECT id FROM photos")
    await store.settle(photo_id, missed(FILE_GONE))
    studio.capture.watcher.missed(b"left/a.jpg")
    assert await comes_anew(studio) == [FILE_GONE, None]


async def settled(studio: Studio) -> None:
    """Wait until the watcher has looked at all that is there."""

    async def check() -> bool:
        watcher = studio.capture.watcher
        return bool(watcher._known) and not watcher.pending

    await until(check)


async def comes_anew(studio: Studio) -> list[str | None]:
    """Wait until there are two photos; return why either could not be looked at."""

    async def check() -> list[str | None] | None:
        found = [error for (error,) in await studio.rows("SELECT error FROM photos ORDER BY seen_at")]
        return found if len(found) == 2 else None

    found: list[str | None] = await until(check)
    return found


def rename(path: Path, name: str) -> SeenFile:
    new = path.rename(path.with_name(name))
    found, digest = new.stat(), hashlib.sha256(new.read_bytes()).hexdigest()
    return SeenFile("left", f"left/{name}".encode(), found.st_size, found.st_mtime_ns, digest)


async def renamed(studio: Studio, path: Path, name: str) -> None:
    """Rename a file, and write what the watcher writes of that."""
    seen = rename(path, name)
    await PostgresPhotoStore(studio.capture.changes).take([seen], {seen.file: f"left/{path.name}".encode()})


async def test_a_photo_that_is_renamed_while_it_waits_is_looked_at(studio: Studio) -> None:
    store = PostgresDetectionStore(studio.capture.changes)
    await renamed(studio, await drop(studio, "a.jpg"), "b.jpg")
    [(photo_id,)] = await studio.rows("SELECT id FROM photos")
    assert not await store.settle(photo_id, missed(FILE_GONE), file=b"left/a.jpg")
    assert await photos(studio) == {"left/b.jpg": ("WAITING", None)}
    # Looked for before the watcher has found it under its new name, it comes anew.
    assert await store.settle(photo_id, missed(FILE_GONE), file=b"left/b.jpg")
    await renamed(studio, studio.root / "left" / "b.jpg", "c.jpg")
    assert await photos(studio) == {"left/b.jpg": ("FAILED", FILE_GONE), "left/c.jpg": ("WAITING", None)}


async def test_a_photo_that_is_renamed_after_its_task_was_made_keeps_the_task(studio: Studio) -> None:
    tasks = Tasks()
    tasks.lost_answers, tasks.ends_at_once = 1, True
    worker = worker_of(studio, tasks)
    path = await drop(studio, "a.jpg")
    await worker.run_once()
    await renamed(studio, path, "b.jpg")
    for _ in range(2):
        await worker.run_once()
    assert await photos(studio) == {"left/b.jpg": ("DETECTED", None)}
