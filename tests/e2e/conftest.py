"""Meshes for the stories: one for all stories that leave it intact, and others with settings of their own."""

import asyncio
import contextlib
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from atelier_cli.embedded.postgres import PostgresServer
from atelier_cli.embedded.process import RunningServer, free_ports
from atelier_cli.folder import DataFolder
from meshkit import topology
from meshkit.migrations import migrate_all
from tests.collector import Collector, collecting
from tests.e2e.harness import DEVICE_ENVIRONMENT, NOOP_ENVIRONMENT, RunningMesh
from tests.providers.called import CalledProviders, called_providers

StartMesh = Callable[..., RunningMesh]


@pytest.fixture(scope="session")
def begun(servers_folder: Path) -> DataFolder:
    """The data of a mesh that has not begun to work: to make its database takes a third of a mesh's first start."""
    folder = DataFolder(servers_folder / "begun")
    folder.make()
    password = folder.credentials().postgres_password
    server = PostgresServer(folder / "postgres", free_ports(1)[0], password, folder.log("postgres"))
    running = RunningServer(server)
    running.start()
    asyncio.run(migrate_all(server.dsn(), [spec.role for spec in topology.OPTIONAL]))
    running.stop()
    return folder


@contextlib.contextmanager
def started_meshes(servers_folder: Path, begun: DataFolder) -> Iterator[StartMesh]:
    """Starts meshes; all are stopped at the end."""
    with contextlib.ExitStack() as stack:

        def start(**environment: str) -> RunningMesh:
            folder = Path(tempfile.mkdtemp(dir=servers_folder, prefix="mesh-"))
            folder.chmod(0o711)
            subprocess.run(["cp", "-a", begun / "postgres", begun / "credentials.json", folder], check=True)
            mesh = RunningMesh(folder, {**NOOP_ENVIRONMENT, **environment})
            stack.callback(mesh.down)
            mesh.up()
            return mesh

        yield start


@pytest.fixture(scope="module")
def start_mesh(servers_folder: Path, begun: DataFolder) -> Iterator[StartMesh]:
    """Starts meshes for the module; a mesh at rest costs a twentieth of a core, so that none outlives its tests."""
    with started_meshes(servers_folder, begun) as start:
        yield start


@pytest.fixture(scope="session")
def start_session_mesh(servers_folder: Path, begun: DataFolder) -> Iterator[StartMesh]:
    """Starts meshes for the whole session."""
    with started_meshes(servers_folder, begun) as start:
        yield start


@pytest.fixture(scope="session")
def collector() -> Iterator[Collector]:
    """Takes the spans of `mesh` and `device_mesh`."""
    with collecting() as running:
        yield running


@pytest.fixture(scope="session")
def hook_port() -> int:
    """Where `mesh` may send webhooks to."""
    return free_ports(1)[0]


@pytest.fixture(scope="session")
def mesh(collector: Collector, hook_port: int, start_session_mesh: StartMesh) -> RunningMesh:
    """The mesh of all stories: its worker takes NOOP tasks alone. Keep tenants apart.

    It records the traces that callers ask it to record, and no others.
    """
    return start_session_mesh(
        ATELIER_OTLP_ENDPOINT=collector.url,
        ATELIER_TRACE_RATIO="0",
        ATELIER_FETCH_ALLOW_PRIVATE=f"127.0.0.1:{hook_port}",
    )


@pytest.fixture(scope="session")
def called() -> Iterator[CalledProviders]:
    """Servers of the providers that `device_mesh` calls."""
    with called_providers() as running:
        yield running


@pytest.fixture(scope="session")
def device_mesh(start_session_mesh: StartMesh, called: CalledProviders, collector: Collector) -> RunningMesh:
    """A mesh that executes every type on its device, one batch at a time, and calls providers. Keep tenants apart.

    It records traces as `mesh` does.
    """
    traces = {"ATELIER_OTLP_ENDPOINT": collector.url, "ATELIER_TRACE_RATIO": "0"}
    return start_session_mesh(**DEVICE_ENVIRONMENT, **called.environment, **traces)
