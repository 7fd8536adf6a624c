"""Small disks for the parts of a mesh that write, and how one is filled."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

# MiB: what a fresh part takes, and some more.
SIZES = {"postgres": 160, "s3": 96, "nats": 24, "worker": 8, "logs": 8}


class NoSmallDisksError(Exception):
    """This process may mount none; the text says why."""


@contextlib.contextmanager
def small_disks(folder: Path) -> Iterator[Path]:
    """Make a folder for a mesh, whose parts lie on file systems of their own.

    Raises:
        NoSmallDisksError: Only root may, and not on every system.
    """
    if os.geteuid() != 0:
        raise NoSmallDisksError("only root may mount the small disks")
    with contextlib.ExitStack() as stack:
        for part, size in SIZES.items():
            path = folder / part
            path.mkdir(parents=True)
            mount = ["mount", "-t", "tmpfs", "-o", f"size={size}m,mode=0711", "tmpfs", str(path)]
            done = subprocess.run(mount, capture_output=True, text=True, check=False)
            if done.returncode:
                raise NoSmallDisksError(f"this system mounts no small disk: {done.stderr.strip()}")
            stack.callback(subprocess.run, ["umount", "--lazy", str(path)], check=True)
        folder.chmod(0o711)
        yield folder


@contextlib.contextmanager
def filled(disk: Path) -> Iterator[None]:
    """Take all room of a disk, to the last byte, and give it back."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(b"\0" * size)
    try:
        yield
    finally:
        filler.unlink()
