"""`atelier top`: queues, workers, running tasks and failures, live in the terminal."""

import time
from typing import Annotated, Any, Literal

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from atelier_cli.client import Gateway
from atelier_cli.commands.mesh import Data
from atelier_cli.folder import DataFolder
from atelier_cli.terminal import out
from atelier_cli.tokens import DEFAULT_TENANT

_PATH = "/api/v1/monitoring"
_BAR_CELLS = 20


def top(
    *,
    interval: Annotated[float, typer.Option(min=0.5, max=3600.0, help="Seconds between two looks.")] = 2.0,
    rows: Annotated[int, typer.Option(min=1, max=100, help="Running tasks to show at most.")] = 15,
    once: Annotated[bool, typer.Option("--once", help="Look once and end, as into a pipe.")] = False,
    tenant: Annotated[str, typer.Option(help="Tenant to act for.")] = DEFAULT_TENANT,
    everyone: Annotated[bool, typer.Option("--all", help="Tasks of all tenants.")] = False,
    data: Data = None,
) -> None:
    """Show queues, workers, running tasks and failures, until Ctrl-C."""
    scopes = ("read", "support") if everyone else ("read",)
    with Gateway.of(DataFolder.choose(data), tenant, scopes) as gateway:
        if once or not out.is_terminal:
            out.print(_screen(gateway, rows))
            return
        try:
            with Live(_screen(gateway, rows), console=out, screen=True, auto_refresh=False) as live:
                while True:
                    time.sleep(interval)
                    live.update(_screen(gateway, rows), refresh=True)
        except KeyboardInterrupt:
            return


def _screen(gateway: Gateway, rows: int) -> RenderableType:
    queues = gateway.call("GET", f"{_PATH}/queues")
    workers = gateway.call("GET", f"{_PATH}/workers")
    running = gateway.call("GET", f"{_PATH}/tasks", params={"status": "EXECUTING", "page_size": rows})
    failed = gateway.call("GET", f"{_PATH}/tasks", params={"status": "FAILED", "page_size": 5})
    head = Text(
        f"{queues['timestamp'][:19].replace('T', ' ')}  {queues['total_pending']} waiting, "
        f"{queues['total_active']} running, {failed['total']} failed; {workers['total_workers']} workers, "
        f"{workers['total_active']} of {workers['total_capacity']} slots busy",
        style="bold",
    )
    parts: list[Text | Table] = [
        head,
        _queues(queues["queues"]),
        _workers(workers["workers"]),
        _running(running),
        _failed(failed),
    ]
    lines: list[Text | Table] = []
    for part in parts:
        lines += (part, Text())
    return Group(*lines)


def _queues(queues: list[dict[str, Any]]) -> Table:
    table = _table("queue", ">waiting", ">running", ">reserved", ">workers", ">wait s", ">done in an hour")
    for one in queues:
        # A queue that nothing concerns would only push the others off the screen.
        if not any((one["depth"], one["active_tasks"], one["active_workers"], one["tasks_completed_last_hour"])):
            continue
        wait = one["avg_wait_time_ms"]
        stuck = one["depth"] > 0 and not one["active_workers"]
        table.add_row(
            one["name"],
            str(one["depth"]),
            str(one["active_tasks"]),
            str(one["reserved_tasks"]),
            str(one["active_workers"]),
            "-" if wait is None else f"{wait / 1000:.1f}",
            str(one["tasks_completed_last_hour"]),
            style="red" if stuck else "",
        )
    return table


def _workers(workers: list[dict[str, Any]]) -> Table:
    table = _table("worker", "load", ">slots", ">per minute", ">done", ">MB")
    for one in workers:
        table.add_row(
            one["name"],
            _bar(one["utilization_pct"]),
            f"{one['active_tasks']}/{one['concurrency']}",
            f"{one['tasks_per_minute']:.1f}",
            str(one["tasks_completed_total"]),
            "-" if one["memory_mb"] is None else f"{one['memory_mb']:.0f}",
        )
    return table


def _running(page: dict[str, Any]) -> Table:
    table = _table("running", "type", "provider", "tenant", "progress")
    for one in page["items"]:
        table.add_row(
            one["id"],
            one["task_type"],
            one["provider_type"] or "-",
            one["origin_tenant_id"] or "-",
            f"{_bar(one['progress'])} {one['progress']:.0f} %",
        )
    if page["total"] > len(page["items"]):
        table.add_row(f"and {page['total'] - len(page['items'])} more")
    return table


def _failed(page: dict[str, Any]) -> Table:
    table = _table("failed", "type", "provider", "tenant", "ended")
    for one in page["items"]:
        ended = (one["completed_at"] or "")[:19].replace("T", " ")
        table.add_row(
            one["id"],
            one["task_type"],
            one["provider_type"] or "-",
            one["origin_tenant_id"] or "-",
            ended,
            style="red",
        )
    return table


def _table(*titles: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for title in titles:
        way: Literal["left", "right"] = "right" if title.startswith(">") else "left"
        table.add_column(title.removeprefix(">"), justify=way, no_wrap=True, header_style="dim")
    return table


def _bar(percent: float) -> str:
    filled = round(max(0.0, min(100.0, percent)) / 100 * _BAR_CELLS)
    return "█" * filled + "░" * (_BAR_CELLS - filled)
