"""What runs need of a database."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol
from uuid import UUID

from services.monitoring.capture.runs.domain import PhotoRunState, RunRecord


class RunStore(Protocol):
    """Workflows of photos as rows."""

    async def find_run(self, photo_id: UUID) -> RunRecord | None:
        """Return the workflow of a photo."""
        ...

    async def runs_in(self, state: PhotoRunState, most: int) -> Sequence[RunRecord]:
        """Return so many in a state, the oldest first."""
        ...

    async def started(self, photo_id: UUID, workflow_id: UUID) -> None:
        """Note the workflow that was made for a photo; nothing where that is known."""
        ...

    async def settle_run(self, run: RunRecord) -> None:
        """Write how a run has ended, once."""
        ...
