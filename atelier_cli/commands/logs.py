"""`atelier logs`: what the processes of the mesh wrote."""

import sys
import time
from pathlib import Path
from typing import Annotated, Final

import typer

from atelier_cli.commands.mesh import Data
from atelier_cli.errors import CliError, ExitCode
from atelier_cli.folder import DataFolder

_POLL_SECONDS: Final = 0.3
_BLOCK_BYTES: Final = 64 * 1024


def logs(
    service: Annotated[
        str | None, typer.Argument(help="gateway, tasks, worker...; all of them where absent.", show_default=False)
    ] = None,
    *,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what is written, until Ctrl-C.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, max=100_000, help="Last lines of each log.")] = 20,
    data: Data = None,
) -> None:
    """Print the last lines of the logs, behind the name of the process that wrote them where there are several."""
    files = _files(DataFolder.choose(data), service)
    tails = [LogTail(file) for file in files]
    for tail in tails:
        _print(tail, tail.last(lines), named=service is None)
    while follow:
        time.sleep(_POLL_SECONDS)
        for tail in tails:
            _print(tail, tail.new(), named=service is None)


class LogTail:
    """Reads the whole lines at the end of one log.

    Args:
        file: The log.
    """

    def __init__(self, file: Path) -> None:
        self.name = file.stem
        self._file = file
        self._read = 0

    def last(self, count: int) -> list[bytes]:
        """Return its last lines; `new` goes on behind them."""
        with self._file.open("rb") as stream:
            start = end = stream.seek(0, 2)
            tail = b""
            # One newline more than lines: the one before the first of them.
            while start > 0 and tail.count(b"\n") <= count:
                start = max(start - _BLOCK_BYTES, 0)
                stream.seek(start)
                tail = stream.read(end - start)
        whole = tail[: tail.rfind(b"\n") + 1]
        self._read = start + len(whole)
        return whole.splitlines(keepends=True)[-count:] if count else []

    def new(self) -> list[bytes]:
        """Return the lines that were finished since."""
        with self._file.open("rb") as stream:
            if stream.seek(0, 2) < self._read:
                self._read = 0  # the file was begun anew
            stream.seek(self._read)
            text = stream.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._read += len(whole)
        return whole.splitlines(keepends=True)


def _files(folder: DataFolder, service: str | None) -> list[Path]:
    files = sorted((folder / "logs").glob("*.log"))
    if not files:
        raise CliError(f"There are no logs on {folder}; `atelier up` starts a mesh.", ExitCode.NOT_RUNNING)
    chosen = [file for file in files if service in {None, file.stem}]
    if not chosen:
        names = ", ".join(file.stem for file in files)
        raise CliError(f"There is no log of {service!r}; there are those of {names}.", ExitCode.USAGE)
    return chosen


def _print(tail: LogTail, lines: list[bytes], *, named: bool) -> None:
    prefix = f"{tail.name:9s} | ".encode() if named else b""
    for line in lines:
        sys.stdout.buffer.write(prefix + line)
    sys.stdout.buffer.flush()
