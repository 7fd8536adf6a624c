"""Finish what a crash left half done."""

from __future__ import annotations

from meshkit.loops import Loop
from services.training.library.files import LoraFiles
from services.training.library.store import LoraStore

_BATCH = 50
# Longer than any upload or move takes.
_AGE_SECONDS = 600.0
_INTERVAL_SECONDS = 60.0


class LibraryMaintenance:
    """The bodies of the loops; a test may call each.

    Args:
        store: The database.
        files: Moves objects.
        age_seconds: How long a move may take.
    """

    def __init__(self, store: LoraStore, files: LoraFiles, *, age_seconds: float = _AGE_SECONDS) -> None:
        self._store = store
        self._files = files
        self._age = age_seconds

    def loops(self) -> list[Loop]:
        """All loops of a replica."""
        return [Loop("loras-settle", self.settle, _INTERVAL_SECONDS, jitter=0.2)]

    async def settle(self) -> bool:
        """Bring objects to where their rows say.

        Returns:
            Whether more wait.
        """
        waiting = await self._store.unsettled(self._age, _BATCH)
        for record in waiting:
            await self._files.settle(record)
        return len(waiting) == _BATCH
