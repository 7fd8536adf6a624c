"""The three systems whose workflows are measured side by side, each with a database of its own in one PostgreSQL.

All queue a step to worker processes and keep its state in PostgreSQL: the mesh by its HTTP API, Celery canvas with its
database result backend, DBOS with its queues. `Flows` says how workflows are submitted and where
their timestamps are.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import httpx

from atelier_cli.embedded.process import free_ports, stop
from bench import stacks

DURABLE_VENV = stacks.ROOT / ".cache" / "peer-durable"
WORKERS = 2
CLIENTS = 16
READY_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Shape:
    """A chain of `size` steps, or a fan: one step, `size` beside each other, one step."""

    kind: Literal["chain", "fan"]
    size: int

    @property
    def steps(self) -> int:
        """Steps of one workflow."""
        return self.size if self.kind == "chain" else self.size + 2


@dataclass(frozen=True, slots=True)
class Flows:
    """A running system that executes workflows of no-op steps.

    Attributes:
        name: Its name in the figures.
        dsn: Its database.
        submit: Starts a number of workflows of a shape; returns when it began, in seconds of the epoch.
        step_ends: A query of the times at which steps ended, in seconds of the epoch.
        flow_ends: The same of workflows, where these have rows of their own.
        workers: Processes that poll their database, each with a process group of its own.
    """

    name: str
    dsn: str
    submit: Callable[[Shape, int], float]
    step_ends: str
    flow_ends: str | None
    workers: Sequence[subprocess.Popen[bytes]] = ()

    def rows(self, shape: Shape) -> int:
        """Rows that a workflow of this shape leaves when it has ended."""
        return shape.steps + (self.flow_ends is not None)

    @property
    def ends(self) -> str:
        """Return a query of all times at which something ended."""
        return self.step_ends if self.flow_ends is None else f"{self.step_ends} UNION ALL {self.flow_ends}"


def definition(shape: Shape, config: Mapping[str, object] | None = None) -> dict[str, object]:
    """Return the body that creates a workflow of this shape in the mesh.

    Args:
        shape: The shape.
        config: Set on its first step alone.
    """
    names = [f"s{number}" for number in range(shape.steps)]
    if shape.kind == "chain":
        needs = [[], *([name] for name in names[:-1])]
    else:
        needs = [[], *([names[0]] for _ in range(shape.size)), names[1:-1]]
    steps: list[dict[str, object]] = [
        {"id": name, "task_type": "NOOP", "depends_on": needed} for name, needed in zip(names, needs, strict=True)
    ]
    steps[0]["config"] = dict(config or {})
    return {"name": shape.kind, "origin_instance": "bench", "steps": steps}


async def post_all(url: str, headers: Mapping[str, str], body: dict[str, object], count: int) -> float:
    """Post a number of creates over a few connections; return when it began."""
    content = json.dumps(body).encode()
    left = count
    async with httpx.AsyncClient(
        headers={**headers, "Content-Type": "application/json"}, timeout=120, trust_env=False
    ) as client:

        async def one_client() -> None:
            nonlocal left
            while left > 0:
                left -= 1
                (await client.post(url, content=content)).raise_for_status()

        begun = time.time()
        await asyncio.gather(*(one_client() for _ in range(min(count, CLIENTS))))
    return begun


def mesh_flows(mesh: stacks.Stack) -> Flows:
    """Return the workflows of a running mesh."""
    url = mesh.url.replace("/tasks/", "/workflows/")
    return Flows(
        name="atelier",
        dsn=mesh.dsn,
        submit=lambda shape, count: asyncio.run(post_all(url, mesh.headers, definition(shape), count)),
        step_ends="SELECT extract(epoch FROM completed_at) AS moment FROM workflows.steps WHERE state = 'COMPLETED'",
        flow_ends="SELECT extract(epoch FROM completed_at) FROM workflows.workflows WHERE status = 'COMPLETED'",
    )


@contextmanager
def celery(folder: Path, dsn: str, poll_seconds: float) -> Iterator[Flows]:
    """Celery canvas: Redis, and a worker with two processes and their parent."""
    stacks.need_redis()
    stacks.set_up_peer()
    folder.mkdir()
    port = free_ports(1)[0]
    scripts = stacks.PEER_VENV / "bin"
    env = _environment(dsn, poll_seconds) | {"PEER_BROKER_URL": f"redis://127.0.0.1:{port}/0", "C_FORCE_ROOT": "1"}
    redis = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder)]
    redis += ["--appendonly", "yes", "--appendfsync", "always"]
    worker = [str(scripts / "celery"), "-A", "canvas:queue", "worker", "--concurrency", str(WORKERS)]
    with ExitStack() as stack:
        stack.callback(stop, _spawn(redis, folder / "redis.log", env), signal.SIGTERM)
        log = folder / "worker.log"
        process = _spawn([*worker, "--loglevel", "INFO"], log, env)
        stack.callback(stop, process, signal.SIGTERM)
        _wait_for(log, "ready.")
        yield Flows(
            name="celery",
            dsn=dsn,
            submit=lambda shape, count: _submit([scripts / "python", "canvas.py"], shape, count, env),
            # The column has no zone: its times are in that of the session which wrote them.
            step_ends="SELECT extract(epoch FROM date_done AT TIME ZONE current_setting('TimeZone')) AS moment"
            " FROM celery_taskmeta WHERE status = 'SUCCESS'",
            flow_ends=None,
            workers=[process],
        )


@contextmanager
def dbos(folder: Path, dsn: str, poll_seconds: float) -> Iterator[Flows]:
    """DBOS: two worker processes that take flows and steps from its queues."""
    stacks.set_up_peer(stacks.PEER_FOLDER / "requirements-durable.lock", DURABLE_VENV)
    folder.mkdir()
    env = _environment(dsn, poll_seconds)
    program: list[Path | str] = [DURABLE_VENV / "bin" / "python", "durable.py"]
    processes: list[subprocess.Popen[bytes]] = []
    with ExitStack() as stack:
        for number in range(WORKERS):
            log = folder / f"worker-{number}.log"
            command = [*(str(part) for part in program), "work", str(number)]
            processes.append(_spawn(command, log, env))
            stack.callback(stop, processes[-1], signal.SIGTERM)
            _wait_for(log, "ready")
        moments = "SELECT completed_at / 1000.0 AS moment FROM dbos.workflow_status WHERE status = 'SUCCESS'"
        yield Flows(
            name="dbos",
            dsn=dsn,
            submit=lambda shape, count: _submit(program, shape, count, env),
            step_ends=f"{moments} AND queue_name = 'steps'",
            flow_ends=f"{moments} AND queue_name = 'flows'",
            workers=processes,
        )


def _environment(dsn: str, poll_seconds: float) -> dict[str, str]:
    return {**os.environ, "PEER_DATABASE_URL": dsn, "PEER_POLL_SECONDS": str(poll_seconds)}


def _spawn(command: list[str], log: Path, env: dict[str, str]) -> subprocess.Popen[bytes]:
    with log.open("wb") as output:
        return subprocess.Popen(
            command, cwd=stacks.PEER_FOLDER, env=env, stdout=output, stderr=output, start_new_session=True
        )


def _submit(program: list[Path | str], shape: Shape, count: int, env: dict[str, str]) -> float:
    command = [*(str(part) for part in program), shape.kind, str(shape.size), str(count)]
    done = subprocess.run(command, cwd=stacks.PEER_FOLDER, env=env, check=True, stdout=subprocess.PIPE)
    begun: float = json.loads(done.stdout)["begun"]
    return begun


def _wait_for(log: Path, text: str) -> None:
    until = time.monotonic() + READY_SECONDS
    while text not in log.read_text():
        if time.monotonic() > until:
            message = f"{log.name} does not say {text!r}: {log.read_text()[-2000:]}"
            raise TimeoutError(message)
        time.sleep(0.1)
