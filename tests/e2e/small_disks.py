"""Small disks for the parts of a mesh that write, and how one is filled."""

import contextlib
import os
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# MiB: what a fresh part takes, and some more.
SIZES = {"postgres": 160, "s3": 96, "nats": 24, "worker": 8, "logs": 8}


class NoSmallDisksError(Exception):
    """This process may mount none; the text says why."""


@dataclass(frozen=True, slots=True)
class SmallDisks:
    """Disks that only the processes of one mount namespace see.

    Attributes:
        folder: Where the mesh lies; the same path within and without.
        enter: What a command begins with that is to run among the disks.
        seen: The namespace's file system, as others see it.
    """

    folder: Path
    enter: tuple[str, ...]
    seen: Path

    def disk(self, part: str) -> Path:
        """A part's disk, for whoever does not run among them."""
        return self.seen / (self.folder / part).relative_to("/")


@contextlib.contextmanager
def small_disks(folder: Path) -> Iterator[SmallDisks]:
    """Make a folder for a mesh, whose parts lie on file systems of their own.

    They are mounted in a namespace of their own, in which any user may mount where the kernel lets users have one. They
    go with its last process.

    Raises:
        NoSmallDisksError: This user may not, on this system.
    """
    root = os.geteuid() == 0
    for part in SIZES:
        (folder / part).mkdir(parents=True)
    folder.chmod(0o711)
    mounts = [
        f"mount -t tmpfs -o size={size}m,mode=0711 tmpfs {shlex.quote(str(folder / part))}"
        for part, size in SIZES.items()
    ]
    own = ("unshare", "--mount") if root else ("unshare", "--user", "--map-current-user", "--keep-caps", "--mount")
    try:
        keeper = subprocess.Popen(
            [*own, "sh", "-c", " && ".join([*mounts, "echo ready", "exec cat"])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    except FileNotFoundError:
        raise NoSmallDisksError("there is no unshare on this system") from None
    with keeper:  # it ends with its input, which is closed at the end
        assert keeper.stdout is not None
        assert keeper.stderr is not None
        if keeper.stdout.readline() != "ready\n":
            raise NoSmallDisksError(f"this user may mount no small disk here: {keeper.stderr.read().strip()}")
        user = () if root else ("--user", "--preserve-credentials")
        enter = ("nsenter", "--target", str(keeper.pid), *user, "--mount", "--")
        yield SmallDisks(folder, enter, Path(f"/proc/{keeper.pid}/root"))


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
