"""A disaster drill: back a mesh up under load, lose all of it, restore it on fresh servers, and compare.

`make drill` runs it and prints what it found and how long each part took; `test_backup.py` runs the same.
"""

import argparse
import contextlib
import hashlib
import io
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
from minio import Minio
from PIL import Image

from tests.e2e.callers import workflow
from tests.e2e.harness import ENDED, NOOP_ENVIRONMENT, MeshView, RunningMesh, post_until_answered, story_fault, until

TENANTS = ("drill-1", "drill-2")
IMAGE = "kept.png"
_WORK = {"steps": 2, "step_ms": 20, "result_bytes": 256}


@dataclass
class Acknowledged:
    """What one tenant was told before the backup began.

    Attributes:
        tasks: Every task that was accepted, as it was last read.
        workflows: The same of workflows.
        objects: SHA-256 of what it stored and of each result, by its path.
    """

    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)
    workflows: dict[str, dict[str, Any]] = field(default_factory=dict)
    objects: dict[str, str] = field(default_factory=dict)


@dataclass
class Found:
    """What the restored mesh has of it.

    Attributes:
        lost: Rows and objects that are missing.
        changed: Those that had ended and read otherwise, objects of other content, work that did not end right.
        unknown: Tasks that no caller was ever told of.
    """

    lost: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Whether everything is there."""
        return not (self.lost or self.changed or self.unknown)


def picture() -> bytes:
    """A small picture that a tenant stores by itself."""
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), (20, 130, 60)).save(buffer, "PNG")
    return buffer.getvalue()


def store(client: httpx.Client, path: str) -> None:
    """Store the picture for a tenant."""
    answer = client.post(f"/api/v1/storage/images/{path}", content=picture(), headers={"content-type": "image/png"})
    assert answer.status_code == 200, answer.text


class Load:
    """Creates tasks and workflows of all tenants until it is told to stop, and notes what was answered."""

    def __init__(self, mesh: MeshView) -> None:
        self._mesh = mesh
        self._done = threading.Event()
        self.tasks: dict[str, list[str]] = {tenant: [] for tenant in TENANTS}
        self.workflows: dict[str, list[str]] = {tenant: [] for tenant in TENANTS}

    @property
    def answered(self) -> int:
        """Creates that were answered so far."""
        return sum(map(len, (*self.tasks.values(), *self.workflows.values())))

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Run it within the block."""
        threads = [threading.Thread(target=self._create, args=(tenant,)) for tenant in TENANTS]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._done.set()
            for thread in threads:
                thread.join()

    def _create(self, tenant: str) -> None:
        number = 0
        with self._mesh.http(tenant) as client:
            while not self._done.wait(0.05):
                number += 1
                if number % 10 == 0:
                    flow = post_until_answered(client, "/api/v1/workflows/", workflow(), f"flow-{number}")
                    self.workflows[tenant].append(flow["id"])
                else:
                    self.tasks[tenant].append(self._mesh.create(client, f"task-{number}", **_WORK)["id"])


def acknowledged(mesh: MeshView, load: Load) -> dict[str, Acknowledged]:
    """Read what every tenant was told so far."""
    told = {}
    for tenant in TENANTS:
        tasks, workflows = list(load.tasks[tenant]), list(load.workflows[tenant])
        with mesh.http(tenant) as client:
            listed = {task["id"]: task for task in mesh.tasks(client)}
            told[tenant] = Acknowledged(
                {ident: listed[ident] for ident in tasks},
                {ident: client.get(f"/api/v1/workflows/{ident}").json() for ident in workflows},
                _hashes(
                    mesh, tenant, [IMAGE, *(one["result_path"] for one in listed.values() if one.get("result_path"))]
                ),
            )
    return told


def compare(mesh: MeshView, told: Mapping[str, Acknowledged], load: Load) -> Found:
    """Wait until everything that was restored has ended, and hold it to what was told."""
    found = Found()
    for tenant, before in told.items():
        with mesh.http(tenant) as client:
            held = {task["id"] for task in until(partial(mesh.tasks, client), "tasks are listed")}
            flows = _workflows(client, load.workflows[tenant])
            found.lost += [f"task {ident}" for ident in sorted(before.tasks.keys() - held)]
            found.lost += [f"workflow {ident}" for ident in sorted(before.workflows.keys() - flows.keys())]
            until(partial(_ended, mesh, client, flows), "all that was restored ends", 120)
            _compare_rows(mesh, client, before, _workflows(client, flows), load.tasks[tenant], found)
        there = _hashes(mesh, tenant, before.objects.keys() & mesh.objects(tenant))
        found.lost += [f"object {path}" for path in sorted(before.objects.keys() - there.keys())]
        found.changed += [f"object {path}" for path, digest in there.items() if before.objects[path] != digest]
    return found


def _ended(mesh: MeshView, client: httpx.Client, flows: Mapping[str, Any]) -> bool:
    tasks = mesh.tasks(client)
    now = _workflows(client, flows)
    return bool(tasks) and all(each["status"] in ENDED for each in (*tasks, *now.values()))


def _workflows(client: httpx.Client, idents: Any) -> dict[str, dict[str, Any]]:
    answers = {ident: client.get(f"/api/v1/workflows/{ident}") for ident in idents}
    return {ident: answer.json() for ident, answer in answers.items() if answer.status_code == 200}


def _compare_rows(
    mesh: MeshView,
    client: httpx.Client,
    before: Acknowledged,
    flows: Mapping[str, dict[str, Any]],
    answered: list[str],
    found: Found,
) -> None:
    tasks = {task["id"]: task for task in mesh.tasks(client)}
    steps = {step["task_id"] for flow in flows.values() for step in flow["steps"]}
    found.unknown += [f"task {ident}" for ident in sorted(tasks.keys() - set(answered) - steps)]
    for ident, task in tasks.items():
        if task["status"] != "COMPLETED":
            found.changed.append(f"task {ident} is {task['status']}")
        elif fault := story_fault(task, mesh.attempts(client, ident)):
            found.changed.append(f"task {ident}: {fault}")
    found.changed += [
        f"workflow {ident} is {one['status']}" for ident, one in flows.items() if one["status"] != "COMPLETED"
    ]
    for ident, old in (*before.tasks.items(), *before.workflows.items()):
        new = tasks.get(ident) or flows.get(ident)
        same = ("status", "result_path", "completed_at", "final_step_result")
        if new is not None and old["status"] in ENDED and any(new.get(name) != old.get(name) for name in same):
            found.changed.append(f"{ident} had ended, and reads otherwise")


def _hashes(mesh: MeshView, tenant: str, paths: Iterable[str]) -> dict[str, str]:
    environment = mesh.environment_of("tasks")
    client = Minio(
        environment["ATELIER_S3_ENDPOINT"],
        access_key=environment["ATELIER_S3_ACCESS_KEY"],
        secret_key=environment["ATELIER_S3_SECRET_KEY"],
        secure=False,
        region="us-east-1",
    )
    found = {}
    for path in paths:
        answer = client.get_object(environment["ATELIER_S3_BUCKET"], f"tenants/{tenant}/{path}")
        try:
            found[path] = hashlib.sha256(answer.read()).hexdigest()
        finally:
            answer.close()
            answer.release_conn()
    return found


@dataclass
class Drill:
    """What a drill did.

    Attributes:
        told: What was acknowledged before the backup.
        found: What there was after the restore.
        copied: What `atelier backup` said.
        later: Creates that were answered after the backup had begun and are not in it.
        seconds: How long each part took.
    """

    told: Mapping[str, Acknowledged]
    found: Found
    copied: str
    later: int
    seconds: dict[str, float]

    def table(self) -> str:
        """Show it."""
        counts = {
            name: sum(len(getattr(each, name)) for each in self.told.values())
            for name in ("tasks", "workflows", "objects")
        }
        rows = [
            *((f"{name} acknowledged before the backup", number) for name, number in counts.items()),
            ("lost of them", len(self.found.lost)),
            ("changed", len(self.found.changed)),
            ("unknown", len(self.found.unknown)),
            ("answered after it began, and not in it", self.later),
            *((f"seconds: {name}", round(value, 1)) for name, value in self.seconds.items()),
        ]
        lines = [f"| {name:46s} | {value:>8} |" for name, value in rows]
        wrong = [*self.found.lost[:10], *self.found.changed[:10], *self.found.unknown[:10]]
        return "\n".join([f"| {'drill':46s} | {'':>8} |", f"|{'-' * 48}|{'-' * 9}:|", *lines, self.copied, *wrong])


def run(
    mesh: RunningMesh, fresh: RunningMesh, copy: Path, creates: int, meanwhile: Callable[[], None] = lambda: None
) -> Drill:
    """Do all of it.

    Args:
        mesh: A mesh that runs; afterwards it is gone.
        fresh: Another, that was never started; afterwards it runs.
        copy: Folder of the backup, made here.
        creates: How many creates are answered before the backup.
        meanwhile: Called while nothing runs, between loss and restore.
    """
    load, seconds = Load(mesh), {}
    clock = time.monotonic
    for tenant in TENANTS:
        with mesh.http(tenant) as client:
            store(client, IMAGE)
    with load.running():
        until(lambda: load.answered >= creates, "enough is answered", 60 + creates)
        told = acknowledged(mesh, load)
        # What the dump does not have yet must not look older than it: the store tells ages in seconds.
        time.sleep(1.1)
        began = clock()
        copied = mesh.cli("backup", str(copy), timeout_seconds=600)
        seconds["backup"] = clock() - began
    assert copied.returncode == 0, copied.stderr
    # Secrets are in no backup: whoever runs the mesh keeps them elsewhere.
    token = mesh.token(TENANTS[0])
    shutil.copy2(mesh.path / "credentials.json", fresh.path)
    mesh.kill_all()
    shutil.rmtree(mesh.path)
    meanwhile()
    began = clock()
    restored = fresh.cli("restore", str(copy), timeout_seconds=600)
    assert restored.returncode == 0, restored.stderr
    seconds["restore"] = clock() - began
    began = clock()
    fresh.up()
    seconds["start"] = clock() - began
    began = clock()
    found = compare(fresh, told, load)
    if (
        httpx.get(f"{fresh.url}/api/v1/tasks/", headers={"authorization": f"Bearer {token}"}, timeout=60).status_code
        != 200
    ):
        found.lost.append("a token that was given out before")
    seconds["until all had ended and was compared"] = clock() - began
    held = 0
    for tenant in TENANTS:
        with fresh.http(tenant) as client:
            own = {task["id"] for task in fresh.tasks(client)} & set(load.tasks[tenant])
            held += len(own) + len(_workflows(client, load.workflows[tenant]))
    return Drill(told, found, copied.stderr.strip(), load.answered - held, seconds)


def main() -> int:
    """Run the drill on meshes of its own; 1 if anything is amiss."""
    parser = argparse.ArgumentParser(prog="python -m tests.e2e.drill", description=__doc__)
    parser.add_argument("--creates", type=int, default=500, help="creates that are answered before the backup")
    given = parser.parse_args()
    with contextlib.ExitStack() as stack:
        path = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="atelier-drill-", ignore_cleanup_errors=True))
        )
        path.chmod(0o711)
        mesh, fresh = (RunningMesh(path / name, NOOP_ENVIRONMENT) for name in ("mesh", "fresh"))
        for each in (mesh, fresh):
            each.path.mkdir(mode=0o711)
            stack.callback(each.down)
        mesh.up()
        drill = run(mesh, fresh, path / "copy", given.creates)
    print(drill.table())
    return 0 if drill.found.clean else 1


if __name__ == "__main__":
    sys.exit(main())
