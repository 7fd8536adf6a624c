"""`atelier run TYPE`, and a verb for each type: a task of any type, with options made from the contract."""

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Final

import typer
from typer.core import TyperGroup

from atelier_cli.client import Gateway
from atelier_cli.commands.follow import (
    cancel_all,
    cancelled_on_interrupt,
    follow_all,
    require_completed,
    tell_warnings,
)
from atelier_cli.commands.mesh import Data
from atelier_cli.errors import CliError, ExitCode
from atelier_cli.files import save
from atelier_cli.folder import DataFolder
from atelier_cli.inputs import MARK, LocalFiles, assignments, pictures
from atelier_cli.options import member_value, option_of
from atelier_cli.origin import default_origin
from atelier_cli.results import require_folder
from atelier_cli.taskforms import PROMPT, FileMember, TaskForm, form_of, public_types
from atelier_cli.terminal import err, out
from atelier_cli.tokens import DEFAULT_TENANT

# `generate` is a command of its own.
VERBS: Final = {
    "edit": "EDITING",
    "refine": "REFINE",
    "cutout": "BACKGROUND_REMOVE",
    "fix-background": "BACKGROUND_FIX",
    "face": "FACE_ENHANCER",
    "detail": "DETAIL_ENHANCER",
    "adjust": "IMAGE_ADJUSTER",
    "video": "VIDEO_GENERATION",
    "ask": "LLM_INTERACTION",
    "examine": "PHOTO_DETECTION",
}
_NOT_IN_NAMES: Final = frozenset('\\/:*?"<>|')
_MOST: Final = 200
_TEXT: Final = "result_text"
_ADDRESS: Final = "result_url"
_FINDINGS: Final = "findings"


class _Types(TyperGroup):
    """The types by their names as the contract has them, and as people type them."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return the command of a type: `BACKGROUND_FIX`, `background-fix`, or its verb."""
        name = VERBS.get(cmd_name, cmd_name.upper().replace("-", "_"))
        return super().get_command(ctx, name)


@dataclass(slots=True)
class _Making:
    """One task to be made.

    Attributes:
        body: Its request.
        stems: Name of each result, without an extension.
        ended: The task, once it has ended.
        shown: Characters of its text that were printed while it ran.
    """

    body: dict[str, Any]
    stems: Sequence[str]
    ended: dict[str, Any] = field(default_factory=dict)
    shown: int = 0


def commands() -> typer.Typer:
    """Return the group of all types."""
    app = typer.Typer(cls=_Types, help="Make a task of any type.", no_args_is_help=True)
    for name in public_types():
        app.command(name, help=form_of(name).help)(_command(form_of(name), name.lower().replace("_", "-")))
    return app


def add_verbs(app: typer.Typer) -> None:
    """Add a command for each verb."""
    for verb, name in VERBS.items():
        app.command(verb, help=form_of(name).help)(_command(form_of(name), verb))


def _command(form: TaskForm, verb: str) -> Callable[..., None]:
    """Return the command of a type: a function whose signature is made from the contract."""

    def run(**values: Any) -> None:
        _run(form, verb, values)

    parameters = dict(_parameters(form))
    run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]  # typer reads it
        [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
            for name, (kind, default) in parameters.items()
        ]
    )
    run.__annotations__ = {name: kind for name, (kind, _) in parameters.items()}
    return run


def _parameters(form: TaskForm) -> list[tuple[str, tuple[Any, Any]]]:
    found: list[tuple[str, tuple[Any, Any]]] = []
    if form.prompted:
        text = "What it is to do, to show or to answer; a file's text by @FILE."
        found.append((PROMPT, (Annotated[str, typer.Argument(help=text)], inspect.Parameter.empty)))
    if form.subject is not None:
        text = "Pictures: files, folders, patterns, addresses, or paths in storage."
        found.append(("files", (Annotated[list[str], typer.Argument(help=text)], inspect.Parameter.empty)))
    for image in form.images:
        text = "A file, an address, or a path in storage" + ("; may be repeated." if image.most > 1 else ".")
        kind: Any = list[str] if image.most > 1 else str
        found.append((image.name, (Annotated[kind | None, typer.Option(help=text, metavar="FILE")], None)))
    found += [(member.name, option_of(member)) for member in form.members]
    if form.seeded:
        text = "Make so many of each, with seeds from the given one upwards, or drawn ones."
        found.append(("count", (Annotated[int, typer.Option(min=1, max=64, help=text)], 1)))
    text = "A member of the task's config, which steers its type; may be repeated."
    found.append(("config", (Annotated[list[str] | None, typer.Option(help=text, metavar="NAME=VALUE")], None)))
    text = "Any other member of the request, as JSON or text, a file by @FILE; may be repeated."
    found.append(("set", (Annotated[list[str] | None, typer.Option(help=text, metavar="NAME=VALUE")], None)))
    text = "File to save, or a folder; named after what was given where absent."
    found.append(("output", (Annotated[Path | None, typer.Option("--output", "-o", help=text)], None)))
    found.append(("tenant", (Annotated[str, typer.Option(help="Tenant to act for.")], DEFAULT_TENANT)))
    found.append(("data", (Data, None)))
    return found


def _run(form: TaskForm, verb: str, values: dict[str, Any]) -> None:
    output: Path | None = values["output"]
    tenant: str = values["tenant"]
    folder = DataFolder.choose(values["data"])
    given = pictures(values.get("files") or ())

    def open_gateway() -> Gateway:
        return Gateway.of(folder, tenant)

    with open_gateway() as gateway:
        local = LocalFiles(gateway)
        jobs = _jobs(form, verb, values, given, local)
        if len(jobs) > _MOST:
            raise CliError(f"That makes {len(jobs)} tasks; {_MOST} at a time are made.", ExitCode.USAGE)
        target = _target(output, sum(len(job.stems) for job in jobs))
        try:
            _make(
                *(open_gateway, gateway, jobs),
                lambda client, job: _save(client, form, job, target, output),
                streams=output is None,
            )
        except CliError as error:
            raise _with_hint(error, local.elsewhere) from None


def _with_hint(error: CliError, elsewhere: Sequence[str]) -> CliError:
    """Return what went wrong, and that a file was not found here, where that may be why."""
    missing = [one for one in elsewhere if repr(one) in error.sentence]
    here = f". There is no file {missing[0]} on this machine either." if missing else ""
    return CliError(error.sentence + here, error.code)


def _jobs(form: TaskForm, verb: str, values: dict[str, Any], given: Sequence[str], local: LocalFiles) -> list[_Making]:
    """Return a task for each picture and seed; one for many pictures, where the type takes many."""
    common = _common(form, values, local)
    subject = form.subject
    if subject is None:
        stem = verb if not form.prompted else _stem(values[PROMPT]) or verb
        return [_Making(body, [name]) for body, name in _seeded(form, common, stem, values)]
    parts = [given[at : at + subject.most] for at in range(0, len(given), subject.most)]
    taken: set[str] = set()
    jobs = []
    for part in parts:
        body = dict(common)
        local.fill(body, subject, list(part))
        stems = [_unused(f"{_stem_of_file(one)}-{verb}", taken) for one in part]
        if subject.input.many:
            jobs.append(_Making(body, stems))
        else:
            jobs += [_Making(each, [name]) for each, name in _seeded(form, body, stems[0], values)]
    return jobs


def _common(form: TaskForm, values: dict[str, Any], local: LocalFiles) -> dict[str, Any]:
    body: dict[str, Any] = {"task_type": form.spec.name, "origin_instance": default_origin()}
    if form.prompted:
        prompt: str = values[PROMPT]
        body[PROMPT] = _text_of(prompt) if prompt.startswith(MARK) and len(prompt) > 1 else prompt
    for member in form.members:
        if values[member.name] is not None:
            value = values[member.name]
            body[member.name] = member_value(member, value)
    for image in form.images:
        chosen = values[image.name]
        if chosen:
            local.fill(body, image, _listed(image, chosen))
    config = dict(assignments(values["config"] or (), "--config"))
    if config:
        body["config"] = config
    members = {source.field: one for one in form.spec.inputs for source in one.sources}
    for name, value in assignments(values["set"] or (), "--set"):
        body[name] = local.in_member(members, name, value)
    return body


def _listed(image: FileMember, chosen: Any) -> list[str]:
    return pictures(chosen) if image.most > 1 else [chosen]


def _text_of(prompt: str) -> str:
    place = Path(prompt.removeprefix(MARK)).expanduser()
    try:
        return place.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise CliError(f"{place} cannot be read as text: {error}.", ExitCode.USAGE) from None


def _seeded(
    form: TaskForm, body: dict[str, Any], stem: str, values: Mapping[str, Any]
) -> list[tuple[dict[str, Any], str]]:
    count: int = values.get("count", 1)
    if count == 1:
        return [(body, stem)]
    digits = len(str(count))
    return [(_with_seeds(form, body, number), f"{stem}-{number + 1:0{digits}d}") for number in range(count)]


def _with_seeds(form: TaskForm, body: dict[str, Any], more: int) -> dict[str, Any]:
    """Return a request with its seeds raised; those that are not given are drawn by the mesh."""
    raised: dict[str, Any] = {name: body[name] + more for name in form.spec.seeds if name in body}
    config = body.get("config", {})
    if not form.spec.seeds and isinstance(config.get("seed"), int):
        raised["config"] = {**config, "seed": config["seed"] + more}
    return body | raised


def _stem(text: str) -> str:
    words = "".join(letter if letter.isascii() and letter.isalnum() else " " for letter in text.lower()).split()
    return "-".join(words)[:60].strip("-")


def _stem_of_file(given: str) -> str:
    name = PurePosixPath(given.removeprefix(MARK).partition("?")[0]).stem
    kept = "".join("-" if letter in _NOT_IN_NAMES or not letter.isprintable() else letter for letter in name)
    return kept or "picture"


def _unused(stem: str, taken: set[str]) -> str:
    """Return a name that no other result of this command has: folders may hold files of one name."""
    name, number = stem, 1
    while name in taken:
        number += 1
        name = f"{stem}-{number}"
    taken.add(name)
    return name


def _target(output: Path | None, results: int) -> Path:
    """Return the folder that results go into."""
    if output is None:
        return Path()
    if results == 1 and output.suffix and not output.is_dir():
        if not output.absolute().parent.is_dir():
            raise CliError(f"There is no folder {output.parent} to save into.", ExitCode.USAGE)
        return output.parent
    if output.is_file() or (output.suffix and not output.is_dir()):
        raise CliError(f"{output} is one file, and {results} results need a folder.", ExitCode.USAGE)
    require_folder(output)
    return output


def _make(
    open_gateway: Callable[[], Gateway],
    gateway: Gateway,
    jobs: Sequence[_Making],
    ended: Callable[[Gateway, _Making], Sequence[str]],
    *,
    streams: bool,
) -> None:
    """Make tasks at once, save what each made when it is done, and print where it is.

    Raises:
        CliError: One was refused, in which case none is made; or some failed, and the others are saved.
    """
    ids: list[str] = []
    lines: dict[str, Sequence[str]] = {}
    failures: list[CliError] = []

    def note(client: Gateway, task: dict[str, Any]) -> None:
        job = jobs[ids.index(task["id"])]
        job.ended = task
        try:
            require_completed(task)
            lines[task["id"]] = ended(client, job)
        except CliError as error:
            failures.append(error)

    def stream(task_id: str, text: str) -> None:
        job = jobs[ids.index(task_id)]
        out.print(text[job.shown :], end="", markup=False)
        job.shown = max(job.shown, len(text))

    with cancelled_on_interrupt(gateway, ids):
        try:
            ids.extend(gateway.create(job.body)["id"] for job in jobs)
        except CliError:
            cancel_all(gateway, ids)
            raise
        titles = dict(zip(ids, [job.stems[0] for job in jobs], strict=True))
        try:
            follow_all(open_gateway, titles, note, on_text=stream if streams and len(jobs) == 1 else None)
        finally:
            for line in (line for each in ids for line in lines.get(each, ())):
                out.print(line, markup=False)
    if failures:
        others = f" {len(failures)} of {len(ids)} tasks failed." if len(ids) > 1 else ""
        raise CliError(failures[0].sentence + others)


def _save(gateway: Gateway, form: TaskForm, job: _Making, folder: Path, output: Path | None) -> Sequence[str]:
    """Save what a task made; return what is to be printed of it."""
    task = job.ended
    tell_warnings(task)
    if form.spec.name == "LLM_INTERACTION":
        return _save_text(job, str(task.get(_TEXT) or ""), output, folder)
    if task.get(_FINDINGS):
        return _save_text(job, json.dumps(task[_FINDINGS], indent=2), output, folder, ".json")
    said = ", ".join(f"{name} {task[name]}" for name in form.spec.seeds if task.get(name) is not None)
    lines = []
    for made in form.spec.outputs:
        found = task.get(made.field)
        paths = found if isinstance(found, list) else [found]
        for stem, path in zip(job.stems, paths, strict=False):
            if not path:
                continue
            place = output if output is not None and output.suffix and not output.is_dir() else None
            place = place or folder / f"{stem}{PurePosixPath(path).suffix}"
            gateway.download(path, place)
            lines.append(f"{place}  ({said})" if said else str(place))
    for fault in task.get("errors") or ():
        err.print(f"Not made: {fault}", markup=False)
    if not lines and task.get(_ADDRESS):
        lines.append(str(task[_ADDRESS]))
    return lines


def _save_text(job: _Making, text: str, output: Path | None, folder: Path, suffix: str = ".txt") -> Sequence[str]:
    if output is None:
        return [text[job.shown :]]
    place = output if output.suffix and not output.is_dir() else folder / f"{job.stems[0]}{suffix}"
    save(place, f"{text}\n".encode())
    return [str(place)]
