"""`atelier workflow`: runs workflows from files, shows, draws and controls them."""

import json
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Final

import typer
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.tree import Tree

from atelier_cli import documents
from atelier_cli.client import ENDED, Gateway, segment
from atelier_cli.commands.follow import command, told_on_interrupt
from atelier_cli.commands.mesh import Data
from atelier_cli.diagram import lay_out, steps_of
from atelier_cli.errors import CliError, ExitCode
from atelier_cli.files import save
from atelier_cli.folder import DataFolder
from atelier_cli.groups import CommandGroup
from atelier_cli.inputs import MARK, LocalFiles, assignments
from atelier_cli.origin import default_origin
from atelier_cli.picture import png, svg
from atelier_cli.results import download_all, require_folder, workflow_files
from atelier_cli.terminal import err, out
from atelier_cli.tokens import DEFAULT_TENANT

app = typer.Typer(
    cls=CommandGroup,
    help="Run workflows, watch and draw them, start, pause, resume, cancel them.",
    no_args_is_help=True,
)

WorkflowId = Annotated[str, typer.Argument(help="Identifier of the workflow.")]
Tenant = Annotated[str, typer.Option(help="Tenant to act for.")]

_PATH: Final = "/api/v1/workflows/"
_POLL_SECONDS: Final = 0.5
_ASKED_STEPS: Final = 8
_STYLES: Final = {"RUNNING": "yellow", "COMPLETED": "green", "FAILED": "red", "CANCELLED": "magenta", "PAUSED": "cyan"}


@app.command("run")
def run(
    file: Annotated[Path, typer.Argument(help="The workflow as YAML or JSON.")],
    *,
    watch: Annotated[bool, typer.Option("--watch", help="Follow it until it has ended.")] = False,
    start: Annotated[bool, typer.Option(help="Start it at once, or let it wait for its start.")] = True,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="STEP.MEMBER=VALUE",
            help="A member of a step's config, or of the workflow's without STEP: JSON, text, or a file by @FILE.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Follow it, and save the pictures of its steps into this folder."),
    ] = None,
    tenant: Tenant = DEFAULT_TENANT,
    data: Data = None,
) -> None:
    """Create a workflow from a file and print its identifier."""
    definition = with_settings(read(file), dict(assignments(settings or (), "--set")))
    if output is not None:
        if not start:
            raise CliError("-o waits for the pictures; it does not go with --no-start.", ExitCode.USAGE)
        require_folder(output)
    folder = DataFolder.choose(data)
    with Gateway.of(folder, tenant) as gateway:
        definition = LocalFiles(gateway, file.parent).in_workflow(definition)
        workflow = gateway.call("POST", _PATH, json=definition, params={"start": start})
        out.print(workflow["id"])
        if start and (watch or output is not None):
            _follow_to_the_end(gateway, workflow, _again(workflow, output, tenant, folder), output)


@app.command("get")
def get(workflow_id: WorkflowId, tenant: Tenant = DEFAULT_TENANT, data: Data = None) -> None:
    """Print a workflow with its steps as JSON."""
    with Gateway.of(DataFolder.choose(data), tenant) as gateway:
        out.print_json(json.dumps(gateway.call("GET", f"{_PATH}{segment(workflow_id)}")))


@app.command("list")
def list_workflows(
    *,
    status: Annotated[str | None, typer.Option(help="Only of this state: PENDING, RUNNING, PAUSED...")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100, help="Show at most this many.")] = 20,
    skip: Annotated[int, typer.Option(min=0, help="Skip this many.")] = 0,
    tenant: Tenant = DEFAULT_TENANT,
    data: Data = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List workflows, newest first."""
    params = {"limit": limit, "skip": skip} | ({"status": status} if status else {})
    with Gateway.of(DataFolder.choose(data), tenant) as gateway:
        workflows = gateway.call("GET", _PATH, params=params)["workflows"]
    if as_json:
        out.print_json(json.dumps(workflows))
        return
    table = Table(box=None, pad_edge=False)
    for title in ("id", "status", "steps", "created", "name"):
        table.add_column(title, no_wrap=title != "name")
    for one in workflows:
        steps = f"{one['completed_steps']}/{one['total_steps']}"
        table.add_row(one["id"], one["status"], steps, str(one["created_at"])[:19], escape(one["name"]))
    out.print(table)


@app.command("watch")
def watch(
    workflow_id: WorkflowId,
    *,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Save the pictures of its steps into this folder at the end.")
    ] = None,
    tenant: Tenant = DEFAULT_TENANT,
    data: Data = None,
) -> None:
    """Follow a workflow until it has ended. Ctrl-C ends the following, not the workflow."""
    if output is not None:
        require_folder(output)
    folder = DataFolder.choose(data)
    with Gateway.of(folder, tenant) as gateway:
        workflow = gateway.call("GET", f"{_PATH}{segment(workflow_id)}")
        _follow_to_the_end(gateway, workflow, _again(workflow, output, tenant, folder), output)


@app.command("graph")
def graph(
    what: Annotated[str, typer.Argument(metavar="ID|FILE", help="A workflow's identifier, or its YAML or JSON file.")],
    *,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Where to save it, as .svg or .png. [default: SVG, printed]")
    ] = None,
    tenant: Tenant = DEFAULT_TENANT,
    data: Data = None,
) -> None:
    """Draw the graph of a workflow with the states of its steps."""
    suffix = output.suffix.lower() if output is not None else ".svg"
    if suffix not in {".svg", ".png"}:
        raise CliError(f"{output} ends neither in .svg nor in .png.", ExitCode.USAGE)
    if _is_id(what):
        with Gateway.of(DataFolder.choose(data), tenant) as gateway:
            workflow = gateway.call("GET", f"{_PATH}{what}")
        title = f"{workflow['name']}: {workflow['status'].lower()}"
    else:
        workflow = read(Path(what))
        title = str(workflow.get("name") or Path(what).stem)
    layout = lay_out(title, steps_of(workflow))
    if output is None:
        typer.echo(svg(layout), nl=False)
    else:
        save(output, svg(layout).encode() if suffix == ".svg" else png(layout))


@app.command("start")
def start_workflow(workflow_id: WorkflowId, tenant: Tenant = DEFAULT_TENANT, data: Data = None) -> None:
    """Start a workflow that was made with --no-start."""
    _move("POST", f"{segment(workflow_id)}/start", tenant, data)


@app.command("pause")
def pause(workflow_id: WorkflowId, tenant: Tenant = DEFAULT_TENANT, data: Data = None) -> None:
    """Let running steps end and begin no further one."""
    _move("POST", f"{segment(workflow_id)}/pause", tenant, data)


@app.command("resume")
def resume(workflow_id: WorkflowId, tenant: Tenant = DEFAULT_TENANT, data: Data = None) -> None:
    """Go on with a failed or paused workflow; completed steps keep their results."""
    _move("POST", f"{segment(workflow_id)}/resume", tenant, data)


@app.command("cancel")
def cancel(workflow_id: WorkflowId, tenant: Tenant = DEFAULT_TENANT, data: Data = None) -> None:
    """Cancel a workflow and its running tasks; cancelling a cancelled one changes nothing."""
    _move("DELETE", segment(workflow_id), tenant, data)


def read(file: Path) -> dict[str, Any]:
    """Return a definition from a file; JSON is YAML too.

    Raises:
        CliError: It cannot be read, or holds no definition.
    """
    return {"origin_instance": default_origin(), **documents.read_object(file)}


def with_settings(definition: dict[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return a definition with members of its steps replaced.

    Args:
        definition: As the file has it.
        settings: Values by `step.member`, or by the member of the workflow's own `config`. A file in one is named from
            where the user stands.

    Raises:
        CliError: There is no such step.
    """
    steps = definition.get("steps")
    known = [one for one in steps if isinstance(one, dict)] if isinstance(steps, list) else []
    for name, value in settings.items():
        step, dot, member = name.rpartition(".")
        described = definition if not dot else next((one for one in known if one.get("id") == step), None)
        if described is None:
            raise CliError(f"--set {name}: the workflow has no step {step!r}.", ExitCode.USAGE)
        config = described.setdefault("config", {})
        if not isinstance(config, dict):
            raise CliError(f"--set {name}: the config there is no object.", ExitCode.USAGE)
        config[member] = _from_here(value)
    return definition


def _from_here(value: Any) -> Any:
    """Return a value whose `@file` holds wherever the workflow's file lies."""
    if isinstance(value, list):
        return [_from_here(one) for one in value]
    if isinstance(value, str) and value.startswith(MARK):
        return f"{MARK}{Path(value.removeprefix(MARK)).expanduser().absolute()}"
    return value


def _follow_to_the_end(gateway: Gateway, workflow: dict[str, Any], again: str, output: Path | None) -> None:
    """Follow a workflow, save what its completed steps made, and raise unless it has completed."""
    with told_on_interrupt(f"Workflow {workflow['id']}", again):
        workflow = follow(gateway, workflow)
    if output is not None:
        for place in download_all(gateway, workflow_files(workflow, output)):
            out.print(str(place), markup=False)
    require_completed(workflow)


def _again(workflow: Mapping[str, Any], output: Path | None, tenant: str, folder: DataFolder) -> str:
    saves = f" -o {output}" if output is not None else ""
    return command(f"workflow watch {workflow['id']}{saves}", tenant, folder)


def follow(gateway: Gateway, workflow: dict[str, Any]) -> dict[str, Any]:
    """Show a live tree of the steps until the workflow has ended, and return the ended workflow."""
    path = f"{_PATH}{workflow['id']}"
    with Live(tree(workflow), console=err, refresh_per_second=4, transient=not err.is_terminal) as live:
        while workflow["status"] not in ENDED:
            time.sleep(_POLL_SECONDS)
            workflow = gateway.call("GET", path)
            live.update(tree(workflow, shares(gateway, workflow)))
    return workflow


def shares(gateway: Gateway, workflow: dict[str, Any]) -> dict[str, float]:
    """Return the percentage done of running steps, for as many as justify a request each."""
    found = {}
    running = [one for one in workflow["steps"] if one["status"] == "RUNNING" and one["task_id"]]
    for step in running[:_ASKED_STEPS]:
        try:
            found[step["step_id"]] = float(gateway.task(step["task_id"])["progress"])
        except CliError as error:
            # A step has its task's identifier shortly before the task is created.
            if error.code is not ExitCode.FAILED:
                raise
    return found


def tree(workflow: dict[str, Any], done: Mapping[str, float] = MappingProxyType({})) -> Tree:
    """Return a workflow's steps, each below the last one that it depends on.

    Args:
        workflow: As the API gives it.
        done: Percent of running steps, by their names.
    """
    hint = f", go on by: atelier workflow resume {workflow['id']}" if workflow["status"] == "PAUSED" else ""
    root = Tree(f"{escape(workflow['name'])} {_state(workflow['status'])} {workflow['progress']:.0f} %{hint}")
    placed: dict[str, Tree] = {}
    waiting = list(workflow["steps"])
    while waiting:
        # An accepted graph has no cycle, so that every pass places a step.
        for step in [one for one in waiting if all(needed in placed for needed in one["dependencies"])]:
            above = placed[step["dependencies"][-1]] if step["dependencies"] else root
            also = f" after {', '.join(step['dependencies'])}" if len(step["dependencies"]) > 1 else ""
            retries = f" (retry {step['retry_count']})" if step["retry_count"] else ""
            fault = f" {step['error_message']}" if step["status"] == "FAILED" else ""
            share = f" {done[step['step_id']]:.0f} %" if step["step_id"] in done else _items(step)
            label = f"{escape(step['step_id'])} {_state(step['status'])}"
            placed[step["step_id"]] = above.add(label + escape(f"{share}{retries}{fault}{also}"))
            waiting.remove(step)
    return root


def require_completed(workflow: dict[str, Any]) -> None:
    """Raise unless the workflow has completed.

    Raises:
        CliError: It failed or was cancelled.
    """
    if workflow["status"] == "COMPLETED":
        return
    reason = workflow["error_message"] or "no reason was given"
    what = "was cancelled" if workflow["status"] == "CANCELLED" else f"failed: {reason.rstrip('.')}"
    raise CliError(f"Workflow {workflow['id']} {what}.")


def _items(step: Mapping[str, Any]) -> str:
    """How many items of a step with a list are done."""
    items = step.get("items") or []
    return f" {sum(one['status'] == 'COMPLETED' for one in items)}/{len(items)}" if items else ""


def _is_id(text: str) -> bool:
    try:
        uuid.UUID(text)
    except ValueError:
        return False
    return True


def _state(status: str) -> str:
    style = _STYLES.get(status, "dim")
    return f"[{style}]{status.lower()}[/{style}]"


def _move(method: str, path: str, tenant: str, data: Path | None) -> None:
    with Gateway.of(DataFolder.choose(data), tenant) as gateway:
        workflow = gateway.call(method, f"{_PATH}{path}")
    out.print(f"{workflow['id']} {workflow['status']}")
