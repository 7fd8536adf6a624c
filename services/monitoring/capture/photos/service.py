"""What callers ask of photos and batches."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from services.monitoring.capture.access import CaptureAccess
from services.monitoring.capture.batches.domain import BatchesWanted, BatchRecord
from services.monitoring.capture.batches.store import BatchStore
from services.monitoring.capture.errors import batch_not_found, photo_not_found
from services.monitoring.capture.pages import PageFound, PageWanted
from services.monitoring.capture.photos.domain import DetectionRecord, PhotoRecord, PhotosWanted
from services.monitoring.capture.photos.store import PhotoStore


class PhotoDesk:
    """Shows photos and batches.

    Args:
        photos: Rows of photos.
        batches: Rows of batches.
        access: Judges callers.
    """

    def __init__(self, photos: PhotoStore, batches: BatchStore, access: CaptureAccess) -> None:
        self._photos = photos
        self._batches = batches
        self._access = access

    async def get(self, photo_id: UUID) -> tuple[PhotoRecord, Sequence[DetectionRecord]]:
        """Return a photo with what was found on it.

        Raises:
            MeshError: There is none for this caller.
        """
        found = await self._photos.find_photo(photo_id) if self._access.reads() else None
        if found is None:
            raise photo_not_found(photo_id)
        return found

    async def list_page(self, wanted: PhotosWanted, page: PageWanted) -> PageFound[PhotoRecord]:
        """Return a page of photos; an empty one for who may see none."""
        return await self._photos.list_photos(wanted, page) if self._access.reads() else PageFound((), 0)

    async def get_batch(self, batch_id: UUID) -> BatchRecord:
        """Return a batch.

        Raises:
            MeshError: There is none for this caller.
        """
        found = await self._batches.find_batch(batch_id) if self._access.reads() else None
        if found is None:
            raise batch_not_found(batch_id)
        return found

    async def list_batches(self, wanted: BatchesWanted, page: PageWanted) -> PageFound[BatchRecord]:
        """Return a page of batches; an empty one for who may see none."""
        return await self._batches.list_batches(wanted, page) if self._access.reads() else PageFound((), 0)
