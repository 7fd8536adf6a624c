"""Tries every port that `atelier up` opens as another user of the machine, through the program `stranger`."""

import importlib
import json
import os
import pkgutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import atelier
import psutil
from google.protobuf import descriptor_pool

from meshkit.topology import SERVICES, grpc_services
from tests.e2e.harness import RunningMesh

STRANGER = ("-m", "tests.e2e.stranger")


def processes(mesh: RunningMesh) -> list[psutil.Process]:
    """The supervisor and all below it."""
    supervisor = psutil.Process(mesh.record.pid)
    return [supervisor, *supervisor.children(recursive=True)]


def listeners(mesh: RunningMesh) -> tuple[set[tuple[str, int]], set[str]]:
    """Addresses and paths of sockets that the mesh's processes listen on."""
    ports, paths = set(), set()
    for process in processes(mesh):
        for connection in process.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN:
                ports.add((connection.laddr.ip, connection.laddr.port))
        paths |= {str(each.laddr) for each in process.net_connections("unix") if each.laddr}
    return ports, paths


def names_of_ports(mesh: RunningMesh) -> dict[int, str]:
    """What each port is there for."""
    record = mesh.record
    reported = {
        int((mesh.folder.run(f"{spec.role}.address")).read_text().strip().rpartition(":")[2]): spec.role
        for spec in SERVICES
    }
    return {**{port: name for name, port in record.ports.items()}, **reported, record.gateway_port: "gateway"}


def calls() -> list[tuple[str, str]]:
    """A call of every gRPC service of the mesh, with an empty request."""
    for module in pkgutil.walk_packages(atelier.__path__, "atelier."):
        if module.name.endswith("_service_pb2"):
            importlib.import_module(module.name)
    pool = descriptor_pool.Default()
    return [(f"/{name}/{pool.FindServiceByName(name).methods[0].name}", "") for name in grpc_services()]


def try_all(mesh: RunningMesh, name: str, ports: set[int], sockets: set[str]) -> list[dict[str, Any]]:
    """What a stranger gets at each door."""
    numbers = mesh.record.ports
    task = {
        "object": name,
        "ports": sorted(ports),
        # A user may connect to sockets of their own: only root can be another user.
        "sockets": sorted(sockets) if os.geteuid() == 0 else [],
        "calls": calls(),
        "postgres": numbers["postgres"],
        "nats": numbers["nats"],
    }
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("ATELIER_", "PG"))}
    done = subprocess.run(
        [sys.executable, *STRANGER],
        input=json.dumps(task),
        cwd=Path(__file__).parents[2],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout))


def served(each: dict[str, Any]) -> bool:
    """Whether an attempt got through."""
    got = each["got"]
    if isinstance(got, dict):
        reads = each["attempt"].startswith("GET")
        return bool(got["status"] < 400 and (got["text"] or not reads))
    return got is not None and (got == "OK" or each["attempt"].startswith("TLS"))


def got_through(mesh: RunningMesh, answers: list[dict[str, Any]]) -> list[tuple[str, str, Any]]:
    """Door, attempt and answer of what got through; Prometheus pages, which hold figures alone, are for everyone."""
    names = names_of_ports(mesh)
    found = [
        (str(names.get(each["door"], each["door"])), each["attempt"], each["got"]) for each in answers if served(each)
    ]
    return [each for each in found if not (each[0].startswith("metrics_") and each[1].startswith("GET"))]
