"""The command `atelier`: its commands, and the place where failures become sentences and exit codes."""

import sys
from typing import NoReturn

import typer

from atelier_cli.commands import doctor, generate, mesh, task, token, webhook, workflow
from atelier_cli.errors import CliError, ExitCode
from atelier_cli.terminal import err

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
app.command()(token.token)
app.command()(generate.generate)
app.command()(doctor.doctor)
app.add_typer(task.app, name="task")
app.add_typer(workflow.app, name="workflow")
app.add_typer(webhook.app, name="webhook")


def main() -> NoReturn:
    """Run the command line and exit."""
    try:
        app()
    except CliError as error:
        err.print(error.sentence, style="red" if "\n" not in error.sentence else None, markup=False)
        sys.exit(int(error.code))
    sys.exit(ExitCode.DONE)
