"""Rows in which one of two replicas stands still while it leads and holds locks, as on a machine that hangs."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import httpx

from atelier_cli.embedded.process import Launch, free_ports, spawn, stop
from atelier_cli.mesh import uses
from bench.abuse.measuring import repeating
from bench.abuse.rows import Abuse, row
from bench.stacks import wait_http
from meshkit import topology
from tests.e2e.harness import RunningMesh, until
from tests.standstill import IN_A_CHANGE, IN_A_ROUND, stand_still

_STILL_SECONDS = 20.0
# Leadership, locks and webhooks pass on within it; some time for the work itself comes on top.
_LONGEST_SECONDS = 12.0


@contextmanager
def second_replicas(abuse: Abuse) -> Iterator[str]:
    """Start another replica of every service on the mesh's database; the other tenant uses their gateway."""
    mesh = abuse.mesh
    ports = dict(zip(("tasks", "workflows", "gateway"), free_ports(3), strict=True))
    url = f"http://127.0.0.1:{ports['gateway']}"
    with ExitStack() as stack:
        for role in ("tasks", "workflows", "worker", "gateway"):
            stack.callback(stop, spawn(_launch(mesh, role, ports)), signal.SIGTERM)
        wait_http(f"{url}/health")
        yield url


def _launch(mesh: RunningMesh, role: str, ports: dict[str, int]) -> Launch:
    folder = mesh.path / "second" / role
    folder.mkdir(parents=True, exist_ok=True)
    environment = mesh.environment_of(role) | {
        "ATELIER_LISTEN": f"127.0.0.1:{ports.get(role, 0)}",
        "ATELIER_PORT_FILE": str(folder / "address"),
        "ATELIER_METRICS_PORT": "0",
    }
    for one in topology.addressed():
        setting = topology.address_setting(one.role)
        if setting in environment:
            environment[setting] = f"127.0.0.1:{ports[one.role]}"
    if role == "worker":
        environment |= {"ATELIER_WORKER_NAME": "second-worker", "ATELIER_DATA": str(folder)}

    def inherits(name: str) -> bool:
        return uses(role, name)

    return Launch(
        argv=(sys.executable, "-m", topology.by_role(role).module),
        log=folder / "log",
        env={**mesh.environment, **environment},
        inherits=inherits,
        cwd=folder,
    )


@row("a replica of tasks stands still for 20 s in a round, and leads", longest=_LONGEST_SECONDS, door=second_replicas)
def tasks_stand_still(abuse: Abuse) -> None:
    """Stop the replica that publishes events while it holds the queue; tasks go on to be created through the other."""
    _stand_still(abuse, "tasks", IN_A_ROUND, lambda: abuse.create({"task_type": "NOOP", "steps": 0}))


@row(
    "a replica of workflows stands still for 20 s in a transaction, and leads",
    probe="workflow",
    longest=_LONGEST_SECONDS,
    door=second_replicas,
)
def workflows_stand_still(abuse: Abuse) -> None:
    """Stop the replica that moves workflows while it holds some; workflows go on to be created through the other."""
    steps = [
        {"id": name, "task_type": "NOOP", "depends_on": needs, "config": {"steps": 0}}
        for name, needs in (("a", []), ("b", ["a"]), ("c", ["b"]))
    ]
    body = {"name": "still", "origin_instance": "bench", "steps": steps}

    def create() -> None:
        abuse.note(lambda: httpx.post(f"{abuse.url}/api/v1/workflows/", json=body, headers=abuse.headers, timeout=60))

    _stand_still(abuse, "workflows", IN_A_CHANGE, create)


def _stand_still(abuse: Abuse, role: str, holds: str, create: Callable[[], object]) -> None:
    mesh = abuse.mesh
    dsn = mesh.environment_of("tasks")["ATELIER_DATABASE_URL"]
    pid = mesh.pid(role)
    leader = _leader(mesh, role)
    stopped = threading.Event()

    def load() -> None:
        if not stopped.is_set():
            create()

    with ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(repeating(load, 0.05))
        stand_still(pid, dsn, holds)
        began = time.monotonic()
        stopped.set()
        # Those that wait in vain for the stopped one end when it goes on.
        stack.callback(os.kill, pid, signal.SIGCONT)
        until(lambda: _leader(mesh, role) != leader, "another leads", 60)
        abuse.found.append(f"another led after {time.monotonic() - began:.1f} s")
        time.sleep(max(0.0, began + _STILL_SECONDS - time.monotonic()))


def _leader(mesh: RunningMesh, schema: str) -> uuid.UUID | None:
    with mesh.database() as connection:
        query = f"SELECT holder FROM {schema}.leaders WHERE expires_at > now()"  # noqa: S608 -- a constant of this module
        found = connection.execute(query).fetchone()
    return None if found is None else uuid.UUID(str(found[0]))
