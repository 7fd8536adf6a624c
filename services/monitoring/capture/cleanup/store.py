"""What retention needs of a database."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID


@dataclass(frozen=True, slots=True)
class KeptFile:
    """The file of a photo, as it was when it was seen.

    Attributes:
        photo_id: The photo.
        file: Its place below the root, as the file system names it.
        size: Its bytes.
        modified_ns: When it was changed last.
        missed: Whether it was out of reach when it was to be looked at: what is there now belongs to another photo.
    """

    photo_id: UUID
    file: bytes
    size: int
    modified_ns: int
    missed: bool = False


class ForgettingStore(Protocol):
    """Rows that are no longer needed. Photos that were not judged yet are never among them."""

    async def old_photos(self, age_seconds: float, limit: int, but: Collection[UUID]) -> Sequence[KeptFile]:
        """Return photos that were seen longer ago; without some."""
        ...

    async def excess_photos(self, most_bytes: int, limit: int, but: Collection[UUID]) -> Sequence[KeptFile]:
        """Return the oldest photos, beyond those that take so many bytes together; without some."""
        ...

    async def forgotten_photos(self, after: UUID, limit: int) -> Sequence[KeptFile]:
        """Return photos that are forgotten but for their row, which keeps their file from being a new photo."""
        ...

    async def forget_photos(self, gone: Collection[UUID], there: Collection[UUID]) -> None:
        """Forget photos with all that was found on them.

        Args:
            gone: Those whose file is gone: their rows go.
            there: Those whose file is there: their rows stay, hidden.
        """
        ...

    async def forget_events(self, age_seconds: float, limit: int) -> int:
        """Delete events that were made longer ago, with their alerts, and tell of it; return how many."""
        ...

    async def forget_cameras(self) -> None:
        """Delete removed cameras of which nothing else is left."""
        ...

    async def forget_batches(self, limit: int) -> int:
        """Delete, or hide, batches that have no photos any more; return how many."""
        ...
