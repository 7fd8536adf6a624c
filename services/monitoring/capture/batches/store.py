"""What batches need of a database."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol
from uuid import UUID

from services.monitoring.capture.batches.domain import BatchesWanted, BatchLimits, BatchRecord
from services.monitoring.capture.pages import PageFound, PageWanted


class BatchStore(Protocol):
    """Batches as rows."""

    async def find_batch(self, batch_id: UUID) -> BatchRecord | None:
        """Return a batch."""
        ...

    async def list_batches(self, wanted: BatchesWanted, page: PageWanted) -> PageFound[BatchRecord]:
        """Return batches, newest first."""
        ...

    async def open_batches(self) -> tuple[Sequence[BatchRecord], datetime]:
        """Return those that take further photos, oldest first, and the present."""
        ...

    async def to_gather(self) -> Sequence[str]:
        """Return the cameras that have an open batch, or photos that belong to none."""
        ...

    async def gather(self, camera_id: str, limits: BatchLimits) -> tuple[int, bool]:
        """Put photos of a camera into batches, and close those that are complete.

        Returns:
            How many batches were closed, and whether more photos wait.
        """
        ...
