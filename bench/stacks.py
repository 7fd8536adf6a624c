"""The two stacks that are measured side by side: the mesh, and FastAPI with Celery, on one PostgreSQL with fsync on."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import psycopg
import psycopg.conninfo

from atelier_cli.embedded.postgres import PostgresServer
from atelier_cli.embedded.process import Launch, RunningServer, free_ports, log_tail, spawn, stop
from atelier_cli.folder import DataFolder

ROOT = Path(__file__).resolve().parent.parent
PEER_FOLDER = ROOT / "bench" / "peer"
PEER_VENV = ROOT / ".cache" / "peer"
ATELIER = Path(sysconfig.get_path("scripts")) / "atelier"
READY_SECONDS = 60.0
_START_SECONDS = 180.0


@dataclass(frozen=True, slots=True)
class Stack:
    """A running system that takes creates over HTTP.

    Attributes:
        name: Its name in the figures.
        url: Where a create is posted.
        body: A create of one no-op task.
        headers: Sent with every create.
        dsn: Its database.
        table: The table of tasks, with `created_at`, `started_at`, `completed_at` and `status`.
        folder: Its data folder.
        processes: Identifiers of its processes by what they are, children not among them.
    """

    name: str
    url: str
    body: str
    headers: dict[str, str]
    dsn: str
    table: str
    folder: Path
    processes: Mapping[str, int]

    def completed(self, connection: psycopg.Connection[tuple[int]]) -> int:
        """Return how many tasks have completed."""
        row = connection.execute(f"SELECT count(*) FROM {self.table} WHERE status = 'COMPLETED'").fetchone()  # noqa: S608 -- a constant of this module
        assert row is not None
        return row[0]

    def processor_seconds(self) -> dict[str, float]:
        """Return what its processes have used so far, children and the database's connections to it included."""
        used: dict[str, float] = {}
        for name, pid in self.processes.items():
            process = psutil.Process(pid)
            used[name] = sum(_processor_seconds(each) for each in [process, *process.children(recursive=True)])
        database = f" {psycopg.conninfo.conninfo_to_dict(self.dsn)['dbname']} "
        backends = [each for each in psutil.process_iter(["name", "cmdline"]) if each.info["name"] == "postgres"]
        used["postgres"] = sum(
            _processor_seconds(each) for each in backends if database in " ".join(each.info["cmdline"] or ())
        )
        return used


def _processor_seconds(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.Error:  # it has ended meanwhile
        return 0.0
    return float(times.user + times.system)


@contextmanager
def postgres(folder: Path) -> Iterator[PostgresServer]:
    """Yield a PostgreSQL of its own that both stacks share, durable as in production."""
    folder.chmod(0o711)
    server = PostgresServer(
        folder / "postgres", free_ports(1)[0], secrets.token_urlsafe(12), folder / "postgres.log", durable=True
    )
    running = RunningServer(server)
    running.start()
    try:
        yield server
    finally:
        running.stop()


def create_database(server: PostgresServer, name: str) -> str:
    """Make an empty database and return its DSN."""
    with psycopg.connect(server.dsn("postgres"), autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    return server.dsn(name)


def wait_http(url: str, seconds: float = READY_SECONDS) -> None:
    """Wait until an address answers 200.

    Raises:
        TimeoutError: it did not in time.
    """
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            with urllib.request.urlopen(url, timeout=2) as answer:  # noqa: S310 -- loopback addresses of this module
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.05)
    message = f"{url} did not answer within {seconds:.0f} s"
    raise TimeoutError(message)


@contextmanager
def mesh(
    folder: Path,
    dsn: str | None,
    environment: dict[str, str] | None = None,
    body: dict[str, object] | None = None,
    *,
    tree: Path = ROOT,
) -> Iterator[Stack]:
    """Yield the mesh as `atelier up` starts it; its worker serves no-op tasks alone unless `environment` says else.

    It ends with the calling thread, also where that is killed.

    Args:
        folder: Where its data lies.
        dsn: Its database; None for one of its own.
        environment: More settings.
        body: A create of one task; of a no-op task by default.
        tree: The checkout whose mesh it is; it runs with the packages of this one.
    """
    data = folder / "mesh"
    port = free_ports(1)[0]
    settings = {"ATELIER_ENABLE_NOOP": "true", "ATELIER_WORKER_TASK_TYPES": "NOOP", "ATELIER_WORKER_SLOTS": "16"}
    if dsn is not None:
        settings["ATELIER_DATABASE_URL"] = dsn
    code = os.pathsep.join([str(tree), str(tree / "gen")])
    env = {**os.environ, **settings, **(environment or {}), "PYTHONPATH": code}
    running = _up(folder, data, port, env, tree)
    try:
        _wait_ready(running, data)
        token = subprocess.run(
            [ATELIER, "token", "--data", data], env=env, cwd=tree, check=True, capture_output=True, text=True
        ).stdout.strip()
        listed = subprocess.run(
            [ATELIER, "status", "--data", data, "--json"],
            env=env,
            cwd=tree,
            check=True,
            capture_output=True,
            text=True,
        )
        roles = {one["role"]: one["pid"] for one in json.loads(listed.stdout)["processes"]}
        yield Stack(
            name="atelier",
            url=f"http://127.0.0.1:{port}/api/v1/tasks/",
            body=json.dumps(body or {"task_type": "NOOP", "origin_instance": "bench"}),
            headers={"Authorization": f"Bearer {token}"},
            dsn=dsn or "",
            table="tasks.tasks",
            folder=data,
            processes={role: pid for role, pid in roles.items() if role not in ("postgres", "s3")},
        )
    finally:
        stop(running, signal.SIGTERM, READY_SECONDS)


def _up(folder: Path, data: Path, port: int, env: Mapping[str, str], tree: Path = ROOT) -> subprocess.Popen[bytes]:
    """Start a mesh that is told to stop when the calling thread ends."""
    argv = [str(ATELIER), "up", "--data", str(data), "--port", str(port)]
    return spawn(Launch(argv=argv, log=folder / "mesh.log", env=env, cwd=tree))


def _wait_ready(running: subprocess.Popen[bytes], data: Path) -> None:
    """Wait until a mesh has started.

    Raises:
        RuntimeError: It has ended.
        TimeoutError: It is not ready in time.
    """
    until = time.monotonic() + _START_SECONDS
    while time.monotonic() < until:
        if running.poll() is not None:
            message = f"The mesh did not start: {log_tail(data.parent / 'mesh.log')}"
            raise RuntimeError(message)
        record = DataFolder(data).record()
        if record is not None and record.pid == running.pid and record.state == "ready":
            return
        time.sleep(0.05)
    message = f"The mesh was not ready after {_START_SECONDS:.0f} s."
    raise TimeoutError(message)


def need_redis() -> None:
    """Refuse to go on without Redis.

    Raises:
        SystemExit: it is not installed.
    """
    if shutil.which("redis-server") is None:
        raise SystemExit("The peer needs Redis: install the package redis-server.")


def set_up_peer(lock: Path = PEER_FOLDER / "requirements.lock", venv: Path = PEER_VENV) -> None:
    """Make a peer's environment from its lock, once for each state of that lock."""
    stamp = venv / "lock"
    if stamp.is_file() and stamp.read_bytes() == lock.read_bytes():
        return
    uv = ATELIER.with_name("uv")
    subprocess.run([uv, "venv", "--quiet", "--clear", "--python", sys.executable, venv], check=True)
    subprocess.run([uv, "pip", "install", "--quiet", "--python", venv / "bin" / "python", "-r", lock], check=True)
    stamp.write_bytes(lock.read_bytes())


@contextmanager
def peer(folder: Path, dsn: str, fsync: str = "always") -> Iterator[Stack]:
    """FastAPI, Celery (two processes and their parent) and Redis.

    As many as gateway, tasks, worker and its child, and NATS; the mesh also runs its workflows service, idle here.

    Args:
        folder: Where its files lie.
        dsn: Its database.
        fsync: When Redis waits for the disk: `always`, so that no accepted task is lost, or `everysec`, its default,
            which may lose those of the last second.
    """
    need_redis()
    set_up_peer()
    redis_port, port = free_ports(2)
    env = {
        **os.environ,
        "PEER_DATABASE_URL": dsn,
        "PEER_BROKER_URL": f"redis://127.0.0.1:{redis_port}/0",
        "C_FORCE_ROOT": "1",
    }
    scripts = PEER_VENV / "bin"
    commands: dict[str, list[str | Path]] = {
        "redis": [
            *("redis-server", "--port", str(redis_port), "--bind", "127.0.0.1"),
            *("--appendonly", "yes", "--appendfsync", fsync),
        ],
        "api": [scripts / "uvicorn", "app:app", "--port", str(port), "--no-access-log"],
        "worker": [scripts / "celery", "-A", "app:queue", "worker", "--concurrency", "2", "--loglevel", "WARNING"],
    }
    source = (PEER_FOLDER / "app.py").read_text()
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(source.split('TABLE = """')[1].split('"""')[0])
    processes: dict[str, int] = {}
    with ExitStack() as stack:
        for name, command in commands.items():
            cwd = folder / "redis" if name == "redis" else PEER_FOLDER
            cwd.mkdir(exist_ok=True)
            log = stack.enter_context((folder / f"peer-{name}.log").open("wb"))
            process = subprocess.Popen([str(part) for part in command], cwd=cwd, env=env, stdout=log, stderr=log)
            processes[name] = process.pid
            stack.callback(stop, process, signal.SIGTERM)
        wait_http(f"http://127.0.0.1:{port}/openapi.json")
        yield Stack(
            name="celery",
            url=f"http://127.0.0.1:{port}/tasks/",
            body=json.dumps({"origin_instance": "bench"}),
            headers={},
            dsn=dsn,
            table="peer_tasks",
            folder=folder,
            processes=processes,
        )


def load(stack: Stack, *, count: int, clients: int) -> dict[str, float]:
    """Post `count` creates from a process of its own and return its figures."""
    command = [sys.executable, "-m", "bench.load", stack.url, "--count", str(count), "--clients", str(clients)]
    command += ["--body", stack.body]
    for name, value in stack.headers.items():
        command += ["--header", f"{name}:{value}"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    figures: dict[str, float] = json.loads(done.stdout)
    return figures
