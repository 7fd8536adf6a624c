"""The files of photos that are to be forgotten."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from meshkit.logging import get_logger
from services.monitoring.capture.cleanup.store import KeptFile

_log = get_logger(__name__)


class PhotoFiles:
    """Looks after files below the root.

    Args:
        root: The root.
        deletes: Whether files are deleted.
    """

    def __init__(self, root: Path, *, deletes: bool) -> None:
        self._root = root.resolve()
        self._deletes = deletes

    def is_gone(self, kept: KeptFile) -> bool:
        """Tell whether the file of a photo is gone, or is another by now."""
        try:
            found = self._path(kept).lstat()
        except OSError:
            return True
        is_same = stat.S_ISREG(found.st_mode) and (found.st_size, found.st_mtime_ns) == (kept.size, kept.modified_ns)
        return not is_same

    def remove(self, kept: KeptFile) -> bool:
        """Delete the file of a photo where files are deleted, and it is still the one that was seen.

        Returns:
            Whether it is gone.
        """
        if self.is_gone(kept):
            return True
        path = self._path(kept)
        # A folder that has become a link leads to what never was a photo.
        if not self._deletes or not path.parent.resolve().is_relative_to(self._root):
            return False
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            _log.warning("photo_not_deleted", photo_id=str(kept.photo_id), cause=error.strerror)
            return False
        return True

    def _path(self, kept: KeptFile) -> Path:
        return self._root / os.fsdecode(kept.file)
