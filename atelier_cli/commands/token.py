"""`atelier token`: a bearer token for the mesh."""

import sys
from typing import Annotated, Final

import typer

from atelier_cli.commands.mesh import Data
from atelier_cli.errors import CliError, ExitCode
from atelier_cli.folder import DataFolder
from atelier_cli.tokens import DEFAULT_TENANT, issue

_DAYS: Final = 30.0
_MOST_DAYS: Final = 36_500


def token(
    data: Data = None,
    tenant: Annotated[str, typer.Option(help="Tenant that the token is good for.")] = DEFAULT_TENANT,
    scopes: Annotated[
        str, typer.Option(help="Scopes, separated by commas: read, write, admin, operator, support, worker, mesh.")
    ] = "read,write",
    days: Annotated[float, typer.Option(min=0, help="Days that it is good for.")] = _DAYS,
) -> None:
    """Print a token, and nothing else."""
    names = [name.strip() for name in scopes.split(",") if name.strip()]
    if not days <= _MOST_DAYS:  # also what is no number
        raise CliError(f"--days is {_MOST_DAYS} at most.", ExitCode.USAGE)
    text = issue(DataFolder.choose(data), tenant=tenant, scopes=names, ttl_seconds=days * 86400)
    sys.stdout.write(text + "\n")
