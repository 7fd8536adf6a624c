"""`atelier retry`: a new task from the request of an earlier one."""

from typing import Annotated

import typer

from atelier_cli.client import Gateway
from atelier_cli.commands.follow import command, follow, require_completed, told_on_interrupt
from atelier_cli.commands.mesh import Data
from atelier_cli.folder import DataFolder
from atelier_cli.origin import default_origin
from atelier_cli.repeat import request_of
from atelier_cli.terminal import err, out
from atelier_cli.tokens import DEFAULT_TENANT


def retry(
    task_id: Annotated[str, typer.Argument(help="Identifier of the earlier task, whatever became of it.")],
    *,
    new_seed: Annotated[bool, typer.Option("--new-seed", help="Draw a new seed: another picture.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Follow the new task until it has ended.")] = False,
    tenant: Annotated[str, typer.Option(help="Tenant to act for.")] = DEFAULT_TENANT,
    data: Data = None,
) -> None:
    """Make a new task from an earlier one's request, and print its identifier; the earlier one stays as it is."""
    folder = DataFolder.choose(data)
    with Gateway.of(folder, tenant) as gateway:
        request = request_of(gateway.task(task_id), same_seed=not new_seed)
        task = gateway.create({"origin_instance": default_origin(), **request})
        err.print(f"Kept from {task_id}: {', '.join(request)}.", markup=False)
        err.print("Not kept, because a task does not show them: queue_name, webhook_url.")
        out.print(task["id"])
        if watch:
            with told_on_interrupt(f"Task {task['id']}", command(f"task watch {task['id']}", tenant, folder)):
                require_completed(follow(gateway, task["id"], task["id"]))
