"""`atelier providers`: shows which are served, their breakers and limits; closes a breaker."""

import json
from typing import Annotated, Any

import typer
from rich.table import Table

from atelier_cli.client import Gateway
from atelier_cli.commands.mesh import Data
from atelier_cli.folder import DataFolder
from atelier_cli.groups import CommandGroup
from atelier_cli.terminal import out
from atelier_cli.tokens import DEFAULT_TENANT

app = typer.Typer(cls=CommandGroup, help="Look at providers, their breakers and limits; close a breaker.")

Tenant = Annotated[str, typer.Option(help="Tenant to act for.")]

_PATH = "/api/v1/providers"
_SCOPES = ("read", "operator")


@app.callback(invoke_without_command=True)
def show(
    context: typer.Context,
    *,
    tenant: Tenant = DEFAULT_TENANT,
    data: Data = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the providers, and what stands before the calls of each."""
    if context.invoked_subcommand is not None:
        return
    with Gateway.of(DataFolder.choose(data), tenant, _SCOPES) as gateway:
        providers = gateway.call("GET", _PATH)["providers"]
    if as_json:
        out.print_json(json.dumps(providers))
        return
    table = Table(box=None, pad_edge=False)
    for title in ("provider", "served", "breaker", "running", "calls", "passed over", "limits"):
        table.add_column(title, no_wrap=title == "provider")
    for one in providers:
        table.add_row(one["provider_type"], "yes" if one["served"] else "no", *[""] * 5)
        for gate in one["gates"]:
            table.add_row(
                f"  {gate['key'] or '(all)'}",
                "",
                gate["state"],
                str(gate["running"]),
                str(gate["total_calls"]),
                str(gate["rejected_calls"]),
                _limits(gate),
            )
    out.print(table)


@app.command("reset")
def reset(
    name: Annotated[str, typer.Argument(help="PROVIDER, or PROVIDER/KEY for one of its applications or models.")],
    tenant: Tenant = DEFAULT_TENANT,
    data: Data = None,
) -> None:
    """Close a breaker: calls are admitted at once."""
    provider, _, key = name.partition("/")
    with Gateway.of(DataFolder.choose(data), tenant, _SCOPES) as gateway:
        answer = gateway.call("POST", f"{_PATH}/reset", json={"provider_type": provider, "key": key})
    out.print(f"{name}: {answer['previous_state']} -> {answer['new_state']}")


def _limits(gate: dict[str, Any]) -> str:
    parts = []
    if gate.get("concurrency") is not None:
        parts.append(f"{gate['concurrency']} at once")
    if gate.get("rate") is not None:
        parts.append(f"{gate['rate']:g} a second")
    if gate.get("blocked_until"):
        parts.append(f"none before {gate['blocked_until']}")
    return ", ".join(parts)
