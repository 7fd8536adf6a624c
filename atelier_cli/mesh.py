"""Which processes make a mesh, and the environment that joins them.

An embedded server is left out where the environment names another: ATELIER_DATABASE_URL, ATELIER_NATS_URL,
ATELIER_S3_ENDPOINT (with ATELIER_S3_ACCESS_KEY and ATELIER_S3_SECRET_KEY).
"""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from atelier_cli import health
from atelier_cli.bucket import DEFAULT_BUCKET
from atelier_cli.embedded.nats import NatsServer
from atelier_cli.embedded.postgres import PostgresServer
from atelier_cli.embedded.process import Launch, Server, StartError, free_ports, is_free
from atelier_cli.embedded.prometheus import MetricsPage, PrometheusServer
from atelier_cli.embedded.s3 import S3Ports, S3Server
from atelier_cli.environment import FILE_SUFFIX, files, given
from atelier_cli.errors import CliError, ExitCode
from atelier_cli.folder import Credentials, DataFolder, MeshRecord
from atelier_cli.model import absolute
from atelier_cli.providers import calls_itself, credentials_of_evaluation, credentials_of_providers
from atelier_cli.trainer import TRAINED_MODELS
from meshkit import certificates, topology
from meshkit.catalog import OWN_PROVIDERS
from meshkit.topology import CALLER, CAPTURE, EVALUATION, GATEWAY, INFERENCE, TRAINER, ServiceSpec

DEFAULT_GATEWAY_PORT: Final = GATEWAY.port
_S3_PARTS: Final = tuple(S3Ports.__dataclass_fields__)
CAMERA_ROOT: Final = "ATELIER_CAMERA_ROOT"
_FILES_OF_CAPTURE: Final = ("ATELIER_CAPTURE_RULES", "ATELIER_CAPTURE_WORKFLOW")
_PROMETHEUS_URL: Final = "ATELIER_PROMETHEUS_URL"

_EVERY_ADDRESS: Final = frozenset({"0.0.0.0", "::"})  # noqa: S104 -- compared with, not bound


def uses(service: str, variable: str) -> bool:
    """Whether a service is given a variable that `atelier up` has, itself or as the name of a file."""
    setting = variable.removesuffix(FILE_SUFFIX)
    if setting in credentials_of_providers():
        if service == EVALUATION.role:
            return setting in credentials_of_evaluation()
        return service == CALLER.role or (service == INFERENCE.role and calls_itself())
    return setting in topology.by_role(service).uses or setting not in topology.joining_settings()


def _port_names() -> tuple[str, ...]:
    """Names of the ports that a mesh needs beside its gateway's."""
    return (
        *("nats", "postgres", PrometheusServer.name),
        *(spec.role for spec in (*topology.addressed(), *topology.OPTIONAL)),
        *(f"s3_{part}" for part in _S3_PARTS),
        *(f"metrics_{spec.role}" for spec in (*topology.SERVICES, *topology.OPTIONAL, CALLER)),
    )


@dataclass(frozen=True, slots=True)
class ServiceProcess:
    """One service of the mesh, run as `python -m module`.

    Attributes:
        environment: Variables that `atelier up` sets for it. It inherits the others, except those that join other
            services to the mesh (`meshkit.topology`).
        metrics: Address of its Prometheus page; None where the mesh did not choose it.
    """

    name: str
    module: str
    log: Path
    environment: Mapping[str, str]
    folder: Path
    serves: Callable[[], bool]
    port_file: Path
    metrics: str | None

    def prepare(self) -> Launch:
        """Forget the address of an earlier run and return how to start."""
        self.port_file.unlink(missing_ok=True)
        return Launch(
            argv=(sys.executable, "-m", self.module),
            log=self.log,
            env=self.environment,
            inherits=partial(uses, self.name),
            cwd=self.folder,
        )

    def ready(self) -> bool:
        """Whether it answers; before it reported its address it is not asked."""
        return self.port_file.exists() and self.serves()


@dataclass(frozen=True, slots=True)
class MeshPlan:
    """The processes in the order of their start: those of a stage start together, and stop in reverse.

    Attributes:
        gateway_port: Where the gateway listens.
        ports: Every other port, by name.
        stages: The processes.
    """

    gateway_port: int
    ports: Mapping[str, int]
    stages: tuple[tuple[Server, ...], ...]

    @property
    def servers(self) -> dict[str, Server]:
        """All processes by name."""
        return {server.name: server for stage in self.stages for server in stage}

    @property
    def pages(self) -> dict[str, str]:
        """Addresses of the Prometheus pages, by the names of the processes that have one."""
        services = (server for server in self.servers.values() if isinstance(server, ServiceProcess))
        return {service.name: service.metrics for service in services if service.metrics is not None}


def choose_ports(wanted: int | None, last: MeshRecord | None) -> tuple[int, dict[str, int]]:
    """Return the gateway's port, and those of the rest: as at the last start where they are free, else new ones.

    Raises:
        CliError: The gateway's port is taken, or there are not enough others.
    """
    gateway = wanted or (last.gateway_port if last else DEFAULT_GATEWAY_PORT)
    if not is_free(gateway):
        raise CliError(f"Port {gateway} is taken by another program; choose one with --port.")
    names = _port_names()
    kept = {name: port for name, port in (last.ports if last else {}).items() if name in names and is_free(port)}
    missing = [name for name in names if name not in kept]
    taken = {gateway, *kept.values()}
    # Some too many, because one of them may be a port that is kept.
    try:
        new = [port for port in free_ports(len(missing) + len(taken)) if port not in taken]
    except StartError as error:
        raise CliError(str(error)) from error
    return gateway, kept | dict(zip(missing, new, strict=False))


def chosen_cameras(named: Path | None) -> str:
    """Return the folder whose folders are cameras, as a whole path; empty where photos are not captured.

    Args:
        named: The folder that the caller names; the environment's where absent.

    Raises:
        CliError: It is no folder.
    """
    chosen = named or (Path(setting) if (setting := given(CAMERA_ROOT)) else None)
    if chosen is None:
        return ""
    if not chosen.is_dir():
        raise CliError(f"{chosen} is no folder: make it, with a folder for each camera.", ExitCode.USAGE)
    return str(chosen.resolve())


def plan(
    folder: DataFolder,
    credentials: Credentials,
    gateway_port: int,
    ports: Mapping[str, int],
    providers: Sequence[str] = (),
    *,
    trainer: bool = True,
    trained: Sequence[str] = (),
    prometheus: str = "",
    cameras: str = "",
) -> MeshPlan:
    """Lay out a mesh on a folder.

    Args:
        folder: The folder.
        credentials: Its secrets.
        gateway_port: Where the gateway is to listen.
        ports: Every other port, by name.
        providers: Providers that a worker of their own is to call; without any there is none.
        trainer: Whether there is a trainer.
        trained: Names of the models that it trains; others are refused where any is known.
        prometheus: The program of a Prometheus that reads the pages of the services; empty for none.
        cameras: Folder whose folders are cameras; empty for a mesh without capture.

    Raises:
        CliError: The environment names an S3 store without its keys, or a file that cannot be read.
    """
    environment, embedded = _backends(folder, credentials, ports)
    environment |= {
        "ATELIER_S3_BUCKET": given("ATELIER_S3_BUCKET") or DEFAULT_BUCKET,
        "ATELIER_AUTH_SECRET": given("ATELIER_AUTH_SECRET") or credentials.auth_secret,
        "ATELIER_PUBLIC_URL": given("ATELIER_PUBLIC_URL") or f"http://127.0.0.1:{gateway_port}",
        **{topology.address_setting(spec.role): f"127.0.0.1:{ports[spec.role]}" for spec in topology.addressed()},
    }
    if model := given("ATELIER_MODEL"):
        # A path is meant from where the user stands.
        environment["ATELIER_MODEL"] = absolute(model)
    if prometheus and not given(_PROMETHEUS_URL):
        environment[_PROMETHEUS_URL] = f"http://127.0.0.1:{ports[PrometheusServer.name]}"

    if cameras:
        environment[CAMERA_ROOT] = cameras
        environment[topology.address_setting(CAPTURE.role)] = f"127.0.0.1:{ports[CAPTURE.role]}"

    own = tuple(spec for spec in topology.SERVICES if trainer or spec is not TRAINER)
    specs = (*own, *((CALLER,) if providers else ()), *((CAPTURE,) if cameras else ()))
    services = tuple(_service(spec, folder, environment, gateway_port, ports, providers, trained) for spec in specs)
    read_by = (_prometheus(folder, prometheus, ports, services),) if prometheus else ()
    last: tuple[Server, ...] = (*read_by, *services)
    return MeshPlan(gateway_port, ports, (embedded, last) if embedded else (last,))


def _prometheus(
    folder: DataFolder, program: str, ports: Mapping[str, int], services: Sequence[ServiceProcess]
) -> PrometheusServer:
    """Return the Prometheus that reads the services' pages; it starts with them, and stops after them."""
    pages = [MetricsPage(one.name, urlsplit(one.metrics).netloc) for one in services if one.metrics]
    name = PrometheusServer.name
    return PrometheusServer(folder / name, ports[name], program, pages, folder.log(name))


def _service(  # noqa: PLR0917 -- what a mesh is laid out from
    spec: ServiceSpec,
    folder: DataFolder,
    environment: Mapping[str, str],
    gateway_port: int,
    ports: Mapping[str, int],
    providers: Sequence[str],
    trained: Sequence[str],
) -> ServiceProcess:
    port_file = folder.run(f"{spec.role}.address")
    # A port that the user names, or has the system choose by 0, is theirs to know.
    page = None if given("ATELIER_METRICS_PORT") else ports.get(f"metrics_{spec.role}")
    listen = f"127.0.0.1:{gateway_port if spec.fronts else ports.get(spec.role, 0)}"
    return ServiceProcess(
        name=spec.role,
        module=spec.module,
        log=folder.log(spec.role),
        environment={
            **{variable: path for variable, path in files().items() if uses(spec.role, variable)},
            **{variable: value for variable, value in environment.items() if variable in spec.uses},
            "PYTHONUNBUFFERED": "1",
            # A worker starts its child by fork and exec; gRPC's handlers around a fork would only fill its log.
            "GRPC_ENABLE_FORK_SUPPORT": "0",
            **_certificate(),
            "ATELIER_LISTEN": listen,
            "ATELIER_PORT_FILE": str(port_file),
            **({} if page is None else {"ATELIER_METRICS_PORT": str(page)}),
            **_own_settings(spec, folder, providers, trained),
        },
        folder=folder.path,
        serves=_probe(spec, listen, port_file),
        port_file=port_file,
        metrics=None if page is None else _page_address(page),
    )


def _own_settings(
    spec: ServiceSpec, folder: DataFolder, providers: Sequence[str], trained: Sequence[str]
) -> dict[str, str]:
    """Return what only this kind of service is told; the user's environment may replace it."""
    own: dict[str, str] = {}
    if spec.is_worker:
        own = {
            "ATELIER_WORKER_NAME": os.environ.get("ATELIER_WORKER_NAME", spec.role),
            "ATELIER_DATA": str(folder / spec.role),  # to a worker, the folder of its attempts and caches
        }
    if spec is CALLER:
        named = os.environ.get("ATELIER_WORKER_NAME")
        own["ATELIER_WORKER_NAME"] = f"{named}/{spec.role}" if named else spec.role
        own["ATELIER_WORKER_PROVIDERS"] = ",".join(providers)
    if spec is topology.TASKS and providers and not given("ATELIER_SERVED_PROVIDERS"):
        own["ATELIER_SERVED_PROVIDERS"] = ",".join(dict.fromkeys((*OWN_PROVIDERS, *providers)))
    if spec is topology.TRAINING and trained:
        own[TRAINED_MODELS] = ",".join(trained)
    if spec is CAPTURE:
        # Meant from where the user stands. What is no file there may be the name of rules that ship.
        named_files = {name: Path(value) for name in _FILES_OF_CAPTURE if (value := given(name))}
        own |= {name: str(path.absolute()) for name, path in named_files.items() if path.is_file()}
    return own


def _certificate() -> dict[str, str]:
    """Return the files of the mesh's certificate, by paths that hold wherever a process stands."""
    return {name: str(Path(path).absolute()) for name in certificates.SETTINGS if (path := given(name))}


def _probe(spec: ServiceSpec, listen: str, port_file: Path) -> Callable[[], bool]:
    if spec.fronts:
        return partial(health.http_serves, f"http://{listen}/health")
    if spec.port:
        return partial(health.grpc_serves, listen, spec.health)
    return partial(health.reported_grpc_serves, port_file, spec.health)


def _page_address(port: int) -> str:
    host = given("ATELIER_METRICS_HOST") or "127.0.0.1"
    if host in _EVERY_ADDRESS:
        host = "127.0.0.1"
    return f"http://[{host}]:{port}/metrics" if ":" in host else f"http://{host}:{port}/metrics"


def _backends(
    folder: DataFolder, credentials: Credentials, ports: Mapping[str, int]
) -> tuple[dict[str, str], tuple[Server, ...]]:
    """Environment of database, NATS and object store, and the embedded servers that it takes."""
    environment: dict[str, str] = {}
    embedded: list[Server] = []
    if url := given("ATELIER_DATABASE_URL"):
        environment["ATELIER_DATABASE_URL"] = url
    else:
        postgres = PostgresServer(
            folder / "postgres", ports["postgres"], credentials.postgres_password, folder.log("postgres")
        )
        environment["ATELIER_DATABASE_URL"] = postgres.dsn()
        embedded.append(postgres)
    if url := given("ATELIER_NATS_URL"):
        environment["ATELIER_NATS_URL"] = url
    else:
        nats = NatsServer(folder / "nats", ports["nats"], credentials.nats_password, folder.log("nats"))
        environment["ATELIER_NATS_URL"] = nats.url
        embedded.append(nats)
    if endpoint := given("ATELIER_S3_ENDPOINT"):
        environment["ATELIER_S3_ENDPOINT"] = endpoint
        for name in ("ATELIER_S3_ACCESS_KEY", "ATELIER_S3_SECRET_KEY"):
            if not given(name):
                raise CliError(f"ATELIER_S3_ENDPOINT is set, so {name} has to be set too.", ExitCode.USAGE)
    else:
        s3 = S3Server(
            folder / "s3",
            S3Ports(**{part: ports[f"s3_{part}"] for part in _S3_PARTS}),
            credentials.s3_access_key,
            credentials.s3_secret_key,
            folder.log("s3"),
            bucket=given("ATELIER_S3_BUCKET") or DEFAULT_BUCKET,
        )
        environment |= {
            "ATELIER_S3_ENDPOINT": s3.endpoint,
            "ATELIER_S3_ACCESS_KEY": s3.access_key,
            "ATELIER_S3_SECRET_KEY": s3.secret_key,
        }
        embedded.append(s3)
    return environment, tuple(embedded)
