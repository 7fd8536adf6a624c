"""How much memory capture takes, how fast it takes what is there at its start, and how soon it sees a new file.

Nothing else of the mesh runs: no worker looks at the photos, and summaries are off. Beside it a process stands that has
imported the libraries that every service is made of, and nothing else: what it takes is the floor, and what both map of
them is nobody's own, as in a mesh.
"""

from __future__ import annotations

import argparse
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import psutil
import psycopg

from atelier_cli.embedded.nats import NatsServer
from atelier_cli.embedded.postgres import PostgresServer
from atelier_cli.embedded.process import RunningServer, free_ports

MEGABYTE = 10**6
_LIBRARIES = "grpc.aio, google.protobuf, protovalidate, psycopg, psycopg_pool, pydantic_settings, nats, jwt"
_FLOOR = (
    f"import sys, {_LIBRARIES}, orjson, prometheus_client, meshkit.structlog_alone; print(flush=True); sys.stdin.read()"
)
# The smallest file that begins and ends as a JPEG does.
_JPEG = (b"\xff\xd8\xff\xfe\x00\x06", b"\xff\xd9")


def main() -> int:
    """Measure, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=10_000, help="files that are there at the start")
    parser.add_argument("--new", type=int, default=50, help="files that come afterwards, one after the other")
    given = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-watcher-")))
        folder.chmod(0o711)
        measure(folder, given.files, given.new, stack)
    return 0


def measure(folder: Path, files: int, new: int, stack: ExitStack) -> None:
    """Start capture on servers of its own, and measure it."""
    ports = free_ports(2)
    nats = NatsServer(folder / "nats", ports[0], secrets.token_urlsafe(12), folder / "nats.log")
    postgres = PostgresServer(folder / "postgres", ports[1], secrets.token_urlsafe(12), folder / "postgres.log")
    for server in (nats, postgres):
        running = RunningServer(server)
        running.start()
        stack.callback(running.stop)
    root = folder / "cameras"
    (root / "left").mkdir(parents=True)
    for number in range(files):
        write(root / "left" / f"{number}.jpg", number)
    environment = {
        **os.environ,
        "ATELIER_DATABASE_URL": postgres.dsn(),
        "ATELIER_NATS_URL": nats.url,
        "ATELIER_AUTH_SECRET": secrets.token_urlsafe(32),
        "ATELIER_CAMERA_ROOT": str(root),
        "ATELIER_LISTEN": "127.0.0.1:0",
        "ATELIER_PORT_FILE": str(folder / "address"),
        "ATELIER_CAPTURE_SUMMARY": "NONE",
    }
    floor = stack.enter_context(
        subprocess.Popen([sys.executable, "-c", _FLOOR], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    )
    stack.callback(floor.terminate)
    floor.stdout.readline()  # type: ignore[union-attr] # it is a pipe
    begun = time.monotonic()
    with (folder / "capture.log").open("wb") as log:
        capture = subprocess.Popen(
            [sys.executable, "-m", "services.monitoring.capture"], env=environment, stdout=log, stderr=log
        )
    stack.callback(capture.wait)
    stack.callback(capture.terminate)
    connection = stack.enter_context(psycopg.connect(postgres.dsn(), autocommit=True))
    while not (folder / "address").exists():
        time.sleep(0.01)
    started = time.monotonic()
    show("the libraries alone", floor.pid)
    show("at its start", capture.pid)
    wait_for(connection, files)
    print(f"{files} files taken in {time.monotonic() - started:.1f} s; started in {started - begun:.1f} s")
    delays = []
    for number in range(files, files + new):
        write(root / "left" / f"{number}.jpg", number)
        closed = time.monotonic()
        wait_for(connection, number + 1)
        delays.append(time.monotonic() - closed)
    if delays:
        print(f"file closed to row: p50 {statistics.median(delays) * 1000:.0f} ms, max {max(delays) * 1000:.0f} ms")
    time.sleep(5)
    show(f"at rest, with {files + new} files", capture.pid)


def write(place: Path, number: int) -> None:
    """Write a file whose content is its own."""
    place.write_bytes(_JPEG[0] + number.to_bytes(4, "big") + _JPEG[1])


def wait_for(connection: psycopg.Connection, count: int) -> None:
    """Wait until so many photos are rows."""
    while True:
        [(found,)] = connection.execute("SELECT count(*) FROM capture.photos").fetchall()
        if found >= count:
            return
        time.sleep(0.005)


def show(when: str, pid: int) -> None:
    """Print what a process takes."""
    told = psutil.Process(pid).memory_full_info()
    sizes = ", ".join(f"{name.upper()} {getattr(told, name) / MEGABYTE:.1f} MB" for name in ("rss", "pss", "uss"))
    print(f"{when}: {sizes}")


if __name__ == "__main__":
    sys.exit(main())
