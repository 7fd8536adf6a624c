"""How a worker does: its memory, its processes, what it has done."""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Mapping
from datetime import UTC, datetime

import psutil
from atelier.tasks.v1.worker_service_pb2 import WorkerLoad

from meshkit.moments import assign
from meshkit.worker.gpus import GpuGauge

# As many as a heartbeat may name: one that names more is refused, and the worker lost.
_MOST_CHILDREN = 256
_LONGEST_FAULT = 500
# What the operating system tells of a process; `ru_` is the prefix of getrusage(2).
_USED = tuple(name.removeprefix("ru_") for name in dir(resource.struct_rusage) if name.startswith("ru_"))


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

    @property
    def child_pids(self) -> list[int]:
        """Those that it started, as they were found last."""
        return [one.pid for one in self._members[1:]]

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


class WorkerGauge:
    """Tells how this process does, as a worker."""

    def __init__(self) -> None:
        self._tree = ProcessTree(os.getpid())
        self._gpus = GpuGauge()
        self._started = datetime.fromtimestamp(psutil.Process().create_time(), UTC)

    def read(self, completed: Mapping[str, int], fault: str = "") -> WorkerLoad:
        """Return what a heartbeat carries.

        Args:
            completed: Jobs that it has completed, by type.
            fault: Why it takes no work; empty where it does.
        """
        used = resource.getrusage(resource.RUSAGE_SELF)
        load = WorkerLoad(
            memory_bytes=self._tree.resident_bytes(),
            completed=completed,
            pid=os.getpid(),
            child_pids=self._tree.child_pids[:_MOST_CHILDREN],
            rusage={name: getattr(used, f"ru_{name}") for name in _USED},
            gpus=self._gpus.read(),
            fault=fault[:_LONGEST_FAULT],
        )
        assign(load.started_at, self._started)
        return load
