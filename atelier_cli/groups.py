"""Groups of commands, as in `atelier task list`."""

import difflib
from typing import Any

from typer.core import TyperGroup

from atelier_cli.errors import CliError, ExitCode


class CommandGroup(TyperGroup):
    """A group that says what commands it has where the one asked for is not even like one of them."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command that is asked for.

        Raises:
            CliError: There is none like it.
        """
        asked = args[0] if args else ""
        if asked and self.get_command(ctx, asked) is None and not difflib.get_close_matches(asked, self.commands):
            there = ", ".join(self.list_commands(ctx))
            raise CliError(f"`{ctx.command_path}` has no command {asked!r}; it has {there}.", ExitCode.USAGE)
        return super().resolve_command(ctx, args)
