"""`atelier task`: looks at tasks and cancels them."""

import json
from typing import Annotated, Any

import typer
from rich.table import Table

from atelier_cli.client import Gateway
from atelier_cli.commands.follow import follow, require_completed
from atelier_cli.commands.mesh import Data
from atelier_cli.folder import DataFolder
from atelier_cli.terminal import out
from atelier_cli.tokens import DEFAULT_TENANT

app = typer.Typer(help="Look at tasks, watch them, cancel them.", no_args_is_help=True)

TaskId = Annotated[str, typer.Argument(help="Identifier of the task.")]
Tenant = Annotated[str, typer.Option(help="Tenant to act for.")]


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
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Show at most this many.")] = 20,
    skip: Annotated[int, typer.Option(min=0, help="Skip this many.")] = 0,
    tenant: Tenant = DEFAULT_TENANT,
    data: Data = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List tasks, newest first."""
    with Gateway.of(DataFolder.choose(data), tenant) as gateway:
        tasks = gateway.tasks(status=status, task_type=task_type, limit=limit, skip=skip)
    if as_json:
        out.print_json(json.dumps(tasks))
        return
    table = Table(box=None, pad_edge=False)
    for title in ("id", "type", "status", "created", "what"):
        table.add_column(title, no_wrap=title != "what")
    for task in tasks:
        what = str(task.get("prompt") or task.get("origin_reference") or "")
        table.add_row(task["id"], task["task_type"], task["status"], str(task["created_at"])[:19], what[:60])
    out.print(table)


@app.command("watch")
def watch(task_id: TaskId, tenant: Tenant = DEFAULT_TENANT, data: Data = None) -> None:
    """Follow a task until it has ended, then print it."""
    with Gateway.of(DataFolder.choose(data), tenant) as gateway:
        task = follow(gateway, task_id, task_id)
    _show(task)
    require_completed(task)


@app.command("cancel")
def cancel(task_id: TaskId, tenant: Tenant = DEFAULT_TENANT, data: Data = None) -> None:
    """Cancel a task; cancelling a cancelled one changes nothing."""
    with Gateway.of(DataFolder.choose(data), tenant) as gateway:
        task = gateway.cancel(task_id)
    out.print(f"{task['id']} {task['status']}")
