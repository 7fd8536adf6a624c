"""The most memory that is taken while something runs, seen from outside of it.

On a GPU it is counted for the whole device, so that the worker's child, a process of its own, is measured as the bare
call is. On a CPU it is the resident memory of a process and its children. Either way what was taken before counts out.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Self

import psutil

_SAMPLE_SECONDS = 0.05
_GIB = 1 << 30


class PeakMemory:
    """Samples memory from `with` to the end of the block.

    Args:
        taken: Returns the bytes that are taken now.
        sample_seconds: How often it is asked.
    """

    def __init__(self, taken: Callable[[], int], sample_seconds: float = _SAMPLE_SECONDS) -> None:
        self._taken = taken
        self._seconds = sample_seconds
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="peak-memory", daemon=True)
        self._before = 0
        self._peak = 0

    @property
    def gib(self) -> float:
        """The most that was taken beyond what was taken before, in GiB."""
        return max(self._peak - self._before, 0) / _GIB

    def __enter__(self) -> Self:
        self._before = self._taken()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        self._peak = max(self._peak, self._taken())

    def _sample(self) -> None:
        while not self._ended.wait(self._seconds):
            self._peak = max(self._peak, self._taken())


def memory_of(device: str, process: int) -> PeakMemory:
    """Return what measures a device's memory: of all of a GPU, or of a process and its children on a CPU."""
    return PeakMemory(partial(_resident, process) if device == "cpu" else _on_gpu)


def _on_gpu() -> int:
    import torch  # noqa: PLC0415 -- seconds, which a part that measures a CPU does not need

    free, total = torch.cuda.mem_get_info()
    return int(total - free)


def _resident(process: int) -> int:
    total = 0
    try:
        root = psutil.Process(process)
        members = [root, *root.children(recursive=True)]
    except psutil.Error:
        return 0
    for member in members:
        try:
            total += int(member.memory_info().rss)
        except psutil.Error:  # it has ended meanwhile
            continue
    return total
