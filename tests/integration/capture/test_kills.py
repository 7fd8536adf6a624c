"""Capture as a process that is killed, on servers that go away: no photo is missed, and none is taken twice."""

import io
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from PIL import Image

from atelier_cli.embedded.postgres import PostgresServer
from atelier_cli.embedded.process import RunningServer, free_ports
from tests.conftest import NatsControl
from tests.integration.capture.conftest import SECRET

CAMERAS = ("left", "middle", "right")
WINDOW, IDLE = 4, 1


class CaptureProcess:
    """Capture by itself, as `atelier up` runs it."""

    def __init__(self, folder: Path, dsn: str, nats_url: str) -> None:
        self.root = folder / "cameras"
        self.root.mkdir()
        self._log = folder / "capture.log"
        self._address = folder / "address"
        self._environment = {
            **os.environ,
            "ATELIER_DATABASE_URL": dsn,
            "ATELIER_NATS_URL": nats_url,
            "ATELIER_AUTH_SECRET": SECRET,
            "ATELIER_CAMERA_ROOT": str(self.root),
            "ATELIER_LISTEN": "127.0.0.1:0",
            "ATELIER_PORT_FILE": str(self._address),
            "ATELIER_CAPTURE_SETTLE_SECONDS": "0.1",
            "ATELIER_CAPTURE_BATCH_SECONDS": str(WINDOW),
            "ATELIER_CAPTURE_IDLE_SECONDS": str(IDLE),
            "ATELIER_CAPTURE_SUMMARY": "NONE",
        }
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> str:
        return self._log.read_text()

    def start(self) -> None:
        self._address.unlink(missing_ok=True)
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "services.monitoring.capture"], env=self._environment, stdout=log, stderr=log
            )
        until(self._address.exists)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()


def until(check: Callable[[], Any], seconds: float = 60.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := check()):
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.05)
    return found


def rest() -> None:
    """Let every camera be idle: the next photo of each is of another batch than those that were seen."""
    time.sleep(1.5 * IDLE)


def batches_by_rule(seen: Sequence[tuple[Any, datetime]]) -> list[list[tuple[Any, datetime]]]:
    """Put the photos of a camera together as people are told that it is done."""
    expected: list[list[tuple[Any, datetime]]] = []
    for batch, at in seen:
        last = expected[-1] if expected else []
        if last and at - last[0][1] < timedelta(seconds=WINDOW) and at - last[-1][1] < timedelta(seconds=IDLE):
            last.append((batch, at))
        else:
            expected.append([(batch, at)])
    return expected


@pytest.fixture
def postgres(servers_folder: Path) -> Iterator[tuple[RunningServer, str]]:
    """A PostgreSQL of the test's own."""
    folder = servers_folder / f"capture-{secrets.token_hex(4)}"
    server = PostgresServer(
        folder, free_ports(1)[0], secrets.token_urlsafe(12), folder.with_suffix(".log"), durable=False
    )
    running = RunningServer(server)
    running.start()
    yield running, server.dsn()
    running.stop()


@pytest.fixture
def process(postgres: tuple[RunningServer, str], nats_server: NatsControl, tmp_path: Path) -> Iterator[CaptureProcess]:
    capture = CaptureProcess(tmp_path, postgres[1], nats_server.url)
    yield capture
    capture.kill()


def test_every_photo_is_one_row_in_one_right_batch_whatever_is_killed(
    process: CaptureProcess, postgres: tuple[RunningServer, str], nats_server: NatsControl
) -> None:
    server, dsn = postgres

    def rows(query: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(dsn, options="-c search_path=capture") as conn:
            return conn.execute(query).fetchall()

    process.start()
    trouble: dict[int, tuple[Callable[[], object], ...]] = {
        12: (process.kill,),
        20: (rest,),
        24: (process.start, nats_server.kill),
        36: (server.stop,),
        44: (server.start, nats_server.start),
        50: (process.kill, process.start),
        55: (lambda: until(lambda: rows("SELECT count(*) FROM photos") == [(55,)]), rest),
    }
    written = []
    for number in range(60):
        for step in trouble.get(number, ()):
            step()
        out = io.BytesIO()
        Image.new("RGB", (16, 16), (number, number * 3, 0)).save(out, "JPEG")
        place = process.root / CAMERAS[number % 3] / f"{number}.jpg"
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(out.getvalue())
        written.append(str(place.relative_to(process.root)))
        time.sleep(0.05)

    def settled() -> bool:
        found = rows("SELECT count(*), count(batch_id) FROM photos")
        is_open = rows("SELECT id FROM batches WHERE state = 'open'")
        return found == [(len(written), len(written))] and not is_open

    until(settled)
    assert sorted(path for (path,) in rows("SELECT path FROM photos")) == sorted(written)
    told = rows(
        "SELECT b.id, b.photo_count, count(p.id) FROM batches b JOIN photos p ON p.batch_id = b.id GROUP BY b.id"
    )
    assert [one for one in told if one[1] != one[2]] == []
    for camera in CAMERAS:
        seen = rows(f"SELECT batch_id, seen_at FROM photos WHERE camera_id = '{camera}' ORDER BY seen_at, id")
        expected = batches_by_rule(seen)
        assert [{batch for batch, _ in one} for one in expected] == [{one[0][0]} for one in expected]
        assert len({one[0][0] for one in expected}) == len(expected) > 1


@pytest.mark.long
def test_ten_thousand_files_that_are_there_at_the_start_are_taken_once(
    process: CaptureProcess, postgres: tuple[RunningServer, str]
) -> None:
    (process.root / "left").mkdir()
    out = io.BytesIO()
    Image.new("RGB", (16, 16)).save(out, "JPEG")
    for number in range(10_000):
        # A comment of its own makes each content another.
        body = out.getvalue()[:-2] + b"\xff\xfe\x00\x06" + number.to_bytes(4, "big") + b"\xff\xd9"
        (process.root / "left" / f"{number}.jpg").write_bytes(body)
    process.start()

    def count() -> int:
        with psycopg.connect(postgres[1], options="-c search_path=capture") as conn:
            [(found,)] = conn.execute("SELECT count(*) FROM photos").fetchall()
            return int(found)

    until(lambda: count() == 10_000, 150)
    process.kill()
    process.start()
    (process.root / "left" / "last.jpg").write_bytes(out.getvalue())
    until(lambda: count() == 10_001)
