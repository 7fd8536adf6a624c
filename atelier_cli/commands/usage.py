"""`atelier usage`: what tenants have used of devices, providers and storage."""

import json
from typing import Annotated, Any

import typer
from rich.table import Table

from atelier_cli.client import Gateway
from atelier_cli.commands.mesh import Data
from atelier_cli.errors import CliError, ExitCode
from atelier_cli.folder import DataFolder
from atelier_cli.sizes import size
from atelier_cli.terminal import out
from atelier_cli.tokens import DEFAULT_TENANT

_PATH = "/api/v1/usage"


def usage(
    *,
    since: Annotated[str | None, typer.Option("--from", help="First day, in UTC (2026-11-01).")] = None,
    until: Annotated[str | None, typer.Option("--to", help="Last day, in UTC.")] = None,
    by: Annotated[
        list[str] | None,
        typer.Option(help="day, tenant, task_type, provider_type, model or device; several times for several."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Only this model.")] = None,
    task_type: Annotated[str | None, typer.Option(help="Only tasks of this type.")] = None,
    provider: Annotated[str | None, typer.Option(help="Only this provider.")] = None,
    tenant: Annotated[str, typer.Option(help="Tenant to act for.")] = DEFAULT_TENANT,
    everyone: Annotated[bool, typer.Option("--all", help="Of all tenants.")] = False,
    data: Data = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
) -> None:
    """Print device seconds, calls and costs of providers, and storage; of the last 30 days, by day."""
    if as_json and as_csv:
        raise CliError("--json and --csv exclude each other.", ExitCode.USAGE)
    scopes = ("read", "support") if everyone else ("read",)
    asked = {
        "first_day": since,
        "last_day": until,
        "group_by": list(by or ["day"]),
        "model": model,
        "task_type": task_type,
        "provider_type": provider,
    }
    chosen = {name: value for name, value in asked.items() if value is not None}
    with Gateway.of(DataFolder.choose(data), tenant, scopes) as gateway:
        if as_csv:
            out.print(gateway.fetch(f"{_PATH}.csv", **chosen).decode(), markup=False, end="")
            return
        answer = gateway.call("GET", _PATH, params=chosen)
    if as_json:
        out.print_json(json.dumps(answer))
        return
    out.print(_table(answer))


def _table(answer: dict[str, Any]) -> Table:
    by = answer["group_by"]
    table = Table(box=None, pad_edge=False, show_footer=True)
    total = answer["total"]
    for place, title in enumerate(by):
        table.add_column(title, "total" if place == 0 else "", no_wrap=True)
    for title, cell in zip(_TITLES, _cells(total), strict=True):
        table.add_column(title, cell, justify="right", no_wrap=True)
    for row in answer["rows"]:
        table.add_row(*(row[name] or "-" for name in by), *_cells(row))
    return table


_TITLES = ("attempts", "failed", "GPU s", "CPU s", "calls", "call s", "cost", "stored")


def _cells(row: dict[str, Any]) -> list[str]:
    costs = ", ".join(f"{cost:.2f} {currency}" for currency, cost in sorted(row["costs"].items()))
    return [
        str(row["attempts"]),
        str(row["failed_attempts"]),
        f"{row['gpu_seconds']:.1f}",
        f"{row['cpu_seconds']:.1f}",
        str(row["provider_calls"]),
        f"{row['provider_seconds']:.1f}",
        costs or "-",
        size(row["stored_bytes"]),
    ]
