"""Several replicas of every service on one PostgreSQL, NATS and object store.

Addresses are lists (`ipv4:a,b`), so every channel of the mesh spreads its calls, as over a headless Service.
"""

import contextlib
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atelier_cli import health
from atelier_cli.embedded.process import Launch, RunningServer, free_ports, nothing_of_the_mesh
from meshkit import topology
from meshkit.auth import TokenIssuer
from meshkit.health import REPLICA
from meshkit.topology import GATEWAY, INFERENCE, MONITORING, TASKS, TRAINING, WORKFLOWS, ServiceSpec
from tests.e2e.harness import NOOP_ENVIRONMENT, MeshView

SECRET = secrets.token_urlsafe(32)
# In the order in which an upgrade replaces them.
MANY: Mapping[ServiceSpec, int] = {TASKS: 2, WORKFLOWS: 2, TRAINING: 2, MONITORING: 2, GATEWAY: 3, INFERENCE: 4}
PAIRS: Mapping[ServiceSpec, int] = {TASKS: 2, WORKFLOWS: 2, TRAINING: 1, MONITORING: 1, GATEWAY: 2, INFERENCE: 2}
# How long a channel may take until it has found a replica again that was away.
SETTLE_SECONDS = 2.5


def sources(folder: Path | None) -> dict[str, str]:
    """Have a process run the version in a folder; the one that is tested where there is none."""
    return {} if folder is None else {"PYTHONPATH": f"{folder}{os.pathsep}{folder / 'gen'}"}


@dataclass
class Replica:
    """One process among its like.

    Attributes:
        name: What it is called, as `tasks-0`.
        spec: Its service.
        port: Where it listens; 0 where nobody calls it.
        folder: Where it writes.
        environment: What it is told.
        source: Folder of the version that it runs; None for the one that is tested.
    """

    name: str
    spec: ServiceSpec
    port: int
    folder: Path
    environment: dict[str, str]
    source: Path | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def _port_file(self) -> Path:
        return self.folder / "address"

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def prepare(self) -> Launch:
        """Forget the address of an earlier run and say how to start."""
        self.folder.mkdir(exist_ok=True)
        self._port_file.unlink(missing_ok=True)
        return Launch(
            argv=(sys.executable, "-m", self.spec.module),
            log=self.log,
            env={**self.environment, **sources(self.source), "ATELIER_PORT_FILE": str(self._port_file)},
            inherits=nothing_of_the_mesh,
            cwd=self.folder,
        )

    def ready(self) -> bool:
        """Ask what a probe of readiness asks."""
        if not self._port_file.exists():
            return False
        if self.spec.fronts:
            return health.http_serves(f"http://{self.address}/health/live")
        return health.reported_grpc_serves(self._port_file, REPLICA if self.port else "")


@dataclass
class Restart:
    """One process that was stopped and started again.

    Attributes:
        name: What it is called.
        stopped: Seconds to its end.
        started: Seconds from there until it served.
    """

    name: str
    stopped: float
    started: float


class Fleet(MeshView):
    """All processes of a mesh with replicas.

    Args:
        folder: Where they write.
        backends: Addresses and keys of PostgreSQL, NATS and the object store.
        counts: How many of each service.
        source: Folder of the version that they run at first; None for the one that is tested.
        own: What single replicas are told in place of `joined`, by their names.
    """

    def __init__(
        self,
        folder: Path,
        backends: Mapping[str, str],
        counts: Mapping[ServiceSpec, int],
        source: Path | None = None,
        own: Mapping[str, Mapping[str, str]] | None = None,
    ) -> None:
        ports = iter(free_ports(sum(counts.values())))
        taken = {spec: [next(ports) if spec.port else 0 for _ in range(count)] for spec, count in counts.items()}
        addresses = {
            topology.address_setting(spec.role): "ipv4:" + ",".join(f"127.0.0.1:{port}" for port in found)
            for spec, found in taken.items()
            if spec.port and not spec.fronts
        }
        self.joined = {**backends, **addresses, "ATELIER_AUTH_SECRET": SECRET}
        self.replicas: dict[str, Replica] = {}
        self.running: dict[str, RunningServer] = {}
        # Exit codes of processes that were told to stop.
        self.ends: dict[str, list[int]] = {}
        for spec, found in taken.items():
            for number, port in enumerate(found):
                name = f"{spec.role}-{number}"
                path = folder / name
                environment = {
                    **NOOP_ENVIRONMENT,
                    **self.environment_of(spec.role),
                    "PYTHONUNBUFFERED": "1",
                    "GRPC_ENABLE_FORK_SUPPORT": "0",
                    "ATELIER_LISTEN": f"127.0.0.1:{port}",
                    "ATELIER_WORKER_NAME": name,
                    **({"ATELIER_DATA": str(path)} if spec.is_worker else {}),
                    **(own or {}).get(name, {}),
                }
                replica = Replica(name, spec, port, path, environment, source)
                self.replicas[name] = replica
                self.running[name] = RunningServer(replica)

    @property
    def url(self) -> str:
        return self.gateways[0]

    @property
    def gateways(self) -> list[str]:
        return [f"http://{each.address}" for each in self.of(GATEWAY)]

    def of(self, spec: ServiceSpec) -> list[Replica]:
        """All replicas of a service."""
        return [each for each in self.replicas.values() if each.spec is spec]

    def token(self, tenant: str = "default", scopes: Iterable[str] = ("read", "write")) -> str:
        return TokenIssuer(SECRET).issue(f"user-of-{tenant}", tenant, tuple(scopes), 3600)

    def environment_of(self, role: str) -> Mapping[str, str]:
        uses = topology.by_role(role).uses
        return {name: value for name, value in self.joined.items() if name in uses}

    def pid(self, name: str) -> int:
        """The process of a replica that runs."""
        found = self.running[name].pid
        assert found is not None, f"{name} does not run"
        return found

    def start(self) -> None:
        """Start all of them, and wait until each takes calls. The calling thread has to outlive them."""
        for each in self.running.values():
            each.launch()
        for each in self.running.values():
            each.wait_ready()

    def stop(self) -> None:
        """Stop all of them, those first that call others."""
        with ThreadPoolExecutor(8) as pool:
            for spec in (GATEWAY, MONITORING, INFERENCE, WORKFLOWS, TRAINING, TASKS):
                list(pool.map(lambda replica: self.running[replica.name].stop(), self.of(spec)))

    def wave(self, number: int) -> list[str]:
        """Name the replica of each service that has this number."""
        return [name for name in self.replicas if name.endswith(f"-{number}")]

    def migrate(self) -> None:
        """Bring the schemas to the version that is tested, as a Job does before an upgrade."""
        subprocess.run(
            [sys.executable, "-m", "meshkit.migrations"], env={**os.environ, **self.joined}, check=True, timeout=120
        )

    def restart(self, names: Sequence[str], source: Path | None = None) -> list[Restart]:
        """Stop some in order, and start them again.

        Args:
            names: The replicas; more than one stop and start side by side.
            source: The version that they run from now on.
        """
        began = time.monotonic()
        ended: dict[str, float] = {}

        def end(name: str) -> None:
            code = self.running[name].stop()
            ended[name] = time.monotonic()
            self.ends.setdefault(name, []).append(-1 if code is None else code)

        with ThreadPoolExecutor(len(names)) as pool:
            list(pool.map(end, names))
        for name in names:
            self.replicas[name].source = source
            # From this thread: a process is tied to the thread that started it.
            self.running[name].launch()
        done = []
        for name in names:
            self.running[name].wait_ready()
            done.append(Restart(name, ended[name] - began, time.monotonic() - ended[name]))
        return done


def backends(dsn: str, nats_url: str, s3: Any, bucket: str) -> dict[str, str]:
    """What joins services to the servers of the tests."""
    return {
        "ATELIER_DATABASE_URL": dsn,
        "ATELIER_NATS_URL": nats_url,
        "ATELIER_S3_ENDPOINT": s3.endpoint,
        "ATELIER_S3_ACCESS_KEY": s3.access_key,
        "ATELIER_S3_SECRET_KEY": s3.secret_key,
        "ATELIER_S3_BUCKET": bucket,
    }


Started = Callable[..., Fleet]


@contextlib.contextmanager
def fleets(folder: Path) -> Iterator[Started]:
    """Starts fleets below a folder; all are stopped at the end, and their files are gone."""
    with contextlib.ExitStack() as stack:

        def start(joined: Mapping[str, str], **more: Any) -> Fleet:
            path = folder / f"fleet-{time.monotonic_ns()}"
            path.mkdir()
            stack.callback(shutil.rmtree, path, ignore_errors=True)
            fleet = Fleet(path, joined, **more)
            stack.callback(fleet.stop)
            fleet.start()
            return fleet

        yield start
