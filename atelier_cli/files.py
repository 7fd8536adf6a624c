"""Files that the user names: read within a bound, written whole or not at all."""

import os
from pathlib import Path
from typing import Final

from atelier_cli.errors import CliError, ExitCode

# With base64 it still fits into a request of 32 MiB, the gateway's bound.
MAX_INLINE_BYTES: Final = 23 * 1024**2


def content(file: Path, max_bytes: int) -> bytes:
    """Return the bytes of a file.

    Raises:
        CliError: It cannot be read, or is larger than that.
    """
    try:
        with file.open("rb") as stream:
            # One byte more shows that there is more; devices have no size.
            data = stream.read(max_bytes + 1)
    except IsADirectoryError:
        raise CliError(f"{file} is a folder, not a file.", ExitCode.USAGE) from None
    except OSError as error:
        raise CliError(f"{file} cannot be read: {error.strerror}.", ExitCode.USAGE) from error
    if len(data) > max_bytes:
        raise CliError(f"{file} is larger than {max_bytes // 1024**2} MiB.", ExitCode.USAGE)
    return data


def save(file: Path, data: bytes) -> None:
    """Write a file, whole or not at all.

    Raises:
        CliError: It cannot be written.
    """
    draft = file.with_name(f".{file.name[:100]}.{os.getpid()}")
    try:
        try:
            draft.write_bytes(data)
            draft.replace(file)
        except OSError:
            draft.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise CliError(f"{file} cannot be written: {error.strerror}.") from error
