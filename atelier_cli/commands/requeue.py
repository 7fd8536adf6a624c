"""`atelier admin requeue`: failed tasks made again, and failed deliveries of webhooks sent again."""

import datetime as dt
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from atelier_cli.client import Gateway, segment
from atelier_cli.commands.mesh import Data
from atelier_cli.commands.task import moment
from atelier_cli.errors import CliError, ExitCode
from atelier_cli.folder import DataFolder
from atelier_cli.terminal import err, out
from atelier_cli.tokens import DEFAULT_TENANT

_TASKS = "/api/v1/monitoring/tasks/requeue"
_DELIVERIES = "/api/v1/webhooks/deliveries"
_PAGE = 500
_SCOPES = ("read", "write", "operator")


def requeue(
    ids: Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="Failed tasks, or deliveries.")] = None,
    *,
    deliveries: Annotated[bool, typer.Option("--deliveries", help="Deliveries of webhooks in place of tasks.")] = False,
    tenant: Annotated[str | None, typer.Option(help="Only of this tenant.")] = None,
    task_type: Annotated[str | None, typer.Option("--type", help="Only tasks of this type.")] = None,
    provider: Annotated[str | None, typer.Option(help="Only tasks of this provider.")] = None,
    error: Annotated[str | None, typer.Option(help="Only tasks that failed for this: PROVIDER, RESOURCE, ...")] = None,
    since: Annotated[str | None, typer.Option(help="Only those made since: 30m, 2h, 7d, or 2026-11-26.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="No more than these, the newest first.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do it without asking.")] = False,
    data: Data = None,
) -> None:
    """Make failed tasks again, or send failed deliveries of webhooks again. Tells how many there are, and asks.

    It does so in pages; where it is interrupted, the same command goes on with those that are left.
    """
    if ids and any((tenant, task_type, provider, error, since)):
        raise CliError("Name identifiers or filters, not both.", ExitCode.USAGE)
    if deliveries and any((task_type, provider, error)):
        raise CliError("--type, --provider and --error are of tasks.", ExitCode.USAGE)
    oldest = moment(since, dt.datetime.now(dt.UTC)) if since is not None else None
    # Who is confined to a tenant sees its deliveries alone.
    confined = deliveries and tenant is not None
    with Gateway.of(
        DataFolder.choose(data), tenant if confined and tenant else DEFAULT_TENANT, _SCOPES[:2] if confined else _SCOPES
    ) as gateway:
        if deliveries:
            _deliveries(gateway, ids or [], oldest, limit, yes=yes)
            return
        wanted = {
            "tenant": tenant,
            "task_type": task_type,
            "provider_type": provider,
            "error_category": error,
            "created_after": oldest.isoformat() if oldest is not None else None,
        }
        asked = {name: value for name, value in wanted.items() if value is not None}
        _tasks(gateway, {"task_ids": ids} if ids else asked, limit, yes=yes)


def _tasks(gateway: Gateway, asked: dict[str, Any], limit: int | None, *, yes: bool) -> None:
    count, made, refused = 0, 0, []
    for told in _pages(gateway, {**asked, "dry_run": True}, limit):
        count += told["matched"]
        refused += told["refused"]
    if _agreed(count, "failed tasks to make again", yes=yes):
        refused = []
        try:
            for told in _pages(gateway, asked, limit):
                made += len(told["requeued"])
                refused += told["refused"]
                for one in told["requeued"]:
                    out.print(f"{one['task_id']} {one['new_task_id']}")
        finally:
            err.print(f"{made} of {count} made again")
    for one in refused:
        err.print(f"{one['task_id']}: {one['reason']}", markup=False)
    if refused:
        raise typer.Exit(1)


def _pages(gateway: Gateway, asked: dict[str, Any], limit: int | None) -> Iterator[dict[str, Any]]:
    """Ask for one page after the other, each a call that takes effect by itself."""
    left, page = limit, asked
    while left is None or left > 0:
        size = {} if "task_ids" in asked else {"limit": _PAGE if left is None else min(left, _PAGE)}
        told = gateway.call("POST", _TASKS, json={**page, **size})
        yield told
        if not (cursor := told.get("next_cursor")):
            return
        page = {**asked, "cursor": cursor}
        left = None if left is None else left - int(told["matched"])


def _deliveries(gateway: Gateway, ids: list[str], oldest: dt.datetime | None, limit: int | None, *, yes: bool) -> None:
    ids = ids or _failed_deliveries(gateway, oldest, limit)
    if _agreed(len(ids), "failed deliveries to send again", yes=yes):
        for one in ids:
            delivery = gateway.call("POST", f"{_DELIVERIES}/{segment(one)}/redeliver")
            out.print(f"{delivery['id']} {delivery['status']}")


def _failed_deliveries(gateway: Gateway, oldest: dt.datetime | None, limit: int | None) -> list[str]:
    """Return failed deliveries, the newest first."""
    found: list[str] = []
    while limit is None or len(found) < limit:
        page = gateway.deliveries(status="FAILED", limit=_PAGE, skip=len(found))
        new = [one for one in page if oldest is None or dt.datetime.fromisoformat(one["created_at"]) >= oldest]
        found += [one["id"] for one in new]
        if len(new) < _PAGE:
            break
    return list(dict.fromkeys(found))[:limit]  # one that fails meanwhile moves the pages


def _agreed(count: int, what: str, *, yes: bool) -> bool:
    err.print(f"{count} {what}")
    return bool(count) and (yes or typer.confirm("Do it?", err=True))
