"""What a child says on its standard error: passed on, and its last error kept, so that its end can be explained."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from typing import Self

from meshkit.logging import redact

_KEPT_BYTES = 8192
_HELD_BYTES = 8192  # of a line that has not ended
_MOST_CHARS = 200
_END_SECONDS = 1.0
_STDERR = 2
_TRACEBACK = "Traceback (most recent call last):"
# The folders of a path that begins here: neither those of an address nor a fraction.
_FOLDERS = re.compile(r"(?<![\w:/.])/(?:[^/\s'\":]+/)+")
_SECRET_NAME = re.compile(r"(?i)(token|secret|password|passwd|key|credential)")
_SHORTEST_SECRET = 6


class LastWords:
    """Reads the standard error of one child.

    Args:
        reader: What the child writes.
        transport: The end that is read.
        fd: The end that the child is given.
        pass_on: Whether it is written to this process's standard error too.
    """

    def __init__(
        self, reader: asyncio.StreamReader, transport: asyncio.BaseTransport, fd: int, *, pass_on: bool
    ) -> None:
        self.fd = fd
        self._transport = transport
        self._pass_on = pass_on
        self._kept = b""
        self._reading = asyncio.ensure_future(self._read(reader))

    @classmethod
    async def open(cls, *, pass_on: bool = True) -> Self:
        """Make the pipe; its `fd` is the child's standard error.

        The pipe is none of asyncio's own: with that one, the end of a child would wait for all who hold it.
        """
        ours, theirs = os.pipe()
        reader = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(ours, "rb", buffering=0)
        )
        return cls(reader, transport, theirs, pass_on=pass_on)

    def given(self) -> None:
        """Close the child's end here, once the child has it or will never."""
        os.close(self.fd)

    async def ended(self) -> str:
        """Take the rest of what a child has said that has ended; returns its last error, empty where it told none."""
        # Who else holds the pipe is not waited for long.
        await asyncio.wait([self._reading], timeout=_END_SECONDS)
        self._reading.cancel()
        self._transport.close()
        return last_error(self._kept)

    async def _read(self, reader: asyncio.StreamReader) -> None:
        held = b""
        while chunk := await reader.read(1 << 16):
            self._kept = (self._kept + chunk)[-_KEPT_BYTES:]
            if self._pass_on:
                # Whole lines, so that none of this process's own comes to stand within one.
                lines, end, rest = (held + chunk).rpartition(b"\n")
                held = rest
                _write(lines + end)
                if len(held) > _HELD_BYTES:
                    _write(held)
                    held = b""
        _write(held)


def last_error(said: bytes) -> str:
    """Return the last error of a standard error in one line, without secrets and folders; empty where it has none.

    Args:
        said: The end of it.
    """
    lines = [line for line in said.decode("utf-8", "replace").splitlines() if line.strip()]
    # The log's lines are JSON.
    lines = [line for line in lines if not line.startswith("{")]
    if not lines:
        return ""
    line = lines[-1]
    if _TRACEBACK in lines:
        begun = len(lines) - 1 - lines[::-1].index(_TRACEBACK)
        # What follows its frames, which are indented, is the exception; its text may have more lines.
        line = next((one for one in lines[begun + 1 :] if not one[0].isspace()), line)
    return told_plainly(line)


def told_plainly(line: str) -> str:
    """Return a line of a process's output as it may be told: short, printable, without secrets and folders."""
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST_SECRET and _SECRET_NAME.search(name):
            line = line.replace(value, "[redacted]")
    line = _FOLDERS.sub("", str(redact(line)))
    line = "".join(char if char.isprintable() else " " for char in line).strip()
    return line if len(line) <= _MOST_CHARS else f"{line[: _MOST_CHARS - 1]}\u2026"


def _write(data: bytes) -> None:
    while data:
        with contextlib.suppress(OSError):  # as of the log: no work fails by what cannot be written
            data = data[os.write(_STDERR, data) :]
            continue
        return
