"""`atelier admin retention`: how long what has ended is kept."""

import enum
import json
from typing import Annotated, Any

import typer
from rich.table import Table

from atelier_cli.client import Gateway
from atelier_cli.commands.mesh import Data
from atelier_cli.folder import DataFolder
from atelier_cli.groups import CommandGroup
from atelier_cli.sizes import size
from atelier_cli.terminal import out
from atelier_cli.tokens import DEFAULT_TENANT

app = typer.Typer(cls=CommandGroup, help="Show, set and remove how long what has ended is kept.", no_args_is_help=True)

_PATH = "/api/v1/retention"
_SCOPES = ("read", "operator")
_EVERYONE = "*"


class Kept(enum.StrEnum):
    """What is kept for a time."""

    TASKS = "tasks"
    WORKFLOWS = "workflows"
    TRAININGS = "trainings"
    DELIVERIES = "deliveries"
    USAGE = "usage"


Kind = Annotated[Kept, typer.Argument(help="What is kept.")]
Whose = Annotated[str | None, typer.Option("--tenant", help="The tenant; all that have no age of their own if absent.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Change nothing; tell what would be deleted.")]


@app.command("list")
def list_ages(*, data: Data = None, as_json: Json = False, dry_run: DryRun = False) -> None:
    """List the ages; with --dry-run, what would be deleted by them now."""
    with Gateway.of(DataFolder.choose(data), DEFAULT_TENANT, _SCOPES) as gateway:
        if dry_run:
            lines = [{"kind": kind.value, **line} for kind in Kept for line in _preview(gateway, kind)]
            _print_preview(lines, as_json=as_json)
            return
        ages = gateway.call("GET", _PATH)["ages"]
    if as_json:
        out.print_json(json.dumps(ages))
        return
    table = Table(box=None, pad_edge=False)
    for title in ("kind", "tenant", "kept", "set"):
        table.add_column(title)
    for one in ages:
        table.add_row(one["kind"], one["tenant"], _kept(one), one["set_at"] or "by the settings")
    out.print(table)


@app.command("set")
def set_age(
    kind: Kind,
    days: Annotated[int, typer.Argument(min=0, max=36500, help="Days after its end; 0 to keep it for ever.")],
    *,
    tenant: Whose = None,
    data: Data = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Set an age, of all tenants or of one."""
    with Gateway.of(DataFolder.choose(data), DEFAULT_TENANT, _SCOPES) as gateway:
        if dry_run:
            lines = _preview(gateway, kind, days=days, **({} if tenant is None else {"tenant": tenant}))
            _print_preview([{"kind": kind.value, **line} for line in lines], as_json=as_json)
            return
        body = {"kind": kind.value, "tenant": tenant or _EVERYONE, "days": days}
        _print_age(gateway.call("POST", _PATH, json=body)["age"], as_json=as_json)


@app.command("remove")
def remove_age(kind: Kind, *, tenant: Whose = None, data: Data = None, as_json: Json = False) -> None:
    """Remove an age that was set, and print what holds then."""
    with Gateway.of(DataFolder.choose(data), DEFAULT_TENANT, _SCOPES) as gateway:
        body = {"kind": kind.value, "tenant": tenant or _EVERYONE}
        _print_age(gateway.call("POST", f"{_PATH}/remove", json=body)["age"], as_json=as_json)


def _preview(gateway: Gateway, kind: Kept, **asked: Any) -> list[dict[str, Any]]:
    # Each service tells of what is its own.
    if kind in {Kept.WORKFLOWS, Kept.TRAININGS}:
        answer = gateway.call("GET", f"{_PATH}/preview/{kind.value}", params=asked)
    else:
        answer = gateway.call("GET", f"{_PATH}/preview", params={"kind": kind.value, **asked})
    lines: list[dict[str, Any]] = answer["lines"]
    return lines


def _print_preview(lines: list[dict[str, Any]], *, as_json: bool) -> None:
    if as_json:
        out.print_json(json.dumps(lines))
        return
    if not lines:
        out.print("Nothing would be deleted.")
        return
    table = Table(box=None, pad_edge=False)
    for title in ("kind", "tenant", "older than", "rows", "bytes"):
        table.add_column(title)
    for one in lines:
        about = "about " if one["bytes_estimated"] else ""
        table.add_row(
            one["kind"], one["tenant"], f"{one['days']} days", f"{one['rows']:,}", f"{about}{size(one['bytes'])}"
        )
    out.print(table)


def _print_age(age: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        out.print_json(json.dumps(age))
        return
    whose = "all tenants" if age["tenant"] == _EVERYONE else age["tenant"]
    out.print(f"{age['kind']} of {whose}: kept {_kept(age)}", markup=False)


def _kept(age: dict[str, Any]) -> str:
    return f"{age['days']} days" if age["days"] else "for ever"
