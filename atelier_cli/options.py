"""Members of a request as options of a command."""

import json
from typing import Annotated, Any, Literal

import typer
from rich.markup import escape

from atelier_cli.errors import CliError, ExitCode
from atelier_cli.taskforms import PlainMember

_METAVARS: dict[type, str] = {int: "INTEGER", float: "NUMBER", dict: "JSON"}


def option_of(member: PlainMember) -> tuple[Any, Any]:
    """Return an option's annotation and its default."""
    text = escape(member.help)  # brackets would be read as markup
    if member.choices:
        option = typer.Option(help=text, case_sensitive=False)
        return Annotated[Literal[member.choices] | None, option], None
    kind: Any = str if member.kind is dict else member.kind
    flag = member.name.replace("_", "-")
    name = f"--{flag}/--no-{flag}" if kind is bool else f"--{flag}"
    metavar = None if kind is bool else _METAVARS.get(member.kind, "TEXT")
    option = typer.Option(name, help=text, metavar=metavar)
    return Annotated[(list[kind] if member.many else kind) | None, option], None


def member_value(member: PlainMember, given: Any) -> Any:
    """Return the value of a member as the request has it.

    Raises:
        CliError: It is to be JSON, and is none.
    """
    if member.kind is not dict:
        return given
    return [_parsed(member, one) for one in given] if member.many else _parsed(member, given)


def _parsed(member: PlainMember, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        raise CliError(f"--{member.name.replace('_', '-')} is no JSON: {text!r}.", ExitCode.USAGE) from None
