"""What processes that have children share: a child dies with its parent, and is told none of its secrets."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Mapping

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with_parent(parent_pid: int) -> None:
    """Have the kernel kill this process when the thread that started it ends; leave at once if it has already.

    Without the second check, a parent that dies between fork and prctl would leave an orphan.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent_pid:
        os._exit(1)


def environment_without_secrets(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return this process's environment without the mesh's settings: a child opens files of strangers.

    Args:
        more: Variables that the child has besides; this process's own win over them.
    """
    from meshkit.config import PREFIX  # noqa: PLC0415 -- a child needs none of what reads settings

    return {**(more or {}), **{name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}}
