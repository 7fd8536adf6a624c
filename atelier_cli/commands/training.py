"""`atelier training`: shows, follows, cancels and continues trainings, and looks at what they learn from."""

import datetime as dt
import json
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Final

import typer
from rich.console import Group
from rich.live import Live
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from atelier_cli.client import Gateway
from atelier_cli.commands.follow import command, told_on_interrupt
from atelier_cli.commands.mesh import Data
from atelier_cli.commands.task import age
from atelier_cli.errors import CliError, ExitCode
from atelier_cli.files import save
from atelier_cli.folder import DataFolder
from atelier_cli.groups import CommandGroup
from atelier_cli.results import require_folder
from atelier_cli.terminal import err, out
from atelier_cli.tokens import DEFAULT_TENANT
from atelier_cli.trainings import PATH, TrainingFiles, TrainingView, require_trained, training_path

app = typer.Typer(cls=CommandGroup, help="Look at trainings, follow, cancel and continue them.", no_args_is_help=True)

TrainingId = Annotated[str, typer.Argument(help="Identifier of the training.")]
Tenant = Annotated[str, typer.Option(help="Tenant to act for.")]
Watch = Annotated[bool, typer.Option("--watch", help="Follow it until it has ended.")]
Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="Save samples and the loss curve into this folder, as they come."),
]

_PAGE: Final = 100
_DRAWINGS: Final = frozenset({".svg", ".png"})


@app.command("list")
def list_trainings(
    *,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Show at most this many.")] = 20,
    skip: Annotated[int, typer.Option(min=0, help="Skip this many.")] = 0,
    tenant: Tenant = DEFAULT_TENANT,
    data: Data = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List trainings, newest first."""
    with Gateway.of(DataFolder.choose(data), tenant) as gateway:
        trainings = gateway.listed(PATH, limit=limit, skip=skip)
    if as_json:
        out.print_json(json.dumps(trainings))
        return
    now = dt.datetime.now(dt.UTC)
    table = Table(box=None, pad_edge=False)
    for title in ("id", "status", "steps", "age", "trigger word"):
        table.add_column(title, no_wrap=title != "trigger word", justify="right" if title == "age" else "left")
    for one in trainings:
        steps = f"{one['current_step']}/{one['total_steps']}"
        table.add_row(one["id"], one["status"], steps, age(one["created_at"], now), Text(one["trigger_word"]))
    out.print(table)


@app.command("get")
def get(training_id: TrainingId, tenant: Tenant = DEFAULT_TENANT, data: Data = None) -> None:
    """Print a training as JSON."""
    with Gateway.of(DataFolder.choose(data), tenant) as gateway:
        out.print_json(json.dumps(gateway.call("GET", training_path(training_id))))


@app.command("watch")
def watch(
    training_id: TrainingId, *, output: Output = None, tenant: Tenant = DEFAULT_TENANT, data: Data = None
) -> None:
    """Follow a training until it has ended. Ctrl-C ends the following, not the training."""
    folder = DataFolder.choose(data)
    with Gateway.of(folder, tenant) as gateway:
        follow_training(gateway, training_id, output, again(training_id, output, tenant, folder))


@app.command("cancel")
def cancel(training_id: TrainingId, tenant: Tenant = DEFAULT_TENANT, data: Data = None) -> None:
    """Cancel a training; cancelling a cancelled one changes nothing."""
    with Gateway.of(DataFolder.choose(data), tenant) as gateway:
        training = gateway.call("POST", training_path(training_id, "/cancel"))
    out.print(f"{training['id']} {training['status']}")


@app.command("continue")
def go_on(
    training_id: TrainingId,
    *,
    steps: Annotated[int, typer.Option(min=1, help="Steps to take beside those that were taken.")],
    learning_rate: Annotated[float | None, typer.Option(help="How far a step goes; as before where absent.")] = None,
    watched: Watch = False,
    output: Output = None,
    tenant: Tenant = DEFAULT_TENANT,
    data: Data = None,
) -> None:
    """Train a finished training's adapter on, as a new training; print its identifier."""
    body = {"steps": steps} | ({} if learning_rate is None else {"learning_rate": learning_rate})
    folder = DataFolder.choose(data)
    with Gateway.of(folder, tenant) as gateway:
        training = gateway.call("POST", training_path(training_id, "/continue"), json=body)
        out.print(training["id"])
        if watched or output is not None:
            follow_training(gateway, training["id"], output, again(training["id"], output, tenant, folder))


@app.command("sample")
def sample(
    training_id: TrainingId,
    prompts: Annotated[list[str] | None, typer.Argument(help="What to draw; the training's own where absent.")] = None,
    *,
    tenant: Tenant = DEFAULT_TENANT,
    data: Data = None,
) -> None:
    """Have a running training draw sample pictures after its next step."""
    with Gateway.of(DataFolder.choose(data), tenant) as gateway:
        training = gateway.call("POST", training_path(training_id, "/sample"), json={"prompts": prompts or []})
    out.print(f"{training['id']} draws them after step {training['current_step']}.")


@app.command("dataset")
def dataset(
    training_id: TrainingId,
    *,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Save small pictures of it into this folder.")
    ] = None,
    tenant: Tenant = DEFAULT_TENANT,
    data: Data = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what a training learns from: pictures, captions, sizes, and what was left out and why."""
    with Gateway.of(DataFolder.choose(data), tenant) as gateway:
        found = gateway.call("GET", training_path(training_id, "/dataset"))
        if output is not None:
            require_folder(output)
            for number, image in enumerate(found["images"], 1):
                kind = PurePosixPath(image["thumbnail_path"]).suffix
                gateway.download(image["thumbnail_path"], output / f"{number:03d}-{_stem(image['name'])}{kind}")
    if as_json:
        out.print_json(json.dumps(found))
        return
    table = Table(box=None, pad_edge=False)
    for title in ("picture", "size", "caption", "notes"):
        table.add_column(title, no_wrap=title in ("picture", "size"))
    for image in found["images"]:
        notes = "; ".join((*image["warnings"], *(("masked",) if image.get("mask_path") else ())))
        table.add_row(Text(image["name"]), f"{image['width']}x{image['height']}", Text(image["caption"]), Text(notes))
    out.print(table)
    tell_rejects(found["rejects"])


@app.command("loss")
def loss(
    training_id: TrainingId,
    *,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where to save the curve, as .svg or .png; else it is told.")
    ] = None,
    dark: Annotated[bool, typer.Option("--dark", help="Draw light on dark.")] = False,
    tenant: Tenant = DEFAULT_TENANT,
    data: Data = None,
) -> None:
    """Show the loss of a training: as a line here, or drawn into a file."""
    kind = "" if output is None else output.suffix.lower()
    if output is not None and kind not in _DRAWINGS:
        raise CliError(f"{output} ends neither in .svg nor in .png.", ExitCode.USAGE)
    with Gateway.of(DataFolder.choose(data), tenant) as gateway:
        if output is not None:
            theme = "?theme=dark" if dark else ""
            save(output, gateway.fetch(training_path(training_id, f"/loss{kind}{theme}")))
            out.print(str(output), markup=False)
            return
        found = gateway.call("GET", training_path(training_id, "/loss"))
    view = TrainingView()
    view.take({"training": {}, **found})
    out.print(view.curve or "It has taken no step yet.")


def tell_rejects(rejects: list[dict[str, Any]]) -> None:
    """Say which pictures were left out, and why."""
    for one in rejects:
        err.print(f"Left out: {one['name']} {one['reason']}", markup=False)


def again(training_id: str, output: Path | None, tenant: str, folder: DataFolder) -> str:
    """Return the command that follows a training again."""
    into = f" -o {output}" if output is not None else ""
    return command(f"training watch {training_id}{into}", tenant, folder)


def follow_training(gateway: Gateway, training_id: str, output: Path | None, again_by: str) -> None:
    """Show a training until it has ended, save what it shows, and print where its adapter is.

    Args:
        gateway: Where it is.
        training_id: The training.
        output: Folder for samples and the loss curve; None saves none.
        again_by: The command that follows it again.

    Raises:
        CliError: It failed, was cancelled, or cannot be followed.
    """
    files = None
    if output is not None:
        require_folder(output)
        files = TrainingFiles(gateway, training_id, output)
    view, shown = TrainingView(), _Shown()
    with told_on_interrupt(f"Training {training_id}", again_by), shown:
        for event in gateway.follow(training_path(training_id, "/events")):
            view.take(event)
            shown.update(view)
            for place in files.take(event) if files else ():
                shown.say(f"sample {place}")
    training = view.training
    if training["status"] != "CANCELLED":
        tell_rejects(gateway.call("GET", training_path(training_id, "/dataset"))["rejects"])
    if files is not None and (curve := files.curve()) is not None:
        err.print(f"curve {curve}", markup=False)
    require_trained(training)
    out.print(str(training["local_model_path"]), markup=False)


class _Shown:
    """A bar with the curve below it on a terminal; else a line for each stage."""

    def __init__(self) -> None:
        self._bars = Progress(
            SpinnerColumn(),
            BarColumn(),
            TextColumn("{task.fields[state]}", markup=False),
            TimeElapsedColumn(),
            console=err,
        )
        self._row = self._bars.add_task("", total=100, state="waiting")
        self._curve = Text()
        self._live = Live(Group(self._bars, self._curve), console=err, transient=True, refresh_per_second=4)
        self._told = ""

    def __enter__(self) -> None:
        if err.is_terminal:
            self._live.start()

    def __exit__(self, *_ended: object) -> None:
        self._live.stop()

    def update(self, view: TrainingView) -> None:
        self._bars.update(self._row, completed=view.training["progress"], state=view.stage)
        self._curve.plain = view.curve
        name = str(view.training.get("preprocessing_stage") if view.training["status"] == "PREPROCESSING" else "")
        stage = name or str(view.training["status"]).lower()
        if not err.is_terminal and stage != self._told:
            self._told = stage
            err.print(stage, markup=False)

    @staticmethod
    def say(text: str) -> None:
        err.print(text, markup=False)


def _stem(name: str) -> str:
    return PurePosixPath(name.replace("/", "_")).stem or "picture"
