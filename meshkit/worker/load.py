"""How much memory a worker and its children take."""

from __future__ import annotations

import contextlib

import psutil


class ProcessTree:
    """Resident memory of a process and of all it started.

    Args:
        pid: The process.
    """

    _RESCAN_EVERY = 4  # to list processes is the slow part, and children of a child are rare

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._samples = 0
        self._members: list[psutil.Process] = []

    def resident_bytes(self) -> int:
        """Return the sum over the processes that live."""
        if self._samples % self._RESCAN_EVERY == 0:
            with contextlib.suppress(psutil.Error):
                root = psutil.Process(self._pid)
                self._members = [root, *root.children(recursive=True)]
        self._samples += 1
        total = 0
        for member in self._members:
            with contextlib.suppress(psutil.Error):
                total += member.memory_info().rss
        return total
