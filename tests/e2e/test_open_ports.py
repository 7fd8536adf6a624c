"""Another user of the machine tries every port that `atelier up` opens, and gets nothing of any tenant."""

import importlib
import io
import json
import os
import pkgutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import atelier
import psutil
import pytest
from google.protobuf import descriptor_pool
from PIL import Image

from meshkit.topology import SERVICES, grpc_services
from tests.e2e.harness import RunningMesh

STRANGER = ("-m", "tests.e2e.stranger")
TENANT = "walled"


@pytest.fixture(scope="module")
def walled(start_mesh: Callable[..., RunningMesh]) -> RunningMesh:
    return start_mesh()


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


def picture() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), (200, 30, 60)).save(buffer, "PNG")
    return buffer.getvalue()


def test_another_user_reads_and_writes_nothing_through_any_port(walled: RunningMesh) -> None:
    with walled.http(tenant=TENANT) as client:
        secret = picture()
        stored = client.post(
            "/api/v1/storage/images/private/secret.png", content=secret, headers={"content-type": "image/png"}
        )
        assert stored.status_code in {200, 201}, stored.text
        before = walled.objects(TENANT)
        [path] = [path for path in before if path.endswith("secret.png")]

        opened, sockets = listeners(walled)
        names = names_of_ports(walled)
        assert {host.removeprefix("::ffff:") for host, _ in opened} == {"127.0.0.1"}, "every port is on loopback alone"
        ports = {port for _, port in opened}
        assert {"gateway", "tasks", "s3_s3", "nats", "postgres"} <= {names.get(port) for port in ports}
        assert ports <= set(names), "a port that nobody answers for"

        answers = try_all(walled, f"atelier/tenants/{TENANT}/{path}", ports, sockets)
        got_through = [
            (names.get(each["door"], each["door"]), each["attempt"], each["got"]) for each in answers if served(each)
        ]
        # Prometheus pages are for whoever is on the machine, by design: figures alone, no content.
        pages = [each for each in got_through if str(each[0]).startswith("metrics_")]
        assert [each for each in got_through if each not in pages] == []
        assert all(attempt.startswith("GET") and "secret.png" not in got["text"] for _, attempt, got in pages)

        by_door = {each["door"]: each["got"] for each in answers}
        assert "password" in by_door["postgres"]
        assert "Authorization Violation" in by_door["nats"]
        refused = {names[each["door"]] for each in answers if each["got"] == "UNAUTHENTICATED"}
        assert {spec.role for spec in SERVICES if spec.grpc} <= refused

        assert walled.objects(TENANT) == before
        assert client.get("/api/v1/storage/images/private/secret.png").content == secret


def test_secrets_of_the_mesh_are_files_of_its_owner_alone(walled: RunningMesh) -> None:
    folder = walled.folder
    private = [folder / "credentials.json", folder / "mesh.json", folder / "s3", folder / "nats", folder / "worker"]
    assert [path.name for path in private if path.stat().st_mode & 0o077] == []
    keys = [folder / "s3" / "key.pem", folder / "s3" / "certificate.pem", folder / "nats" / "nats.conf"]
    assert [path.name for path in keys if path.stat().st_mode & 0o077] == []
