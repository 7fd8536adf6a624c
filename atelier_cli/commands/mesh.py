"""`atelier up`, `down`, `status`: a mesh on this machine."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.markup import escape
from rich.table import Table

from atelier_cli.bucket import make_bucket
from atelier_cli.embedded.process import Server, log_tail
from atelier_cli.embedded.prometheus import chosen_prometheus
from atelier_cli.errors import CliError
from atelier_cli.folder import DataFolder, MeshRecord
from atelier_cli.mesh import choose_ports, chosen_cameras, plan
from atelier_cli.model import ChosenModel
from atelier_cli.providers import chosen_providers
from atelier_cli.supervisor import MeshSupervisor
from atelier_cli.terminal import err, out
from atelier_cli.trainer import trained_models, trains

_DETACHED_START_SECONDS: Final = 180.0
_STOP_SECONDS: Final = 120.0

Data = Annotated[
    Path | None, typer.Option("--data", help="Folder of the mesh; $ATELIER_DATA, or ./.data.", show_default=False)
]


def up(
    data: Data = None,
    port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help="Port of the gateway; the last one, or 9000.", show_default=False),
    ] = None,
    *,
    detach: Annotated[bool, typer.Option("--detach", help="Return once the mesh is ready.")] = False,
    providers: Annotated[
        bool,
        typer.Option(
            "--providers", help="Start a worker that calls providers: all that ATELIER_SERVED_PROVIDERS names."
        ),
    ] = False,
    prometheus: Annotated[
        bool, typer.Option("--prometheus", help="Start the Prometheus of this machine, which reads all services.")
    ] = False,
    prometheus_program: Annotated[
        Path | None,
        typer.Option(help="The program to start for that, if not the `prometheus` on PATH.", show_default=False),
    ] = None,
    cameras: Annotated[
        Path | None,
        typer.Option(
            help="Capture photos that land in the folders of this one: each is a camera; $ATELIER_CAMERA_ROOT.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Start a mesh: its servers, and all services. Ctrl-C stops it in order; a restart keeps everything.

    Where the environment has a credential of a provider, a worker that calls providers is started too. The trainer
    shares the device with the worker; ATELIER_TRAINER=off leaves it out.
    """
    read_by = chosen_prometheus(prometheus_program, asked=prometheus)
    watched = chosen_cameras(cameras)
    folder = DataFolder.choose(data)
    folder.make()
    called, trainer = chosen_providers(asked=providers), trains()
    model, trained = ChosenModel.of_environment(), trained_models() if trainer else ()
    if told_of_bucket := make_bucket():
        err.print(told_of_bucket, markup=False)
    if detach:
        options = ["--providers"] if providers else []
        options += ["--prometheus-program", read_by] if read_by else []
        _start_detached(folder, port, [*options, *(["--cameras", watched] if watched else [])])
        return
    with folder.held():
        gateway_port, ports = choose_ports(port, folder.record())
        mesh = plan(
            folder,
            folder.credentials(),
            gateway_port,
            ports,
            called,
            trainer=trainer,
            trained=trained,
            prometheus=read_by,
            cameras=watched,
        )
        pages = mesh.pages

        def changed(state: str) -> None:
            processes = tuple(replace(each, metrics=pages.get(each.name)) for each in supervisor.records())
            record = MeshRecord(
                os.getpid(),
                state,
                mesh.gateway_port,
                dict(mesh.ports),
                processes,
                model=model.place,
                model_download=model.download,
                providers=called,
                trained=trained,
                prometheus=read_by,
                cameras=watched,
            )
            folder.write_record(record)
            if state == "ready" and not told:
                told.append(state)
                _tell_ready(folder, record)

        told: list[str] = []
        supervisor = MeshSupervisor(mesh.stages, changed, err.print)
        err.print(f"Starting a mesh on [bold]{escape(str(folder))}[/bold].")
        supervisor.run()


def down(data: Data = None) -> None:
    """Stop the mesh in order. Its data stays."""
    folder = DataFolder.choose(data)
    if not folder.is_running():
        err.print(f"No mesh runs on {folder}.", markup=False)
        return
    record = folder.running()
    with contextlib.suppress(ProcessLookupError):
        os.kill(record.pid, signal.SIGTERM)
    deadline = time.monotonic() + _STOP_SECONDS
    while folder.is_running():
        if time.monotonic() > deadline:
            raise CliError(f"The mesh on {folder} (process {record.pid}) did not stop within {_STOP_SECONDS:.0f} s.")
        time.sleep(0.05)
    err.print(f"The mesh on {folder} has stopped.", markup=False)


def status(data: Data = None, *, as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Show the processes of the mesh and their health."""
    folder = DataFolder.choose(data)
    try:
        record = folder.running()
    except CliError:
        if as_json:
            sys.stdout.write(json.dumps({"processes": []}) + "\n")
        raise
    rows = _health(folder, record)
    fault = _model_of(record).fault()
    if as_json:
        found = {"processes": rows, "state": record.state, "gateway": record.gateway_url}
        if record.prometheus_url:
            found["prometheus"] = record.prometheus_url
        sys.stdout.write(json.dumps(found | ({"model": fault} if fault else {})) + "\n")
        return
    table = Table(box=None, pad_edge=False)
    for title in ("name", "role", "pid", "health", "restarts"):
        table.add_column(title, justify="right" if title in {"pid", "restarts"} else "left")
    for row, process in zip(rows, record.processes, strict=True):
        colour = "green" if row["health"] == "healthy" else "red"
        health = f"[{colour}]{row['health']}[/{colour}]"
        table.add_row(row["name"], row["role"], str(row["pid"] or "-"), health, str(process.restarts))
    read_by = f", Prometheus at {record.prometheus_url}" if record.prometheus_url else ""
    out.print(f"{folder}: {record.state}, gateway at {record.gateway_url}{read_by}", markup=False)
    out.print(table)
    if fault:
        out.print(f"[yellow]{escape(fault)} Tasks that need it fail.[/yellow]")


def _model_of(record: MeshRecord) -> ChosenModel:
    return ChosenModel(record.model, record.model_download)


def _health(folder: DataFolder, record: MeshRecord) -> list[dict[str, Any]]:
    """Ask every process at once."""
    credentials = folder.existing_credentials()
    servers = plan(
        folder,
        credentials,
        record.gateway_port,
        record.ports,
        record.providers,
        prometheus=record.prometheus,
        cameras=record.cameras,
    ).servers

    def ask(server: Server | None, pid: int | None) -> str:
        if pid is None:
            return "stopped"
        return "healthy" if server is not None and server.ready() else "unhealthy"

    with ThreadPoolExecutor(len(record.processes) or 1) as pool:
        answers = list(pool.map(lambda each: ask(servers.get(each.name), each.pid), record.processes))
    return [
        {"name": each.name, "pid": each.pid, "role": each.role, "health": health}
        | ({} if each.metrics is None else {"metrics": each.metrics})
        for each, health in zip(record.processes, answers, strict=True)
    ]


def _start_detached(folder: DataFolder, port: int | None, options: Sequence[str]) -> None:
    """Start `atelier up` in a session of its own and wait until it is ready."""
    with folder.held():
        choose_ports(port, folder.record())  # printed here, not into a log
    err.print(f"Starting a mesh on [bold]{escape(str(folder))}[/bold].")
    log = folder.log("atelier")
    arguments = ["--data", str(folder.path), *(["--port", str(port)] if port else []), *options]
    with log.open("ab") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "atelier_cli", "up", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
    deadline = time.monotonic() + _DETACHED_START_SECONDS
    while True:
        record = folder.record()
        if record is not None and record.pid == process.pid and record.state == "ready":
            break
        if process.poll() is not None:
            raise CliError(f"The mesh did not start. The end of {log}:\n{log_tail(log)}")
        if time.monotonic() > deadline:
            process.terminate()
            raise CliError(f"The mesh was not ready after {_DETACHED_START_SECONDS:.0f} s; see {log}.")
        time.sleep(0.05)
    # It is not ours to wait for: without this, the interpreter would warn at exit that it still runs.
    process.returncode = 0
    _tell_ready(folder, record)


def _tell_ready(folder: DataFolder, record: MeshRecord) -> None:
    named = f" --data {folder}" if folder.path != DataFolder.choose(None).path else ""
    if fault := _model_of(record).fault():
        err.print(f"[yellow]Model    {escape(fault)} Tasks that need it will fail.[/yellow]")
    err.print(f"Gateway  {record.gateway_url}/docs")
    if record.prometheus_url:
        err.print(f"Figures  {record.prometheus_url}")
    if record.cameras:
        err.print(f"Cameras  {record.cameras}", markup=False)
    if record.providers:
        err.print(f"Calls    {', '.join(record.providers)}")
    err.print(f"Logs     {folder / 'logs'}", markup=False)
    err.print(f'Try      atelier generate "a red dress" -o dress.png{named}', markup=False)
