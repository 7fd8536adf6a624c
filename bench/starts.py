"""How long each service of the control plane takes to start, alone, beside servers that are up and migrated."""

from __future__ import annotations

import http.client
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from atelier_cli import health
from atelier_cli.embedded.process import RunningServer, Server, free_ports, spawn, stop
from atelier_cli.folder import DataFolder
from atelier_cli.mesh import MeshPlan, choose_ports, plan

# How a service tells that it serves: its gRPC health says SERVING, or it answers HTTP.
SERVICES = ("tasks", "workflows", "gateway")
PATIENCE_SECONDS = 60.0
_POLL_SECONDS = 0.005


def measure(folder: Path, rounds: int) -> dict[str, list[float]]:
    """Start each service so many times, one at a time.

    Args:
        folder: Where the servers keep their data; PostgreSQL's user must be able to pass through it.
        rounds: How often each is started, beside a first time that migrates and is not counted.

    Returns:
        By service, the seconds from the start of its process until it serves.

    Raises:
        TimeoutError: A service did not serve within a minute.
    """
    data = DataFolder(folder / "starts")
    data.make()
    mesh = plan(data, data.credentials(), *choose_ports(free_ports(1)[0], None))
    with _servers(mesh):
        for name in SERVICES:
            _start(mesh, name)
        return {name: [_start(mesh, name) for _ in range(rounds)] for name in SERVICES}


@contextmanager
def _servers(mesh: MeshPlan) -> Iterator[None]:
    """Yield the embedded servers, up."""
    running: list[RunningServer] = []
    try:
        for server in mesh.stages[0]:
            running.append(RunningServer(server))
            running[-1].start()
        yield
    finally:
        for each in reversed(running):
            each.stop()


def _start(mesh: MeshPlan, name: str) -> float:
    """Seconds from the start of a service's process until it serves; it is stopped again."""
    server = mesh.servers[name]
    port = mesh.gateway_port if name == "gateway" else mesh.ports[name]
    answers: Callable[[], bool] = (
        (lambda: _answers_http(port)) if name == "gateway" else (lambda: health.grpc_serves(f"127.0.0.1:{port}"))
    )
    launch = server.prepare()
    begun = time.perf_counter()
    process = spawn(launch)
    try:
        # A client that asks too early would take processor time from the start, and back off.
        while not (_listens(port) and answers()):
            if process.poll() is not None or time.perf_counter() - begun > PATIENCE_SECONDS:
                raise TimeoutError(_late(server, launch.log))
            time.sleep(_POLL_SECONDS)
        return time.perf_counter() - begun
    finally:
        stop(process, launch.stop_signal)


def _listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def _answers_http(port: int) -> bool:
    """Whether a GET is answered, with any status: the services behind the gateway are not up."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status > 0
    except OSError:
        return False
    finally:
        connection.close()


def _late(server: Server, log: Path) -> str:
    return f"{server.name} does not serve; see {log}"
