"""Capture on full disks, and twice at a time: no photo is lost or looked at twice, and what does not work is told.

One mesh for all of it, whose parts lie on small disks where this system lets users mount some.
"""

import contextlib
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from websockets.sync.client import ClientConnection, connect

from tests.e2e.harness import RunningMesh, until
from tests.e2e.small_disks import NoSmallDisksError, SmallDisks, filled, small_disks
from tests.e2e.test_capture_detection import photo, rows

pytestmark = pytest.mark.timeout(600)

_BATCH_SECONDS, _IDLE_SECONDS = 6, 2
_MOST_UNTIL_FULL = 120


@pytest.fixture(scope="module")
def disks(servers_folder: Path) -> Iterator[SmallDisks | None]:
    with contextlib.ExitStack() as stack:
        try:
            yield stack.enter_context(small_disks(servers_folder / "capture-faults"))
        except NoSmallDisksError:
            yield None


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cameras")


@pytest.fixture(scope="module")
def mesh(servers_folder: Path, disks: SmallDisks | None, root: Path) -> Iterator[RunningMesh]:
    environment = {
        "ATELIER_TRAINER": "off",
        "ATELIER_CAMERA_ROOT": str(root),
        "ATELIER_CAPTURE_BATCH_SECONDS": str(_BATCH_SECONDS),
        "ATELIER_CAPTURE_IDLE_SECONDS": str(_IDLE_SECONDS),
        "ATELIER_CAPTURE_SUMMARY": "NONE",
        "ATELIER_WORKER_TASK_TYPES": "PHOTO_DETECTION",
        "ATELIER_DEVICE": "cpu",
        "ATELIER_TORCH_THREADS": "1",
        "ATELIER_STEP_DEADLINE_SECONDS": "60",
        "ATELIER_FIRST_STEP_DEADLINE_SECONDS": "120",
    }
    made = RunningMesh(disks.folder if disks else servers_folder / "capture-faults-mesh", environment, disks)
    try:
        made.up()
        yield made
    finally:
        made.down()


@pytest.fixture
def small(mesh: RunningMesh) -> RunningMesh:
    """The mesh, where its disks are small."""
    if mesh.disks is None:
        pytest.skip("this user may mount no small disk here")
    return mesh


class Camera:
    """A camera that has a folder of its own, and photos like no others."""

    def __init__(self, mesh: RunningMesh, root: Path, name: str, first: int) -> None:
        self._mesh = mesh
        self._folder = root / name
        self.name = name
        self._first = first
        self.count = 0

    def shoot(self, count: int = 1) -> None:
        self._folder.mkdir(exist_ok=True)
        for _ in range(count):
            number = self._first + self.count
            (self._folder / f"{number:04d}.jpg").write_bytes(photo(number))
            self.count += 1

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        return rows(self._mesh, query.format(camera=f"camera_id = '{self.name}'"))

    def wait_looked_at(self) -> None:
        until(
            lambda: (
                self.rows("SELECT state, count(*) FROM capture.photos WHERE {camera} GROUP BY state")
                == [("DETECTED", self.count)]
            ),
            "all photos were looked at",
            120,
        )

    def check(self) -> None:
        """Each photo has one task and the detections that its findings tell; each batch is right and one event."""
        self.wait_looked_at()
        until(
            lambda: (
                self.rows("SELECT sum(photo_count) FROM capture.batches WHERE {camera} AND state = 'analysed'")
                == [(self.count,)]
            ),
            "all batches were judged",
        )
        photos = self.rows("SELECT id::text, batch_id, path FROM capture.photos WHERE {camera} ORDER BY seen_at, id")
        assert len({path for _, _, path in photos}) == len(photos) == self.count
        differing = self.rows(
            "SELECT path FROM capture.photos p WHERE {camera} AND jsonb_array_length(findings -> 'detections') <> "
            "(SELECT count(*) FROM capture.detections d WHERE d.photo_id = p.id)"
        )
        assert differing == []
        with self._mesh.http() as client:
            made = Counter(one["id"] for one in self._mesh.tasks(client))
        assert [made[ident] for ident, _, _ in photos] == [1] * self.count
        told = self.rows("SELECT batch_id, (facts ->> 'photos')::int FROM capture.events WHERE {camera}")
        assert sorted(told, key=str) == sorted(Counter(batch for _, batch, _ in photos).items(), key=str)
        self._check_batches()

    def _check_batches(self) -> None:
        when = "extract(epoch FROM seen_at)::float8"
        seen = f"SELECT batch_id, {when} FROM capture.photos WHERE {{camera}} ORDER BY seen_at, id"
        batches: list[list[Any]] = []
        first = last = 0.0
        for batch, at in self.rows(seen):
            if at - first < _BATCH_SECONDS and at - last < _IDLE_SECONDS:
                batches[-1].append(batch)
            else:
                batches.append([batch])
                first = at
            last = at
        assert [len(set(one)) for one in batches] == [1] * len(batches)
        assert len({one[0] for one in batches}) == len(batches)


def health(client: httpx.Client) -> tuple[int, dict[str, Any]]:
    answer = client.get("/health")
    return answer.status_code, dict(answer.json())


def log_of_capture(mesh: RunningMesh) -> str:
    return (mesh.disk("logs") / "capture.log").read_text()


def test_a_full_database_is_told_and_loses_no_photo(small: RunningMesh, root: Path) -> None:
    camera, late = Camera(small, root, "database", 0), Camera(small, root, "late", 300)
    camera.shoot()
    camera.wait_looked_at()
    with small.http() as client:
        with filled(small.disk("postgres")):

            def told() -> bool:
                if camera.count < _MOST_UNTIL_FULL:
                    camera.shoot()
                status, body = health(client)
                named = any(one.startswith("capture: loops/") for one in body["problems"])
                return (status, body["status"], named) == (200, "degraded", True)

            until(told, "capture tells that its work is not done")
            late.shoot()
            assert "database_has_no_room" in log_of_capture(small)
        camera.check()
        late.check()
        until(lambda: health(client)[1]["status"] == "healthy", "all is well again", 90)


def test_a_full_store_is_told_and_loses_no_photo(small: RunningMesh, root: Path) -> None:
    camera = Camera(small, root, "store", 400)
    with small.http() as client:
        with filled(small.disk("s3")):

            def told() -> bool:
                if camera.count < _MOST_UNTIL_FULL:
                    camera.shoot()
                return "capture: loops/detection_worker" in health(client)[1]["problems"]

            until(told, "capture tells that photos wait")
            assert "outage_began" in log_of_capture(small)
        camera.check()
        until(lambda: health(client)[1]["status"] == "healthy", "all is well again", 90)


@pytest.fixture
def second(mesh: RunningMesh, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Another capture beside that of the mesh, with the same settings."""
    address = tmp_path / "address"
    environment = {
        **psutil.Process(mesh.pid("capture")).environ(),
        "ATELIER_LISTEN": "127.0.0.1:0",
        "ATELIER_PORT_FILE": str(address),
    }
    environment.pop("ATELIER_METRICS_PORT", None)
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "services.monitoring.capture"], env=environment, stdout=log, stderr=log
        )
    try:
        until(lambda: address.exists() or process.poll() is not None, "the second capture runs")
        yield process
    finally:
        process.terminate()
        process.wait(60)


def test_two_replicas_do_each_thing_once_although_one_is_killed(
    mesh: RunningMesh, root: Path, second: subprocess.Popen[bytes]
) -> None:
    camera = Camera(mesh, root, "twice", 600)
    heard: Counter[tuple[str, Any]] = Counter()
    with connect(f"ws{mesh.url.removeprefix('http')}/ws/events?token={mesh.token()}") as socket:
        socket.send('{"type": "subscribe", "data": {"events": ["detection.batch", "event.created", "camera.*"]}}')
        socket.recv(timeout=60)
        for number in range(20):
            camera.shoot()
            if number == 9:
                mesh.kill("capture")
            _hear(socket, heard, 0.15)
        camera.check()
        assert second.poll() is None
        photos = camera.rows("SELECT id::text FROM capture.photos WHERE {camera}")
        events = camera.rows("SELECT id FROM capture.events WHERE {camera}")
        expected = {
            ("camera.status_changed", "online"): 1,
            **{("detection.batch", ident): 1 for (ident,) in photos},
            **{("event.created", ident): 1 for (ident,) in events},
        }
        until(lambda: _hear(socket, heard, 0.5) >= len(expected), "all was told")
        _hear(socket, heard, 1)
    assert heard == expected


def _hear(socket: ClientConnection, heard: Counter[tuple[str, Any]], seconds: float) -> int:
    """Take what is told until nothing is for so long; return of how many things there was news in all."""
    with contextlib.suppress(TimeoutError):
        while True:
            message = json.loads(socket.recv(timeout=seconds))
            data = message.get("data") or {}
            if data.get("camera_id") == "twice":
                ident = data.get("status") or data.get("photo_id") or data.get("event_id")
                heard[message["type"], ident] += 1
    return len(heard)
