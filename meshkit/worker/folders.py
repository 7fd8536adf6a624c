"""Folders of attempts on the local disk: made when needed, removed with the attempt or after a killed process."""

from __future__ import annotations

import fcntl
import itertools
import os
import shutil
from pathlib import Path


class AttemptFolders:
    """Folders of attempts, of this process and gone with it.

    Each process has a folder that it holds a lock on; what killed processes left is removed at the next start.

    Args:
        own: This process's folder.
        lock: Descriptor of the file that is locked as long as the process lives.
    """

    def __init__(self, own: Path, lock: int) -> None:
        self._own = own
        self._lock = lock
        self._numbers = itertools.count(1)

    @classmethod
    def open(cls, root: Path) -> AttemptFolders:
        """Remove what others left, and make this process's folder.

        Args:
            root: Folder that all workers of the machine may share.
        """
        root.mkdir(parents=True, exist_ok=True)
        for left in root.glob("*.lock"):
            _remove_unlocked(left)
        own = root / f"{os.getpid()}-{os.urandom(4).hex()}"
        # The lock is there before the folder, so that a folder without a lock is nobody's.
        lock = os.open(own.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        own.mkdir(mode=0o700)
        return cls(own, lock)

    def close(self) -> None:
        """Remove this process's folder."""
        shutil.rmtree(self._own, ignore_errors=True)
        self._own.with_suffix(".lock").unlink(missing_ok=True)
        os.close(self._lock)

    def name(self) -> str:
        """Return a folder for one attempt; whoever puts something into it first makes it."""
        return f"{self._own}/{next(self._numbers)}"

    @staticmethod
    def make(folder: str) -> Path:
        """Make an attempt's folder."""
        path = Path(folder)
        path.mkdir()
        return path

    @staticmethod
    def remove(folder: str) -> None:
        """Remove an attempt's folder and what is in it, where it was made."""
        if os.path.lexists(folder):
            shutil.rmtree(folder, ignore_errors=True)


def _remove_unlocked(lock: Path) -> None:
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
        lock.unlink(missing_ok=True)
    except BlockingIOError:
        pass  # its process lives
    finally:
        os.close(descriptor)
