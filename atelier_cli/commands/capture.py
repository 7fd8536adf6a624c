"""`atelier capture`: shows cameras, events and alerts, answers alerts, and removes cameras."""

import json
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.table import Table

from atelier_cli.client import Gateway, segment
from atelier_cli.commands.mesh import Data
from atelier_cli.folder import DataFolder
from atelier_cli.groups import CommandGroup
from atelier_cli.terminal import out
from atelier_cli.tokens import DEFAULT_TENANT

app = typer.Typer(cls=CommandGroup, help="Look at cameras, events and alerts, and answer alerts.", no_args_is_help=True)

Tenant = Annotated[str, typer.Option(help="Tenant to act for.")]
Limit = Annotated[int, typer.Option(min=1, max=100, help="Show at most this many.")]
Camera = Annotated[str | None, typer.Option(help="Only of this camera.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
AlertId = Annotated[str, typer.Argument(help="Identifier of the alert.")]

_PATH = "/api/capture"


@app.command("cameras")
def cameras(*, limit: Limit = 100, tenant: Tenant = DEFAULT_TENANT, data: Data = None, as_json: AsJson = False) -> None:
    """List cameras."""
    _show(
        "cameras",
        ("camera_id", "enabled", "status", "last_file_at", "message"),
        data,
        tenant,
        as_json=as_json,
        limit=limit,
    )


@app.command("events")
def events(
    *,
    camera: Camera = None,
    limit: Limit = 20,
    tenant: Tenant = DEFAULT_TENANT,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """List events, newest first."""
    columns = ("event_id", "camera_id", "risk_score", "risk_level", "started_at", "summary")
    _show("events", columns, data, tenant, as_json=as_json, limit=limit, camera_id=camera)


@app.command("alerts")
def alerts(
    *,
    state: Annotated[str | None, typer.Option(help="Only in this state: open, acknowledged, dismissed.")] = None,
    camera: Camera = None,
    limit: Limit = 20,
    tenant: Tenant = DEFAULT_TENANT,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """List alerts, newest first."""
    columns = ("alert_id", "severity", "state", "created_at", "message")
    _show("alerts", columns, data, tenant, as_json=as_json, limit=limit, camera_id=camera, state=state)


@app.command("acknowledge")
def acknowledge(alert_id: AlertId, tenant: Tenant = DEFAULT_TENANT, data: Data = None) -> None:
    """Say that you take care of an alert."""
    _answer(alert_id, "acknowledge", tenant, data)


@app.command("dismiss")
def dismiss(alert_id: AlertId, tenant: Tenant = DEFAULT_TENANT, data: Data = None) -> None:
    """Say that an alert is nothing to take care of."""
    _answer(alert_id, "dismiss", tenant, data)


@app.command("remove")
def remove(
    camera_id: Annotated[str, typer.Argument(help="Name of the camera.")],
    tenant: Tenant = DEFAULT_TENANT,
    data: Data = None,
) -> None:
    """Remove a camera whose folder is gone; what it has brought stays until retention takes it."""
    with Gateway.of(DataFolder.choose(data), tenant) as gateway:
        out.print_json(json.dumps(gateway.call("DELETE", f"{_PATH}/cameras/{segment(camera_id)}")))


def _show(
    what: str, columns: Sequence[str], data: Data, tenant: str, *, as_json: bool, **params: str | int | None
) -> None:
    asked = {name: value for name, value in params.items() if value is not None}
    with Gateway.of(DataFolder.choose(data), tenant) as gateway:
        items = gateway.call("GET", f"{_PATH}/{what}", params=asked)["items"]
    if as_json:
        out.print_json(json.dumps(items))
        return
    table = Table(box=None, pad_edge=False)
    for title in columns:
        table.add_column(title.removesuffix("_id"), no_wrap=title.endswith("_id"))
    for one in items:
        table.add_row(*("" if one[name] is None else str(one[name]) for name in columns))
    out.print(table, markup=False)


def _answer(alert_id: str, answer: str, tenant: str, data: Data) -> None:
    with Gateway.of(DataFolder.choose(data), tenant) as gateway:
        out.print_json(json.dumps(gateway.call("POST", f"{_PATH}/alerts/{segment(alert_id)}/{answer}")))
