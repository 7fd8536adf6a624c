"""How long a worker takes from the start of its process until it works: what its own part of a pod's start is.

A worker is killed, a task is created, and the mesh starts the worker again. What a pod takes before that (a node, its
image, its volumes) is the cluster's, and is not measured.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

from bench import stacks

_GARMENT: dict[str, object] = {
    "task_type": "GENERATION",
    "origin_instance": "bench",
    "prompt": "a red dress",
    "width": 512,
    "height": 512,
}
_PATIENCE_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class WorkerStart:
    """Seconds from the start of a worker's process.

    Attributes:
        taken: Until it took its first task; the model loads after that.
        made: Until its first picture was made and stored.
    """

    taken: float
    made: float


def main() -> int:
    """Start a worker several times and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", help="folder of a model in the layout of diffusers; the one that ships by default")
    given = parser.parse_args()
    settings = {"ATELIER_WORKER_TASK_TYPES": "GENERATION", "ATELIER_WORKER_SLOTS": "1"}
    if given.model:
        settings["ATELIER_MODEL"] = given.model
    with tempfile.TemporaryDirectory(prefix="atelier-bench-") as scratch:
        folder = Path(scratch)
        folder.chmod(0o711)
        with stacks.mesh(folder, None, settings, _GARMENT) as mesh:
            _made(mesh)
            starts = [_start(mesh) for _ in range(given.rounds)]
    print("| worker, from its process's start | median, s | slowest, s |\n|---|---|---|")
    for title, seconds in (
        ("until it takes a task", [each.taken for each in starts]),
        ("until its first picture is stored, model loaded in it", [each.made for each in starts]),
    ):
        print(f"| {title} | {statistics.median(seconds):.1f} | {max(seconds):.1f} |")
    return 0


def _start(mesh: stacks.Stack) -> WorkerStart:
    """Kill the worker, and measure the one that the mesh starts in its place."""
    before = _worker(mesh)
    os.kill(before, signal.SIGKILL)
    began = psutil.Process(_worker(mesh, other_than=before)).create_time()
    task = _made(mesh)
    # The session of the one that was killed may have been given it before.
    url = f"{mesh.url}{task['id']}/attempts"
    attempt = _asked(urllib.request.Request(url, headers=mesh.headers))["attempts"][-1]  # noqa: S310 -- loopback
    return WorkerStart(_seconds(attempt["started_at"]) - began, _seconds(task["completed_at"]) - began)


def _worker(mesh: stacks.Stack, other_than: int = 0) -> int:
    """Return the worker's process, once it is another than one that was killed."""
    while True:
        # It ends with an error while a process is away.
        status = subprocess.run(
            [stacks.ATELIER, "status", "--data", mesh.folder, "--json"], check=False, capture_output=True, text=True
        )
        [pid] = [one["pid"] for one in json.loads(status.stdout)["processes"] if one["role"] == "worker"]
        if pid and pid != other_than:
            return int(pid)


def _made(mesh: stacks.Stack) -> dict[str, Any]:
    """Create a task and return it once it has completed.

    Raises:
        RuntimeError: It ended otherwise, or not in time.
    """
    headers = {**mesh.headers, "Content-Type": "application/json"}
    task = _asked(urllib.request.Request(mesh.url, mesh.body.encode(), headers))  # noqa: S310 -- loopback
    until = time.monotonic() + _PATIENCE_SECONDS
    while task["status"] not in ("COMPLETED", "FAILED", "CANCELLED") and time.monotonic() < until:
        time.sleep(0.2)
        task = _asked(urllib.request.Request(f"{mesh.url}{task['id']}", headers=mesh.headers))  # noqa: S310 -- loopback
    if task["status"] != "COMPLETED":
        message = f"The task is {task['status']}: {task.get('error_message')}"
        raise RuntimeError(message)
    return task


def _asked(request: urllib.request.Request) -> dict[str, Any]:
    with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310 -- loopback
        found: dict[str, Any] = json.load(answer)
    return found


def _seconds(moment: str) -> float:
    return datetime.fromisoformat(moment).timestamp()


if __name__ == "__main__":
    sys.exit(main())
