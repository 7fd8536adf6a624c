"""Settings of the mesh that the command line itself has to know, read as the services read them."""

import os
from pathlib import Path

from atelier_cli.errors import CliError, ExitCode

PREFIX = "ATELIER_"
FILE_SUFFIX = "_FILE"


def given(name: str) -> str | None:
    """Return a setting from the environment, or from the file that the variable with `_FILE` names.

    Args:
        name: Its variable, `ATELIER_...`.

    Returns:
        Its value; None where it is absent or empty.

    Raises:
        CliError: The file cannot be read.
    """
    if value := os.environ.get(name):
        return value
    path = os.environ.get(f"{name}{FILE_SUFFIX}")
    if not path:
        return None
    try:
        return Path(path).read_text(encoding="utf-8").rstrip("\r\n") or None
    except (OSError, UnicodeDecodeError) as error:
        cause = error.strerror if isinstance(error, OSError) else "it is no text"
        raise CliError(f"{name}{FILE_SUFFIX} names {path}, which cannot be read: {cause}.", ExitCode.USAGE) from error


def files() -> dict[str, str]:
    """Return the variables that name files, by paths that hold wherever a process stands."""
    return {
        name: str(Path(path).absolute())
        for name, path in os.environ.items()
        if name.startswith(PREFIX) and name.endswith(FILE_SUFFIX) and path
    }
