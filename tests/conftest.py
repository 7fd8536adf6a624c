"""Real servers for the tests: started at the first use, on ports the system picks, gone when pytest is."""

import asyncio
import gc
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import hypothesis
import psutil
import psycopg
import pytest
from psycopg import sql
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

from atelier_cli.embedded.nats import NatsServer
from atelier_cli.embedded.postgres import PostgresServer
from atelier_cli.embedded.process import RunningServer, free_ports
from atelier_cli.embedded.s3 import S3Ports, S3Server
from meshkit import topology
from meshkit.migrations import migrate_all

_MEMORY = Path("/dev/shm")
_LEAST_MEMORY = 2 << 30

# Servers are started by fork and exec from a process that speaks gRPC: its handlers around a fork crash the child.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")


# Tests assert behaviour, never time: an example may take long on a busy machine.
hypothesis.settings.register_profile("atelier", deadline=None)
hypothesis.settings.load_profile("atelier")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "long: takes minutes; deselected in the short form that .ci/run takes")
    config.addinivalue_line("markers", "bench: measures, and asserts a bound that a busy machine may miss")


def pytest_collection_finish() -> None:
    """Keep what is loaded by now from every later collection of garbage: it is most of the heap, and none of it goes.

    Models that are freed collect all of it each time, for seconds.
    """
    gc.collect()
    gc.freeze()


class SideBySide(LoadFileScheduling):  # type: ignore[misc] # xdist is untyped
    """Gives each process whole files, and one process all stories: these share meshes, which take much memory."""

    def _split_scope(self, nodeid: str) -> str:
        return "tests/e2e" if nodeid.startswith("tests/e2e/") else nodeid.partition("::")[0]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadFileScheduling | None:
    """Distribute as `SideBySide` does where `--dist loadfile` asks for it, in the order of the files."""
    if config.getvalue("dist") != "loadfile":
        return None
    config.option.loadscopereorder = False  # or the stories, which are few and long, would come last
    return SideBySide(config, log)


@pytest.fixture(scope="session")
def servers_folder() -> Iterator[Path]:
    """A folder that `nobody` may enter: PostgreSQL drops to that user under root, and pytest's own are private."""
    folder = Path(tempfile.mkdtemp(prefix="atelier-tests-"))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres_server(servers_folder: Path) -> Iterator[PostgresServer]:
    """One PostgreSQL for the session; tests take `postgres_dsn`.

    Its data lies in memory where there is room: a test's own database is 650 files, which takes some disks a second.
    """
    in_memory = os.access(_MEMORY, os.W_OK) and _has_room(os.statvfs(_MEMORY))
    folder = Path(tempfile.mkdtemp(prefix="atelier-tests-", dir=_MEMORY if in_memory else servers_folder))
    folder.chmod(0o711)
    server = PostgresServer(
        folder / "postgres",
        free_ports(1)[0],
        secrets.token_urlsafe(12),
        servers_folder / "postgres.log",
        durable=False,
    )
    running = RunningServer(server)
    running.start()
    yield server
    running.stop()
    shutil.rmtree(folder, ignore_errors=True)


def _has_room(disk: os.statvfs_result) -> bool:
    room = min(disk.f_bavail * disk.f_frsize, psutil.virtual_memory().available)
    return room >= _LEAST_MEMORY and not disk.f_flag & os.ST_NOEXEC


@pytest.fixture(scope="session")
def make_database(postgres_server: PostgresServer) -> Callable[..., str]:
    """Makes a database, empty or as a copy of `template`, and gives its DSN."""

    def make(label: str, template: str = "template1") -> str:
        name = f"t_{re.sub('[^a-z0-9]+', '_', label.lower())[-30:]}_{secrets.token_hex(4)}"
        query = sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template))
        with psycopg.connect(postgres_server.dsn("postgres"), autocommit=True) as connection:
            connection.execute(query)
        return postgres_server.dsn(name)

    return make


def drop_database(postgres_server: PostgresServer, dsn: str) -> None:
    name = dsn.rpartition("/")[2]
    with psycopg.connect(postgres_server.dsn("postgres"), autocommit=True) as connection:
        connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture(scope="module")
def postgres_dsn(
    request: pytest.FixtureRequest, make_database: Callable[..., str], postgres_server: PostgresServer
) -> Iterator[str]:
    """An empty database for the test's module, dropped after it."""
    dsn = make_database(str(request.node.name))
    yield dsn
    drop_database(postgres_server, dsn)


@pytest.fixture
def fresh_postgres_dsn(
    request: pytest.FixtureRequest, make_database: Callable[..., str], postgres_server: PostgresServer
) -> Iterator[str]:
    """An empty database for one test, dropped after it."""
    dsn = make_database(str(request.node.name))
    yield dsn
    drop_database(postgres_server, dsn)


@pytest.fixture(scope="session")
def migrated(make_database: Callable[..., str]) -> str:
    """The name of a database with the schemas of all services, to be copied: to migrate takes seconds each time."""
    dsn = make_database("migrated")
    asyncio.run(migrate_all(dsn, [spec.role for spec in topology.OPTIONAL]))
    return dsn.rpartition("/")[2]


@pytest.fixture
def mesh_dsn(
    request: pytest.FixtureRequest,
    migrated: str,
    make_database: Callable[..., str],
    postgres_server: PostgresServer,
) -> Iterator[str]:
    """A database of the test's own with the schemas of all services, dropped after it."""
    dsn = make_database(str(request.node.name), migrated)
    yield dsn
    drop_database(postgres_server, dsn)


class NatsControl:
    """A NATS server that a test may kill, wipe and start again; its address stays."""

    def __init__(self, folder: Path) -> None:
        self._server = NatsServer(folder / "nats", free_ports(1)[0], secrets.token_urlsafe(12), folder / "nats.log")
        self._running = RunningServer(self._server)

    @property
    def url(self) -> str:
        return self._server.url

    def start(self) -> None:
        self._running.start()

    def stop(self) -> None:
        self._running.stop()

    def kill(self) -> None:
        self._running.kill()

    def wipe(self) -> None:
        """Loses its disk; only while it does not run."""
        assert self._running.pid is None, "stop NATS before its disk is wiped"
        self._server.wipe()


@pytest.fixture(scope="session")
def session_nats(servers_folder: Path) -> Iterator[NatsControl]:
    control = NatsControl(servers_folder)
    control.start()
    yield control
    control.stop()


@pytest.fixture
def nats_url(session_nats: NatsControl) -> str:
    """The session's NATS: shared by all tests, so name subjects and durables apart."""
    return session_nats.url


@pytest.fixture
def nats_server(servers_folder: Path) -> Iterator[NatsControl]:
    """A NATS of the test's own, running, for tests that kill or wipe it."""
    folder = Path(tempfile.mkdtemp(dir=servers_folder))
    control = NatsControl(folder)
    control.start()
    yield control
    control.stop()


@dataclass(frozen=True, slots=True)
class S3Store:
    """The session's object store, and the buckets that one module made in it."""

    endpoint: str
    access_key: str
    secret_key: str
    server: S3Server
    buckets: list[str] = field(default_factory=list)

    def bucket(self) -> str:
        """The name of a new, empty bucket."""
        name = f"test-{secrets.token_hex(6)}"
        self.server.client().make_bucket(name)
        self.buckets.append(name)
        return name

    def give_back(self) -> None:
        """Remove the buckets. Each takes a volume, of which a disk has one for a free gigabyte."""
        client = self.server.client()
        for name in self.buckets:
            for each in client.list_objects(name, recursive=True):
                client.remove_object(name, str(each.object_name))
            client.remove_bucket(name)


@pytest.fixture(scope="session")
def s3_server(servers_folder: Path) -> Iterator[S3Server]:
    server = S3Server(
        servers_folder / "s3",
        S3Ports(*free_ports(10)),
        access_key=secrets.token_hex(8),
        secret_key=secrets.token_urlsafe(24),
        log=servers_folder / "s3.log",
    )
    running = RunningServer(server)
    running.start()
    yield server
    running.stop()


@pytest.fixture(scope="module")
def s3(s3_server: S3Server) -> Iterator[S3Store]:
    store = S3Store(s3_server.endpoint, s3_server.access_key, s3_server.secret_key, s3_server)
    yield store
    store.give_back()
