"""Asks the kernel to tell of changes; or tells that nobody does, so that somebody has to look again and again."""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from meshkit.logging import get_logger
from meshkit.loops import cancel

_log = get_logger(__name__)

NATIVE, POLLING = "native", "polling"
# Of these the kernel tells only what this machine does to them.
_REMOTE = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "vboxsf", "drvfs", "afs", "ceph", "glusterfs"})


class ChangeTaker(Protocol):
    """What is told of changes."""

    def file_changed(self, file: bytes, *, closed: bool) -> None:
        """Note that a file, by its place below the root, came or was closed by who wrote it."""
        ...

    def folder_came(self, folder: bytes) -> None:
        """Note that a folder came."""
        ...

    def look_again(self) -> None:
        """Note that something was missed, or that a folder went."""
        ...


class NativeObserver:
    """Has the kernel tell.

    Args:
        root: Root of all that is watched.
        taker: Is told.

    Raises:
        OSError: The kernel has no room for it.
    """

    def __init__(self, root: Path, taker: ChangeTaker) -> None:
        # Only where it is used: it has a library of the system searched for.
        from asyncinotify import Inotify, Mask  # noqa: PLC0415 -- as above

        self._base = os.fsencode(root) + b"/"
        self._taker = taker
        self._mask = Mask
        self._wanted = (
            *(Mask.CLOSE_WRITE, Mask.CREATE, Mask.MOVED_TO, Mask.MOVED_FROM, Mask.DELETE, Mask.DELETE_SELF),
            *(Mask.MOVE_SELF, Mask.ONLYDIR, Mask.DONT_FOLLOW, Mask.EXCL_UNLINK),
        )
        self._inotify = Inotify(cache_size=256)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to tell."""
        self._task = asyncio.create_task(self._tell(), name="watch-folders")

    async def close(self) -> None:
        """End it."""
        if self._task is not None:
            await cancel([self._task])
        self._inotify.close()

    def watch(self, folder: bytes) -> None:
        """Watch a folder, by its whole path; again where it is watched already.

        Raises:
            OSError: It is not there, or the kernel has no room for it.
        """
        mask = self._mask(0)
        for one in self._wanted:
            mask |= one
        # One that was renamed is still the same to the kernel.
        self._inotify.add_watch(folder, mask).path = Path(os.fsdecode(folder))

    async def _tell(self) -> None:
        mask = self._mask
        while True:
            event = await self._inotify.get()
            if mask.Q_OVERFLOW in event.mask:
                _log.warning("changes_overflowed")
                self._taker.look_again()
                continue
            path = event.path
            if path is None or event.name is None:
                if event.mask & (mask.DELETE_SELF | mask.MOVE_SELF | mask.UNMOUNT):
                    self._taker.look_again()
                continue
            place = os.fsencode(path).removeprefix(self._base)
            if mask.ISDIR in event.mask:
                if event.mask & (mask.CREATE | mask.MOVED_TO):
                    self._taker.folder_came(place)
                else:
                    self._taker.look_again()
            elif event.mask & (mask.CLOSE_WRITE | mask.MOVED_TO | mask.CREATE):
                self._taker.file_changed(place, closed=not event.mask & mask.CREATE)


def choose_observer(root: Path, wanted: str, taker: ChangeTaker) -> NativeObserver | None:
    """Return what tells of changes below a root; None where it has to be looked at again and again.

    Args:
        root: The root.
        wanted: `native`, `polling` or `auto`.
        taker: Is told.

    Raises:
        OSError: `native` is wanted, and the kernel has no room for it.
    """
    if wanted == POLLING or (wanted == "auto" and (not sys.platform.startswith("linux") or is_remote(root))):
        return None
    try:
        return NativeObserver(root, taker)
    except OSError as error:
        if wanted == NATIVE:
            raise
        _log.warning("kernel_does_not_watch", cause=os.strerror(error.errno or 0))
        return None


def is_remote(root: Path) -> bool:
    """Whether a folder lies on a drive that other machines write to."""
    mounts: dict[str, str] = {}
    with suppress(OSError):
        for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            before, _, after = line.partition(" - ")
            mounts[before.split()[4].replace("\\040", " ")] = after.split()[0]
    place = next((str(one) for one in (root, *root.parents) if str(one) in mounts), "")
    kind = mounts.get(place, "")
    return kind in _REMOTE or kind.startswith("fuse.")
