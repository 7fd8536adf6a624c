"""`atelier task`: looks at tasks, fetches their pictures, cancels them."""

import datetime as dt
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.table import Table
from rich.text import Text

from atelier_cli.client import Gateway
from atelier_cli.commands.follow import command, follow, require_completed, told_on_interrupt
from atelier_cli.commands.mesh import Data
from atelier_cli.errors import CliError, ExitCode
from atelier_cli.folder import DataFolder
from atelier_cli.groups import CommandGroup
from atelier_cli.results import download_all, require_folder, task_files
from atelier_cli.terminal import out
from atelier_cli.tokens import DEFAULT_TENANT
from meshkit.catalog import TASK_TYPES

app = typer.Typer(
    cls=CommandGroup, help="Look at tasks, watch them, fetch their pictures, cancel them.", no_args_is_help=True
)

TaskId = Annotated[str, typer.Argument(help="Identifier of the task.")]
Tenant = Annotated[str, typer.Option(help="Tenant to act for.")]

_PAGE: Final = 200
# Below this width the type has no column of its own, so that the prompt keeps room.
_WIDE: Final = 110
_GAP: Final = 2
_SPAN: Final = re.compile(r"(\d{1,6})\s*(s|m|min|h|d|w)")
_SECONDS: Final = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400, "w": 604_800}


def _show(task: dict[str, Any]) -> None:
    out.print_json(json.dumps(task))


@app.command("get")
def get(task_id: TaskId, tenant: Tenant = DEFAULT_TENANT, data: Data = None) -> None:
    """Print a task as JSON."""
    with Gateway.of(DataFolder.choose(data), tenant) as gateway:
        _show(gateway.task(task_id))


@app.command("list")
def list_tasks(
    *,
    status: Annotated[str | None, typer.Option(help="Only of this state: PENDING, EXECUTING, COMPLETED...")] = None,
    task_type: Annotated[str | None, typer.Option("--type", help="Only of this type: GENERATION...")] = None,
    since: Annotated[
        str | None, typer.Option(help="Only those made since: 30m, 2h, 7d, or 2026-11-26, 2026-11-26T10:00.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Show at most this many.")] = 20,
    skip: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Skip this many.")] = 0,
    tenant: Tenant = DEFAULT_TENANT,
    data: Data = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List tasks, newest first."""
    now = dt.datetime.now(dt.UTC)
    oldest = moment(since, now) if since is not None else None
    filters = {"status": status and status.upper(), "task_type": task_type and task_type.upper()}
    with Gateway.of(DataFolder.choose(data), tenant) as gateway:
        tasks = list(_listed(gateway, filters, oldest, limit, skip))
    if as_json:
        out.print_json(json.dumps(tasks))
    else:
        out.print(table(tasks, now, out.width))


def table(tasks: list[dict[str, Any]], now: dt.datetime, width: int) -> Table:
    """Return tasks as a table; identifiers and states are whole, what does not fit is cut from the prompts."""
    wide = width >= _WIDE
    titles = ("id", *(("type",) if wide else ()), "status", "age")
    rows = [
        (each["id"], *((each["task_type"],) if wide else ()), each["status"], age(each["created_at"], now))
        for each in tasks
    ]
    widths = [max(len(cell) for cell in column) for column in zip(titles, *rows, strict=True)]
    room = max(width - sum(widths) - _GAP * len(widths), 1)
    found = Table(box=None, pad_edge=False)
    for title, cells in zip(titles, widths, strict=True):
        found.add_column(title, no_wrap=True, width=cells, justify="right" if title == "age" else "left")
    found.add_column("what", no_wrap=True)
    for task, row in zip(tasks, rows, strict=True):
        what = Text(_what(task, wide=wide))
        what.truncate(room, overflow="ellipsis")
        found.add_row(*row, what)
    return found


def _what(task: dict[str, Any], *, wide: bool) -> str:
    """Return the prompt, the reference or the first picture, in a line; also an unusual type that has no column."""
    text = str(task.get("prompt") or task.get("origin_reference") or _first_picture(task))
    if not wide and task["task_type"] != "GENERATION":
        text = f"{task['task_type']} {text}"
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


def _first_picture(task: dict[str, Any]) -> str:
    """Return where the first picture lies that a task works on; empty where it has none."""
    known = TASK_TYPES.get(task["task_type"])
    for each in known.inputs if known else ():
        if given := task.get(each.public):
            return str(given[0] if isinstance(given, list) else given)
    return ""


@app.command("download")
def download(
    task_id: TaskId,
    *,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder to save into; it is made if it is not there.")
    ] = Path(),
    tenant: Tenant = DEFAULT_TENANT,
    data: Data = None,
) -> None:
    """Save the pictures of a completed task, and print where they are."""
    with Gateway.of(DataFolder.choose(data), tenant) as gateway:
        files = task_files(gateway.task(task_id), output)
        require_folder(output)
        for place in download_all(gateway, files):
            out.print(str(place), markup=False)


@app.command("watch")
def watch(task_id: TaskId, tenant: Tenant = DEFAULT_TENANT, data: Data = None) -> None:
    """Follow a task until it has ended, then print it. Ctrl-C ends the following, not the task."""
    folder = DataFolder.choose(data)
    with (
        Gateway.of(folder, tenant) as gateway,
        told_on_interrupt(f"Task {task_id}", command(f"task watch {task_id}", tenant, folder)),
    ):
        task = follow(gateway, task_id, task_id)
    _show(task)
    require_completed(task)


@app.command("cancel")
def cancel(task_id: TaskId, tenant: Tenant = DEFAULT_TENANT, data: Data = None) -> None:
    """Cancel a task; cancelling a cancelled one changes nothing."""
    with Gateway.of(DataFolder.choose(data), tenant) as gateway:
        task = gateway.cancel(task_id)
    out.print(f"{task['id']} {task['status']}")


def moment(text: str, now: dt.datetime) -> dt.datetime:
    """Return the moment that `--since` names: a span before now, or a date or time, which is local without a zone.

    Raises:
        CliError: It is neither.
    """
    try:
        if span := _SPAN.fullmatch(text.strip().lower()):
            return now - dt.timedelta(seconds=int(span[1]) * _SECONDS[span[2]])
        return dt.datetime.fromisoformat(text.strip()).astimezone(dt.UTC)
    except (ValueError, OverflowError):
        message = f"--since {text!r} is no moment; right are 30m, 2h, 7d, 2026-11-26 and 2026-11-26T10:00."
        raise CliError(message, ExitCode.USAGE) from None


def age(created_at: str, now: dt.datetime) -> str:
    """Return how long ago something was made, in its largest unit."""
    seconds = max((now - dt.datetime.fromisoformat(created_at)).total_seconds(), 0)
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length:.0f} {unit}"
    return f"{seconds:.0f} s"


def _listed(
    gateway: Gateway, filters: dict[str, str | None], oldest: dt.datetime | None, limit: int, skip: int
) -> Iterator[dict[str, Any]]:
    """Yield tasks page by page: as many as asked for, and none older than asked for."""
    while limit > 0:
        page = gateway.tasks(**filters, limit=min(limit, _PAGE), skip=skip)
        for task in page:
            if oldest is not None and dt.datetime.fromisoformat(task["created_at"]) < oldest:
                return
            yield task
        if len(page) < min(limit, _PAGE):
            return
        limit -= len(page)
        skip += len(page)
