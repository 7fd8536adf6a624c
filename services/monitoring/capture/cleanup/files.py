"""The files of photos that are to be forgotten."""

from __future__ import annotations

import enum
import os
from pathlib import Path

from services.monitoring.capture.cleanup.store import KeptFile
from services.monitoring.capture.watching.files import is_away, stamp_of


class FileFate(enum.Enum):
    """What became of a file that was to be deleted."""

    GONE = "gone"
    # It stays: files are not deleted here, or it is not surely the one that was seen.
    STAYS = "stays"
    NOT_DELETED = "not deleted"


class PhotoFiles:
    """Looks after files below the root.

    Args:
        root: The root.
        deletes: Whether files are deleted.
    """

    def __init__(self, root: Path, *, deletes: bool) -> None:
        self._root = root.resolve()
        self._deletes = deletes

    def are_away(self) -> bool:
        """Tell whether none can be reached."""
        return is_away(self._root)

    def remove(self, kept: KeptFile) -> tuple[FileFate, str]:
        """Delete the file of a photo where files are deleted, and it is still the one that was seen.

        Returns:
            What became of it, and why it could not be deleted.
        """
        is_there = self._is_there(kept)
        if not is_there:
            return (FileFate.STAYS if is_there is None else FileFate.GONE), ""
        path = self._root / os.fsdecode(kept.file)
        # A folder that has become a link leads to what never was a photo.
        if not self._deletes or not path.parent.resolve().is_relative_to(self._root):
            return FileFate.STAYS, ""
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            return FileFate.NOT_DELETED, os.strerror(error.errno) if error.errno else type(error).__name__
        return FileFate.GONE, ""

    def _is_there(self, kept: KeptFile) -> bool | None:
        """Whether the file is there as it was seen; None where that cannot be told.

        A row that went while its file is only out of reach, or bears another time, would make it a new photo.
        """
        if kept.missed:
            return False
        try:
            stamp = stamp_of(self._root, kept.file)
        except OSError:
            return None
        if stamp is None:
            return None if is_away(self._root) else False
        if stamp.size != kept.size:
            return False
        return True if stamp.modified_ns == kept.modified_ns else None
