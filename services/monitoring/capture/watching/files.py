"""Everything that touches the disk: looking through folders, and reading files without following a link.

All of it blocks, and is called in threads.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from services.monitoring.capture.watching.domain import (
    HEAD_BYTES,
    TAIL_BYTES,
    FileStamp,
    Wholeness,
    camera_of,
    is_photo_name,
    wholeness,
)

_CHUNK_BYTES = 1024 * 1024
_MOST_DEPTH = 16
# What a row holds; files may bear later times.
_LATEST_NS = 2**63 - 1
NOT_THERE = "Its folder is not there"
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class FileChangedError(Exception):
    """A file is no longer what it was: somebody writes it, or has replaced it."""


@dataclass(slots=True)
class FoldersFound:
    """What looking through folders has shown.

    Attributes:
        cameras: The cameras.
        troubles: What keeps a camera's folder, or one in it, from being read.
        files: Files that are new.
        refused: Links, and folders that can be no camera.
        complete: Whether all folders were looked through.
        met: How many files are not new.
    """

    cameras: set[str] = field(default_factory=set)
    troubles: dict[str, str] = field(default_factory=dict)
    files: list[tuple[bytes, FileStamp]] = field(default_factory=list)
    refused: list[bytes] = field(default_factory=list)
    complete: bool = True
    met: int = 0


def look_through(
    root: Path,
    is_new: Callable[[bytes, FileStamp], bool],
    watch: Callable[[bytes], None],
    most: int,
    skipped: Collection[str] = frozenset(),
) -> FoldersFound:
    """Look through all cameras.

    Args:
        root: Their root.
        is_new: Tells whether a file is neither known as it is nor waited for.
        watch: Called with each folder before it is read, so that nothing that comes to it meanwhile is missed.
        most: After so many new files the rest is left for the next time.
        skipped: Cameras that are not looked into: their files never become known, and would keep others from being.

    Raises:
        OSError: The root cannot be read.
    """
    found = FoldersFound()
    watch(os.fsencode(root))
    with os.scandir(os.fsencode(root)) as entries:
        folders = sorted((entry.name, entry.is_symlink(), entry.is_dir(follow_symlinks=False)) for entry in entries)
    for name, is_link, is_folder in folders:
        camera = camera_of(name) if is_folder else None
        if camera is None:
            if (is_link or is_folder) and not name.startswith(b"."):
                found.refused.append(name)
            continue
        found.cameras.add(camera)
        if camera not in skipped and found.complete:
            look_into(root, name, is_new, watch, most, found)
    return found


def look_into(  # noqa: PLR0917 -- what looking through folders goes on with
    root: Path,
    folder: bytes,
    is_new: Callable[[bytes, FileStamp], bool],
    watch: Callable[[bytes], None],
    most: int,
    found: FoldersFound,
) -> None:
    """Look through one folder below the root, and all in it; add to what was found."""
    waiting = [folder]
    base = os.fsencode(root)
    while waiting:
        place = waiting.pop()
        try:
            watch(os.path.join(base, place))  # noqa: PTH118 -- bytes, which no Path takes
            waiting += _read_folder(base, place, is_new, most, found)
        except OSError as error:
            camera = camera_of(folder.partition(b"/")[0])
            if camera is not None and not (isinstance(error, FileNotFoundError) and place != folder):
                found.troubles.setdefault(camera, trouble_of(error))
        if not found.complete:
            return


def _read_folder(
    base: bytes, place: bytes, is_new: Callable[[bytes, FileStamp], bool], most: int, found: FoldersFound
) -> list[bytes]:
    """Add what is in a folder to what was found; return the folders in it."""
    folders = []
    for name, is_link, is_folder, stamp in _entries(base, place):
        file = place + b"/" + name
        if is_link:
            found.refused.append(file)
        elif is_folder:
            if file.count(b"/") < _MOST_DEPTH:
                folders.append(file)
        elif stamp is not None and not is_new(file, stamp):
            found.met += 1
        elif stamp is not None:
            if len(found.files) >= most:
                found.complete = False
                break
            found.files.append((file, stamp))
    return folders


def _entries(base: bytes, place: bytes) -> Iterator[tuple[bytes, bool, bool, FileStamp | None]]:
    """Return name, whether it is a link, whether it is a folder, and what it is known by if it is called as photos."""
    with os.scandir(os.path.join(base, place)) as entries:  # noqa: PTH118 -- bytes, which no Path takes
        for entry in entries:
            if entry.name.startswith(b"."):
                continue
            is_folder = entry.is_dir(follow_symlinks=False)
            wanted = is_photo_name(entry.name)
            if entry.is_symlink():
                yield entry.name, True, False, None
            elif is_folder:
                yield entry.name, False, True, None
            elif wanted and entry.is_file(follow_symlinks=False):
                try:
                    yield entry.name, False, False, _stamp(entry.stat(follow_symlinks=False))
                except FileNotFoundError:  # deleted at once
                    continue


def trouble_of(error: OSError) -> str:
    """Return what to say of a folder that cannot be read."""
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return NOT_THERE
    reason = os.strerror(error.errno) if error.errno else type(error).__name__
    return f"Its folder cannot be read: {reason}"


def passes(error: OSError) -> bool:
    """Whether a file that cannot be read now can perhaps be read later: not a link, and not what is behind one."""
    return error.errno is not None and error.errno not in {errno.ELOOP, errno.ENOTDIR}


def reason_of(error: OSError) -> str:
    """Return why a file cannot be read."""
    return os.strerror(error.errno) if error.errno else "it is no plain file"


def is_away(root: Path) -> bool:
    """Whether the drive of the cameras is away: its place is not there, or has no folder, as one not mounted."""
    try:
        with os.scandir(root) as entries:
            return not any(entry.is_dir(follow_symlinks=False) for entry in entries)
    except OSError:
        return True


def has_folder(root: Path, camera: str) -> bool:
    """Whether the folder of a camera is there, or cannot be told to be gone."""
    try:
        return stat.S_ISDIR((root / camera).lstat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True


def stamp_of(root: Path, file: bytes) -> FileStamp | None:
    """Return what a file is known by; None where there is no plain file."""
    try:
        found = os.lstat(os.path.join(os.fsencode(root), file))  # noqa: PTH118 -- bytes, which no Path takes
    except (FileNotFoundError, NotADirectoryError):
        return None
    return _stamp(found) if stat.S_ISREG(found.st_mode) else None


def still_there(root: Path, known: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    """Return those of known files that are there."""
    return {file: stamp for file, stamp in list(known.items()) if stamp_of(root, file) is not None}


def open_file(root: Path, file: bytes) -> int:
    """Open a file below the root to read it; no link is followed on the way.

    Returns:
        Its descriptor, which the caller closes.

    Raises:
        OSError: It cannot be opened, is a link or behind one, or is no plain file.
    """
    *folders, name = file.split(b"/")
    if not all(part not in {b"", b".", b".."} for part in (*folders, name)):
        raise PermissionError("not a place below the root")
    at = os.open(root, _FOLDER)
    try:
        for part in folders:
            below = os.open(part, _FOLDER | os.O_NOFOLLOW, dir_fd=at)
            os.close(at)
            at = below
        opened = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=at)
    finally:
        os.close(at)
    if not stat.S_ISREG(os.fstat(opened).st_mode):
        os.close(opened)
        raise PermissionError("not a plain file")
    return opened


def look_at_ends(root: Path, file: bytes) -> Wholeness:
    """Tell whether a file ends as its format does.

    Raises:
        OSError: It cannot be read.
    """
    opened = open_file(root, file)
    try:
        size = os.fstat(opened).st_size
        tail = min(size, TAIL_BYTES)
        return wholeness(os.pread(opened, HEAD_BYTES, 0), os.pread(opened, tail, size - tail), size)
    finally:
        os.close(opened)


def hash_file(root: Path, file: bytes, stamp: FileStamp) -> str:
    """Return the SHA-256 of a file's content.

    Raises:
        FileChangedError: It is not what it was, or did not stay so.
        OSError: It cannot be read.
    """
    digest = hashlib.sha256()
    for chunk in _chunks(root, file, stamp):
        digest.update(chunk)
    return digest.hexdigest()


def read_photo(root: Path, file: bytes, sha256: str, most: int) -> bytes:
    """Return the content of a photo.

    Args:
        root: Root of the cameras.
        file: Its file below the root.
        sha256: What its content must hash to.
        most: Most bytes that are read.

    Raises:
        FileChangedError: The file has another content by now, or a larger one.
        OSError: It cannot be read, or is there no more.
    """
    if stamp_of(root, file) is None:
        raise FileNotFoundError
    # The content alone counts: a new name or other rights change a stamp too.
    with open(open_file(root, file), "rb") as stream:
        content = stream.read(most + 1)
    if len(content) > most or hashlib.sha256(content).hexdigest() != sha256:
        raise FileChangedError
    return content


def _chunks(root: Path, file: bytes, stamp: FileStamp) -> Iterator[bytes]:
    opened = open_file(root, file)
    try:
        if _stamp(os.fstat(opened)) != stamp:
            raise FileChangedError
        left = stamp.size
        while left > 0:
            chunk = os.read(opened, min(left, _CHUNK_BYTES))
            if not chunk:
                raise FileChangedError
            left -= len(chunk)
            yield chunk
        if _stamp(os.fstat(opened)) != stamp:
            raise FileChangedError
    finally:
        os.close(opened)


def _stamp(found: os.stat_result) -> FileStamp:
    return FileStamp(found.st_size, min(found.st_mtime_ns, _LATEST_NS), found.st_ctime_ns)
