"""The data folder: everything that one mesh keeps on this machine.

DIR/credentials.json   random secrets, 0600
DIR/mesh.json          ports, processes, the gateway's address; written by the supervisor alone
DIR/lock               held by the supervisor while the mesh runs
DIR/logs/              one log per process
DIR/run/               addresses that services report
DIR/{nats,postgres,s3} data of the embedded servers
DIR/prometheus         configuration and figures of the Prometheus, if there is one
"""

import contextlib
import fcntl
import json
import os
import secrets
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from atelier_cli.errors import CliError, ExitCode

DEFAULT_FOLDER = Path(".data")
_SECRET_BYTES = 32
# `is_running` of another command holds the lock for a moment too.
_LOCK_PATIENCE_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Credentials:
    """The secrets of one mesh, drawn at its first start."""

    nats_password: str
    postgres_password: str
    s3_access_key: str
    s3_secret_key: str
    auth_secret: str

    @classmethod
    def draw(cls) -> "Credentials":
        """Return new random ones."""
        return cls(
            nats_password=secrets.token_urlsafe(_SECRET_BYTES),
            postgres_password=secrets.token_urlsafe(_SECRET_BYTES),
            s3_access_key=secrets.token_hex(10),
            s3_secret_key=secrets.token_urlsafe(_SECRET_BYTES),
            auth_secret=secrets.token_urlsafe(_SECRET_BYTES),
        )


@dataclass(frozen=True, slots=True)
class ProcessRecord:
    """One process as `mesh.json` shows it.

    Attributes:
        name: Its name, unique in the mesh.
        role: gateway, tasks, worker, nats, postgres, s3, prometheus.
        pid: Its process id; None while it is down.
        restarts: How often it was restarted.
        metrics: Address of its Prometheus page, if the mesh knows one.
    """

    name: str
    role: str
    pid: int | None
    restarts: int
    metrics: str | None = None


@dataclass(frozen=True, slots=True)
class MeshRecord:
    """What the supervisor records about a mesh.

    Attributes:
        pid: The supervisor.
        state: starting, ready, stopping or stopped.
        gateway_port: Where the gateway listens on 127.0.0.1.
        ports: Every other port, by name; kept over restarts.
        processes: The processes.
        model: The worker's default model, a folder or a hub's name; empty for the one that ships.
        model_download: Whether a hub's name may be fetched.
        providers: Providers that a worker of their own calls.
        trained: Names of the models that its trainer trains; empty where that is not known.
        prometheus: The program of the Prometheus that reads its pages; empty where there is none.
        cameras: Folder whose folders are cameras; empty where photos are not captured.
    """

    pid: int
    state: str
    gateway_port: int
    ports: dict[str, int] = field(default_factory=dict)
    processes: tuple[ProcessRecord, ...] = ()
    model: str = ""
    model_download: bool = False
    providers: tuple[str, ...] = ()
    trained: tuple[str, ...] = ()
    prometheus: str = ""
    cameras: str = ""

    @property
    def gateway_url(self) -> str:
        """The gateway's address."""
        return f"http://127.0.0.1:{self.gateway_port}"

    @property
    def prometheus_url(self) -> str | None:
        """The address of its Prometheus; None where there is none."""
        return f"http://127.0.0.1:{self.ports['prometheus']}" if self.prometheus else None

    @classmethod
    def parse(cls, data: dict[str, Any]) -> "MeshRecord":
        """Read it from JSON."""
        processes = tuple(ProcessRecord(**each) for each in data["processes"])
        lists = {name: tuple(data.get(name, ())) for name in ("providers", "trained")}
        return cls(**{**data, "processes": processes, **lists})


class DataFolder:
    """One mesh's folder."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()

    @classmethod
    def choose(cls, path: Path | None) -> "DataFolder":
        """Return the folder given, or $ATELIER_DATA, or ./.data."""
        return cls(path or Path(os.environ.get("ATELIER_DATA") or DEFAULT_FOLDER))

    def __str__(self) -> str:
        with contextlib.suppress(ValueError):
            return str(self.path.relative_to(Path.cwd()))
        return str(self.path)

    def log(self, name: str) -> Path:
        """Return the log file of a process."""
        return self.path / "logs" / f"{name}.log"

    def run(self, name: str) -> Path:
        """Return a file in which a process reports its address."""
        return self.path / "run" / name

    def make(self) -> None:
        """Make the folder and its parts.

        Raises:
            CliError: It cannot be made or written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            # Under root PostgreSQL is another user that has to pass through; what is secret is 0600 or in 0700 folders.
            self.path.chmod(0o711 if os.geteuid() == 0 else 0o700)
            for part in ("logs", "run", "worker", "providers", "trainer"):
                (self.path / part).mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise CliError(f"The data folder {self} cannot be made: {error.strerror}.") from error

    def credentials(self) -> Credentials:
        """Return the mesh's secrets; drawn and stored at the first call."""
        file = self.path / "credentials.json"
        if not file.exists():
            write_private(file, json.dumps(asdict(Credentials.draw()), indent=2))
        return self.existing_credentials()

    def existing_credentials(self) -> Credentials:
        """Return the mesh's secrets.

        Raises:
            CliError: No mesh was ever started on the folder, or they cannot be read.
        """
        try:
            return Credentials(**json.loads((self.path / "credentials.json").read_text()))
        except FileNotFoundError:
            raise CliError(f"No mesh was started on {self} yet; `atelier up` does.", ExitCode.NOT_RUNNING) from None
        except PermissionError:
            raise CliError(f"The credentials in {self} belong to another user.") from None
        except (TypeError, ValueError) as error:
            raise CliError(f"{self / 'credentials.json'} is damaged.") from error

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def record(self) -> MeshRecord | None:
        """Return what the last supervisor wrote; None before the first start."""
        try:
            return MeshRecord.parse(json.loads((self.path / "mesh.json").read_text()))
        except FileNotFoundError:
            return None
        except (KeyError, TypeError, ValueError) as error:
            raise CliError(
                f"{self / 'mesh.json'} is damaged; stop the mesh, delete the file and start again."
            ) from error

    def write_record(self, record: MeshRecord) -> None:
        """Store the supervisor's view."""
        write_private(self.path / "mesh.json", json.dumps(asdict(record), indent=2))

    def is_running(self) -> bool:
        """Whether a supervisor holds the folder."""
        try:
            with (self.path / "lock").open() as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False

    def running(self) -> MeshRecord:
        """Return the record of the mesh that runs here.

        Raises:
            CliError: None does.
        """
        record = self.record() if self.is_running() else None
        if record is None:
            raise CliError(f"No mesh runs on {self}. `atelier up` starts one.", ExitCode.NOT_RUNNING)
        return record

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Lock the folder for one supervisor. The kernel releases the lock when the process dies, however it dies.

        Raises:
            CliError: Another one holds it.
        """
        # Never inherited: a child that outlived a killed supervisor would keep the lock for ever.
        descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            deadline = time.monotonic() + _LOCK_PATIENCE_SECONDS
            while not _try_lock(descriptor):
                if time.monotonic() > deadline:
                    record = self.record()
                    where = f" at {record.gateway_url} (process {record.pid})" if record else ""
                    raise CliError(f"A mesh already runs on {self}{where}. `atelier down` stops it.")
                time.sleep(0.02)
            yield
        finally:
            os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def write_private(file: Path, text: str) -> None:
    """Write a file that only its owner reads, whole or not at all."""
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as stream:
        stream.write(text + "\n")
    draft.replace(file)
