"""`atelier backup`, `atelier restore`: copies of a mesh."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from atelier_cli.commands.mesh import Data
from atelier_cli.embedded.nats import NatsServer
from atelier_cli.embedded.postgres import programs
from atelier_cli.embedded.process import RunningServer, StartError
from atelier_cli.environment import given
from atelier_cli.errors import CliError, ExitCode
from atelier_cli.folder import DataFolder
from atelier_cli.mesh import MeshPlan, ServiceProcess, choose_ports, plan
from atelier_cli.terminal import err

if TYPE_CHECKING:
    from atelier_cli.backup import Stores

Copy = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the copy.")]


def backup(copy: Copy, data: Data = None) -> None:
    """Copy database and objects of a running mesh into a new folder. Work goes on meanwhile."""
    folder = DataFolder.choose(data)
    record = folder.running()
    if copy.exists() and any(copy.iterdir()):
        raise CliError(f"{copy} is not empty; name a new folder.", ExitCode.USAGE)
    copy.mkdir(mode=0o700, parents=True, exist_ok=True)
    mesh = plan(folder, folder.existing_credentials(), record.gateway_port, record.ports)
    with _failures_told():
        copied = _stores(mesh).save(copy)
    err.print(f"Copied the database and {copied.objects} objects ({copied.size} bytes) into {copy}.", markup=False)


def restore(copy: Copy, data: Data = None) -> None:
    """Replace database and objects of a stopped mesh by those of a copy. `atelier up` then goes on from there."""
    folder = DataFolder.choose(data)
    folder.make()
    with folder.held():
        mesh = plan(folder, folder.credentials(), *choose_ports(None, folder.record()))
        with _failures_told(), _servers(mesh):
            copied = _stores(mesh).restore(copy)
    err.print(f"Restored the database and {copied.objects} objects from {copy}.", markup=False)


@contextlib.contextmanager
def _failures_told() -> Iterator[None]:
    import psycopg  # noqa: PLC0415 -- other commands need not load it
    import urllib3  # noqa: PLC0415 -- as above
    from minio.error import MinioException  # noqa: PLC0415 -- as above

    try:
        yield
    except psycopg.Error as error:
        raise CliError(f"The database failed: {error}") from error
    except (MinioException, urllib3.exceptions.HTTPError) as error:
        raise CliError(f"The object store failed: {error}") from error


def _stores(mesh: MeshPlan) -> "Stores":
    from atelier_cli.backup import SETTINGS, Stores  # noqa: PLC0415 -- as above

    tasks = mesh.servers["tasks"]
    if not isinstance(tasks, ServiceProcess):
        raise TypeError(tasks)
    # The keys of a store of the user's own are in this process's environment alone, as services inherit them.
    environment = {name: value for name in SETTINGS if (value := tasks.environment.get(name) or given(name))}
    return Stores.of(environment, programs())


@contextlib.contextmanager
def _servers(mesh: MeshPlan) -> Iterator[None]:
    """Run the embedded database and store. NATS stays empty: what it held told of what is replaced."""
    with contextlib.ExitStack() as stack:
        for server in mesh.servers.values():
            if isinstance(server, ServiceProcess):
                continue
            if isinstance(server, NatsServer):
                server.wipe()
                continue
            running = RunningServer(server)
            stack.callback(running.stop)
            try:
                running.start()
            except StartError as error:
                raise CliError(str(error)) from error
        yield
