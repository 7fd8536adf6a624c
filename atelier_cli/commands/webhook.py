"""`atelier webhook`: shows deliveries of webhooks, sends them again, shows and rotates the signing secret."""

import json
from typing import Annotated, Any

import typer
from rich.table import Table

from atelier_cli.client import Gateway, segment
from atelier_cli.commands.mesh import Data
from atelier_cli.folder import DataFolder
from atelier_cli.groups import CommandGroup
from atelier_cli.terminal import out
from atelier_cli.tokens import DEFAULT_TENANT

app = typer.Typer(
    cls=CommandGroup, help="Look at webhooks, send them again, get the secret that signs them.", no_args_is_help=True
)

DeliveryId = Annotated[str, typer.Argument(help="Identifier of the delivery.")]
Tenant = Annotated[str, typer.Option(help="Tenant to act for.")]

_PATH = "/api/v1/webhooks"


@app.command("list")
def list_deliveries(
    *,
    status: Annotated[str | None, typer.Option(help="Only of this state: PENDING, DELIVERED, FAILED.")] = None,
    entity: Annotated[str | None, typer.Option(help="Only of this task, workflow or training job.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Show at most this many.")] = 20,
    skip: Annotated[int, typer.Option(min=0, help="Skip this many.")] = 0,
    tenant: Tenant = DEFAULT_TENANT,
    data: Data = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List deliveries, newest first."""
    with Gateway.of(DataFolder.choose(data), tenant) as gateway:
        deliveries = gateway.deliveries(status=status, entity_id=entity, limit=limit, skip=skip)
    if as_json:
        out.print_json(json.dumps(deliveries))
        return
    table = Table(box=None, pad_edge=False)
    for title in ("id", "event", "status", "attempts", "why", "url"):
        table.add_column(title, no_wrap=title == "id")
    for one in deliveries:
        table.add_row(one["id"], one["event_type"], one["status"], str(one["attempt_count"]), _why(one), one["url"])
    out.print(table)


@app.command("get")
def get(delivery_id: DeliveryId, tenant: Tenant = DEFAULT_TENANT, data: Data = None) -> None:
    """Print a delivery with its body and every attempt as JSON."""
    with Gateway.of(DataFolder.choose(data), tenant) as gateway:
        out.print_json(json.dumps(gateway.call("GET", f"{_PATH}/deliveries/{segment(delivery_id)}")))


@app.command("redeliver")
def redeliver(delivery_id: DeliveryId, tenant: Tenant = DEFAULT_TENANT, data: Data = None) -> None:
    """Send a delivery again at once; this enables an address that answered 410."""
    with Gateway.of(DataFolder.choose(data), tenant) as gateway:
        delivery = gateway.call("POST", f"{_PATH}/deliveries/{segment(delivery_id)}/redeliver")
    out.print(f"{delivery['id']} {delivery['status']}")


@app.command("secret")
def secret(
    *,
    rotate: Annotated[bool, typer.Option("--rotate", help="Make a new one first.")] = False,
    overlap: Annotated[
        int, typer.Option(min=0, max=604800, help="Seconds for which the former one signs too, after --rotate.")
    ] = 86400,
    tenant: Tenant = DEFAULT_TENANT,
    data: Data = None,
) -> None:
    """Print the secret that signs the tenant's webhooks, and nothing else."""
    with Gateway.of(DataFolder.choose(data), tenant, scopes=("admin",)) as gateway:
        if rotate:
            found = gateway.call("POST", f"{_PATH}/secret/rotate", json={"overlap_seconds": overlap})
        else:
            found = gateway.call("GET", f"{_PATH}/secret")
    # Not by the console, which would break and colour it.
    typer.echo(found["key"])


def _why(delivery: dict[str, Any]) -> str:
    return " ".join(str(part) for part in (delivery["failure"], delivery["last_error"]) if part)
