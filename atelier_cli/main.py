"""The command `atelier`: its commands, and the place where failures become sentences and exit codes."""

import importlib.metadata
import io
import sys
from typing import Annotated, NoReturn

import typer

from atelier_cli.commands import (
    admin,
    backup,
    capture,
    doctor,
    evaluate,
    generate,
    inspect,
    logs,
    lora,
    mesh,
    providers,
    retry,
    run,
    task,
    token,
    top,
    train,
    training,
    usage,
    webhook,
    workflow,
)
from atelier_cli.errors import CliError, ExitCode
from atelier_cli.terminal import err, out


def _print_version(value: bool) -> None:  # noqa: FBT001 -- the signature of an option's callback
    if value:
        out.print(importlib.metadata.version("atelier"))
        raise typer.Exit


app = typer.Typer(
    name="atelier",
    help="A self-hosted compute mesh for fashion imagery.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    epilog="Exit codes: 0 done, 1 failed, 2 wrong use, 3 no mesh there, 4 not allowed, 5 something is missing.",
)
app.command()(mesh.up)
app.command()(mesh.down)
app.command()(mesh.status)
app.command()(backup.backup)
app.command()(backup.restore)
app.command()(token.token)
app.command()(generate.generate)
run.add_verbs(app)
app.add_typer(run.commands(), name="run")
app.command()(train.train)
app.command()(evaluate.evaluate)
app.command()(inspect.inspect)
app.command()(retry.retry)
app.command()(logs.logs)
app.command()(doctor.doctor)
app.command()(top.top)
app.command()(usage.usage)
app.add_typer(task.app, name="task")
app.add_typer(workflow.app, name="workflow")
app.add_typer(training.app, name="training")
app.add_typer(lora.app, name="lora")
app.add_typer(webhook.app, name="webhook")
app.add_typer(capture.app, name="capture")
app.add_typer(providers.app, name="providers")
app.add_typer(admin.app, name="admin")


@app.callback()
def atelier(
    *,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Run a self-hosted compute mesh for fashion imagery."""


def main() -> NoReturn:
    """Run the command line and exit."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal that is not UTF-8, or a name that is not, must not end a command.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        _require_text(sys.argv[1:])
        app()
    except CliError as error:
        sys.exit(_told(error))
    except OSError as error:
        what = f"{error.filename}: " if error.filename else ""
        sys.exit(_told(CliError(f"{what}{error.strerror or error}.")))
    except (UnicodeError, RecursionError, MemoryError) as error:
        sys.exit(_told(CliError(f"A file or an answer cannot be read: {type(error).__name__}.")))
    sys.exit(ExitCode.DONE)


def _require_text(arguments: list[str]) -> None:
    for argument in arguments:
        if not argument.isascii() and any("\ud800" <= letter <= "\udfff" for letter in argument):
            raise CliError(f"The argument {argument!r} is not UTF-8.", ExitCode.USAGE)


def _told(error: CliError) -> int:
    err.print(error.sentence, style="red" if "\n" not in error.sentence else None, markup=False)
    return int(error.code)
