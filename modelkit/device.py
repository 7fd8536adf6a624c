"""The device that models run on: which one it is, what it has free, and how memory goes back to it."""

from __future__ import annotations

import ctypes
import gc
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


@dataclass(frozen=True, slots=True)
class Device:
    """Where models run.

    Attributes:
        name: A torch device (`cpu`, `cuda`, `cuda:1`).
        threads: Processor threads of one computation; 0 leaves it to each library.
    """

    name: str
    threads: int = 0

    @classmethod
    def choose(cls, name: str, threads: int = 0) -> Device:
        """Return the device of this name; `auto` takes CUDA where there is one."""
        return cls(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name, threads)

    @property
    def dtype(self) -> torch.dtype:
        """Type of numbers that torch models run in: float32 on a processor, bfloat16 elsewhere."""
        return torch.float32 if torch.device(self.name).type == "cpu" else torch.bfloat16

    def free_bytes(self) -> int:
        """Bytes of its memory that are free; on a processor, within the container's limit."""
        if torch.device(self.name).type == "cuda":
            free: int = torch.cuda.mem_get_info(self.name)[0]
            return free
        available: int = psutil.virtual_memory().available
        for limit in _CGROUP_LIMITS:
            try:
                available = min(available, int(Path(limit).read_text("ascii")))
            except (OSError, ValueError):
                continue
        return available


def release() -> None:
    """Give the memory of closed models back: Python's cycles, CUDA's cache, and the heap's free pages."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc alone has it
    if trim is not None:
        trim(0)
