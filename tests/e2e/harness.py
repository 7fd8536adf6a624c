"""A whole mesh as processes, and ways to look at it and to break it."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import httpx
import psutil
import psycopg
from minio import Minio

from atelier_cli.embedded.process import Launch, free_ports, spawn, stop
from atelier_cli.folder import DataFolder, MeshRecord
from atelier_cli.mesh import ServiceProcess, plan
from atelier_cli.tokens import issue
from tests.e2e.small_disks import SmallDisks

T = TypeVar("T")

ENDED = frozenset({"COMPLETED", "FAILED", "CANCELLED"})
ATELIER = (sys.executable, "-m", "atelier_cli")
# A worker of NOOP tasks alone: its child imports no torch and starts at once. There is no trainer.
NOOP_ENVIRONMENT = {
    "ATELIER_ENABLE_NOOP": "true",
    "ATELIER_TRAINER": "off",
    "ATELIER_WORKER_TASK_TYPES": "NOOP",
    "ATELIER_WORKER_SLOTS": "4",
    "ATELIER_LEASE_TTL_SECONDS": "8",
    "ATELIER_OBJECT_SWEEP_DELAY_SECONDS": "2",
    "ATELIER_FILE_SWEEP_DELAY_SECONDS": "2",
    "ATELIER_STEP_DEADLINE_SECONDS": "10",
    "ATELIER_FIRST_STEP_DEADLINE_SECONDS": "10",
    "ATELIER_SHUTDOWN_GRACE_SECONDS": "5",
}

# A worker of all types on the processor; models are loaded within the first step.
DEVICE_ENVIRONMENT = {
    "ATELIER_TRAINER": "on",
    "ATELIER_WORKER_TASK_TYPES": "",
    "ATELIER_WORKER_SLOTS": "1",
    "ATELIER_DEVICE": "cpu",
    "ATELIER_TORCH_THREADS": "1",
    # What a model draws before it is trained costs more than short trainings do.
    "ATELIER_TRAINER_PRESERVATION": "none",
    "ATELIER_LEASE_TTL_SECONDS": "10",
    "ATELIER_STEP_DEADLINE_SECONDS": "120",
    "ATELIER_FIRST_STEP_DEADLINE_SECONDS": "300",
}


def until(ask: Callable[[], T | None], what: str, timeout_seconds: float = 60.0, pause_seconds: float = 0.1) -> T:
    """Wait for a condition and return its value."""
    deadline = time.monotonic() + timeout_seconds
    while True:
        answer = ask()
        if answer:
            return answer
        assert time.monotonic() < deadline, f"{what}: not within {timeout_seconds:.0f} s"
        time.sleep(pause_seconds)


class MeshView(Protocol):
    """Ways to look at a mesh, whoever runs it."""

    @property
    def url(self) -> str:
        """Address of a gateway."""
        ...

    def token(self, tenant: str = "default", scopes: Iterable[str] = ("read", "write")) -> str:
        """Sign a token."""
        ...

    def environment_of(self, role: str) -> Mapping[str, str]:
        """What a service is told, addresses and secrets included."""
        ...

    def http(
        self, tenant: str = "default", scopes: Iterable[str] = ("read", "write"), timeout_seconds: float = 60.0
    ) -> httpx.Client:
        headers = {"authorization": f"Bearer {self.token(tenant, scopes)}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=timeout_seconds)

    def create(self, client: httpx.Client, key: str, **fields: Any) -> dict[str, Any]:
        """Create a task, and repeat under one key while processes of the mesh are killed."""

        return post_until_answered(client, "/api/v1/tasks/", noop(**fields), key)

    def tasks(self, client: httpx.Client, **filters: Any) -> list[dict[str, Any]]:
        """All tasks of the client's tenant; [] while the mesh does not answer."""
        found: dict[str, dict[str, Any]] = {}  # by identifier: one that is created meanwhile moves the pages
        skip = 0
        while True:
            try:
                answer = client.get("/api/v1/tasks/", params={"limit": 1000, "skip": skip, **filters})
            except httpx.TransportError:
                return []
            if answer.status_code != 200:
                return []
            page = answer.json()
            found |= {one["id"]: one for one in page}
            skip += len(page)
            # A page of large tasks is cut by bytes: only an empty one is the last.
            if not page:
                return list(found.values())

    def wait_ended(self, client: httpx.Client, count: int, timeout_seconds: float) -> list[dict[str, Any]]:
        """Wait until `count` tasks of the client's tenant have ended."""

        def ended() -> list[dict[str, Any]] | None:
            done = [task for task in self.tasks(client) if task["status"] in ENDED]
            return done if len(done) >= count else None

        return until(ended, f"{count} tasks have ended", timeout_seconds, pause_seconds=0.3)

    def attempts(self, client: httpx.Client, task_id: str) -> list[dict[str, Any]]:
        answer = client.get(f"/api/v1/tasks/{task_id}/attempts")
        assert answer.status_code == 200, answer.text
        return list(answer.json()["attempts"])

    def objects(self, tenant: str = "default") -> set[str]:
        """Paths of every object of a tenant."""
        environment = self.environment_of("tasks")
        client = Minio(
            environment["ATELIER_S3_ENDPOINT"],
            access_key=environment["ATELIER_S3_ACCESS_KEY"],
            secret_key=environment["ATELIER_S3_SECRET_KEY"],
            secure=False,
            region="us-east-1",
        )
        prefix = f"tenants/{tenant}/"
        found = client.list_objects(environment["ATELIER_S3_BUCKET"], prefix=prefix, recursive=True)
        return {str(each.object_name).removeprefix(prefix) for each in found}

    @contextlib.contextmanager
    def database(self) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
        with psycopg.connect(self.environment_of("tasks")["ATELIER_DATABASE_URL"], autocommit=True) as connection:
            yield connection


@dataclass
class RunningMesh(MeshView):
    """One mesh, started by `atelier up` in the foreground; it dies with pytest."""

    path: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    disks: SmallDisks | None = None
    port: int = field(default_factory=lambda: free_ports(1)[0])
    _process: subprocess.Popen[bytes] | None = None

    @property
    def folder(self) -> DataFolder:
        return DataFolder(self.path)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def up(self, *options: str, timeout_seconds: float = 240.0) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        enter = self.disks.enter if self.disks else ()
        self._process = spawn(
            Launch(
                argv=(*enter, *ATELIER, "up", "--data", str(self.path), "--port", str(self.port), *options),
                log=self.path / "up.log",
                env=self.environment,
            )
        )
        until(self._is_up, "the mesh is ready", timeout_seconds)

    def _is_up(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.path / "up.log").read_text()[-4000:]
        record = self.folder.record()
        return record is not None and record.pid == self._process.pid and record.state == "ready"

    def disk(self, part: str) -> Path:
        """Where a part of the mesh writes."""
        return self.disks.disk(part) if self.disks else self.path / part

    def down(self) -> None:
        if self._process is not None:
            stop(self._process, signal.SIGTERM, timeout_seconds=90)

    def kill_all(self) -> None:
        """End every process at once, as where their machines are lost."""
        assert self._process is not None
        processes = [psutil.Process(each.pid) for each in self.record.processes]
        processes += [child for each in processes for child in each.children(recursive=True)]
        self._process.kill()
        self._process.wait()
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(processes, timeout=30)

    def cli(self, *arguments: str, timeout_seconds: float = 120.0) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*ATELIER, *arguments],
            env={**os.environ, **self.environment, "ATELIER_DATA": str(self.path)},
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_seconds,
        )

    @property
    def record(self) -> MeshRecord:
        return self.folder.running()

    def pid(self, role: str) -> int:
        """The process of a role, once it has one."""
        return until(lambda: next((each.pid for each in self.record.processes if each.role == role), None), role)

    def restarts(self, role: str) -> int:
        return next(each.restarts for each in self.record.processes if each.role == role)

    def wait_restarted(self, role: str, before: int) -> None:
        """Wait until a role's process was started once more than `before`."""
        until(lambda: self.restarts(role) == before + 1 and self.pid(role), f"{role} runs again", 120)

    def kill(self, role: str, number: signal.Signals = signal.SIGKILL) -> int:
        """Send a signal to a role's process; return its id."""
        pid = self.pid(role)
        os.kill(pid, number)
        return pid

    def wipe_nats(self) -> None:
        """Kill NATS and lose its disk, before the supervisor starts it again."""
        self.kill("nats")
        # A rename is done at once; the supervisor waits longer than that before it starts NATS.
        lost = (self.path / "nats").rename(self.path / f"nats-lost-{time.monotonic_ns()}")
        shutil.rmtree(lost)

    def worker_child(self) -> int:
        """The process that owns the device."""
        return until(lambda: next(iter(children(self.pid("worker"))), None), "the worker's child")

    def token(self, tenant: str = "default", scopes: Iterable[str] = ("read", "write")) -> str:
        return issue(self.folder, tenant=tenant, scopes=scopes, ttl_seconds=3600)

    def environment_of(self, role: str) -> dict[str, str]:
        """What a service is told, addresses and secrets included."""
        record = self.record
        credentials = self.folder.credentials()
        servers = plan(self.folder, credentials, record.gateway_port, record.ports, record.providers).servers
        service = servers[role]
        assert isinstance(service, ServiceProcess)
        return dict(service.environment)


def post_until_answered(client: httpx.Client, path: str, body: dict[str, Any], key: str) -> dict[str, Any]:
    """Create something, and repeat under one key while processes of the mesh are killed."""

    def once() -> httpx.Response | None:
        try:
            answer = client.post(path, json=body, headers={"idempotency-key": key})
        except httpx.TransportError:
            return None
        return None if answer.status_code in {502, 503, 504} else answer

    answer = until(once, "a create is answered", 120)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def ended_task(client: httpx.Client, task_id: str, timeout_seconds: float = 200.0) -> dict[str, Any]:
    """Wait until a task has ended; return it."""

    def found() -> dict[str, Any] | None:
        now = dict(client.get(f"/api/v1/tasks/{task_id}").json())
        return now if now["status"] in ENDED else None

    return until(found, "the task has ended", timeout_seconds)


def story_fault(task: dict[str, Any], attempts: list[dict[str, Any]]) -> str | None:
    """Say what contradicts itself in the attempts of a task that has completed; None if nothing does."""
    numbers = [each["attempt"] for each in attempts]
    if numbers != list(range(1, len(attempts) + 1)):
        return f"its attempts are numbered {numbers}"
    outcomes = [each["outcome"] for each in attempts]
    if not outcomes or outcomes[-1] != "COMPLETED" or "COMPLETED" in outcomes[:-1]:
        return f"its attempts ended as {outcomes}"
    counted = sum(outcome != "RELEASED" for outcome in outcomes) - 1
    if task["retry_count"] != counted:
        return f"retry_count is {task['retry_count']} and not {counted}"
    if f"/{len(attempts)}/" not in task["result_path"]:
        return f"{task['result_path']} is not the winning attempt's"
    return None


def noop(**fields: Any) -> dict[str, Any]:
    """The body of a NOOP task."""
    return {"task_type": "NOOP", "origin_instance": "e2e", **fields}


def children(pid: int) -> list[int]:
    """Processes whose parent is `pid`."""
    found = []
    for thread in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += [int(child) for child in thread.read_text().split()]
    return found


def parse_status(text: str) -> dict[str, dict[str, Any]]:
    """The processes of `atelier status --json` by role."""
    return {each["role"]: each for each in json.loads(text)["processes"]}
