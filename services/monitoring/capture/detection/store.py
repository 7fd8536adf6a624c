"""What detection needs of a database."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol
from uuid import UUID

from services.monitoring.capture.detection.domain import DetectionOutcome
from services.monitoring.capture.photos.domain import PhotoRecord


class DetectionStore(Protocol):
    """Photos on their way through detection, as rows."""

    async def waiting(self, most: int, but: Collection[UUID]) -> Sequence[PhotoRecord]:
        """Return so many photos that nobody looks at yet, in the order in which they were seen; without some."""
        ...

    async def under_way(self) -> Sequence[UUID]:
        """Return the photos that tasks look at."""
        ...

    async def handed_over(self, photo_id: UUID) -> None:
        """Note that a task looks at a photo, which bears its identifier; nothing where that is known."""
        ...

    async def settle(self, photo_id: UUID, outcome: DetectionOutcome, *, file: bytes | None = None) -> bool:
        """Write what became of a photo, once, and tell listeners of it.

        Args:
            photo_id: The photo.
            outcome: What became of it.
            file: Only where this is its file; whatever its file is where None.

        Returns:
            Whether it was written; False where it had been before, or its file is another.
        """
        ...
