"""`atelier admin`: what operators do: workers taken out of work, retention, copies of the mesh."""

import json
import time
from typing import Annotated, Any

import typer
from rich.table import Table

from atelier_cli.client import Gateway
from atelier_cli.commands import backup, requeue, retention
from atelier_cli.commands.mesh import Data
from atelier_cli.errors import CliError
from atelier_cli.folder import DataFolder
from atelier_cli.groups import CommandGroup
from atelier_cli.terminal import out
from atelier_cli.tokens import DEFAULT_TENANT

app = typer.Typer(
    cls=CommandGroup,
    help="Operate the mesh: take workers out of work, say how long what has ended is kept, copy and restore.",
    no_args_is_help=True,
)
app.add_typer(retention.app, name="retention")
app.command("requeue")(requeue.requeue)
# The same as without `admin`.
app.command("backup")(backup.backup)
app.command("restore")(backup.restore)

Tenant = Annotated[str, typer.Option(help="Tenant to act for.")]
WorkerName = Annotated[
    str, typer.Argument(metavar="WORKER", help="Name of a worker, or of one of its pools (WORKER/QUEUE).")
]

_PATH = "/api/v1/scaling"
_SCOPES = ("read", "operator")
_ASK_SECONDS = 0.5


@app.command("workers")
def workers(
    *,
    tenant: Tenant = DEFAULT_TENANT,
    data: Data = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the workers that are alive, and who has cordoned them."""
    with Gateway.of(DataFolder.choose(data), tenant, _SCOPES) as gateway:
        pools = gateway.call("GET", f"{_PATH}/workers")["pools"]
    if as_json:
        out.print_json(json.dumps(pools))
        return
    table = Table(box=None, pad_edge=False)
    for title in ("worker", "queues", "held", "slots", "state"):
        table.add_column(title, no_wrap=title == "worker")
    for pool in pools:
        table.add_row(pool["name"], ", ".join(pool["queues"]), str(pool["held"]), str(pool["slots"]), _state(pool))
    out.print(table)


@app.command("cordon")
def cordon(worker: WorkerName, tenant: Tenant = DEFAULT_TENANT, data: Data = None) -> None:
    """Give a worker no more work; it finishes what it has."""
    with Gateway.of(DataFolder.choose(data), tenant, _SCOPES) as gateway:
        pools = _changed(gateway, "cordon", worker)
    out.print(f"{worker}: cordoned, {_held(pools)} under way")


@app.command("uncordon")
def uncordon(worker: WorkerName, tenant: Tenant = DEFAULT_TENANT, data: Data = None) -> None:
    """Let a worker take work again."""
    with Gateway.of(DataFolder.choose(data), tenant, _SCOPES) as gateway:
        _changed(gateway, "uncordon", worker)
    out.print(f"{worker}: takes work")


@app.command("drain")
def drain(
    worker: WorkerName,
    tenant: Tenant = DEFAULT_TENANT,
    data: Data = None,
    timeout: Annotated[float, typer.Option(help="Seconds to wait at most.", min=0)] = 600.0,
) -> None:
    """Cordon a worker and wait until it has finished what it has; it can be stopped then."""
    until = time.monotonic() + timeout
    with Gateway.of(DataFolder.choose(data), tenant, _SCOPES) as gateway:
        pools = _changed(gateway, "cordon", worker)
        names = {pool["name"] for pool in pools}
        while held := _held(pools):
            if time.monotonic() >= until:
                raise CliError(f"{worker} still has {held} under way; it stays cordoned.")
            time.sleep(_ASK_SECONDS)
            listed = gateway.call("GET", f"{_PATH}/workers", params={"cordoned_only": True})["pools"]
            pools = [pool for pool in listed if pool["name"] in names]
    out.print(f"{worker}: drained")


def _changed(gateway: Gateway, change: str, worker: str) -> list[dict[str, Any]]:
    pools: list[dict[str, Any]] = gateway.call("POST", f"{_PATH}/{change}", json={"worker": worker})["pools"]
    return pools


def _held(pools: list[dict[str, Any]]) -> int:
    return sum(int(pool["held"]) for pool in pools)


def _state(pool: dict[str, Any]) -> str:
    if pool["draining"]:
        return "draining"
    if by := pool["cordoned_by"]:
        return f"cordoned by {'an operator' if by == 'operator' else 'the scheduler'}"
    return "takes work"
