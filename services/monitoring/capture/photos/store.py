"""What photos need of a database."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol
from uuid import UUID

from services.monitoring.capture.pages import PageFound, PageWanted
from services.monitoring.capture.photos.domain import DetectionRecord, PhotoRecord, PhotosWanted, SeenFile


class PhotoStore(Protocol):
    """Photos as rows."""

    async def find_photo(self, photo_id: UUID) -> tuple[PhotoRecord, Sequence[DetectionRecord]] | None:
        """Return a photo with what was found on it."""
        ...

    async def list_photos(self, wanted: PhotosWanted, page: PageWanted) -> PageFound[PhotoRecord]:
        """Return photos, newest first."""
        ...

    async def known_files(self, files: Collection[bytes]) -> Mapping[bytes, tuple[int, int]]:
        """Return size and time of change that files had when they were seen last; not of those unseen or missed."""
        ...

    async def other_files(self, seen: Sequence[SeenFile]) -> Sequence[tuple[bytes, bytes]]:
        """Return files with others of the same camera that had the same content when they were seen last."""
        ...

    async def take(self, seen: Sequence[SeenFile], moved: Mapping[bytes, bytes]) -> int:
        """Write photos; of those whose content is known for their file the time of change alone.

        Args:
            seen: The files, each once.
            moved: By file, one of the same content that is there no more: its photo is this one.

        Returns:
            How many are new photos.
        """
        ...
