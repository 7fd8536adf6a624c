"""The files of photos that are to be forgotten."""

from __future__ import annotations

import os
from pathlib import Path

from meshkit.logging import get_logger
from services.monitoring.capture.cleanup.store import KeptFile
from services.monitoring.capture.watching.files import is_away, stamp_of

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

    def are_away(self) -> bool:
        """Tell whether none can be reached."""
        return is_away(self._root)

    def is_gone(self, kept: KeptFile) -> bool:
        """Tell whether the file of a photo is gone, or is another by now, for sure."""
        return self._is_there(kept) is False

    def remove(self, kept: KeptFile) -> bool:
        """Delete the file of a photo where files are deleted, and it is still the one that was seen.

        Returns:
            Whether it is gone.
        """
        is_there = self._is_there(kept)
        if not is_there:
            return is_there is False
        path = self._root / os.fsdecode(kept.file)
        # A folder that has become a link leads to what never was a photo.
        if not self._deletes or not path.parent.resolve().is_relative_to(self._root):
            return False
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            _log.warning("photo_not_deleted", photo_id=str(kept.photo_id), cause=error.strerror)
            return False
        return True

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
