"""What events need of a database."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol
from uuid import UUID

from services.monitoring.capture.analysis.domain import AskedText, BatchFacts, EventDraft, EventRecord, EventsWanted
from services.monitoring.capture.pages import PageFound, PageWanted


class EventStore(Protocol):
    """Events as rows."""

    async def batches_to_judge(self, limit: int) -> Sequence[UUID]:
        """Return closed batches whose photos have all been looked at, those first that were closed first."""
        ...

    async def batch_facts(self, batch_id: UUID) -> BatchFacts | None:
        """Return what was found in a batch; None where its photos are there no more."""
        ...

    async def write_event(self, draft: EventDraft) -> bool:
        """Write the event of a batch with its alerts, and tell of them.

        Returns:
            Whether it is new: a batch has one event, whoever judges it again.
        """
        ...

    async def skip_batch(self, batch_id: UUID) -> None:
        """Note that a batch has nothing to judge."""
        ...

    async def asked_texts(self, limit: int) -> Sequence[AskedText]:
        """Return events whose summary a language model was asked for, oldest first."""
        ...

    async def end_text(self, asked: AskedText, summary: str | None, why: str | None) -> bool:
        """Write what came of a summary, and tell of it where it is a new one.

        Args:
            asked: What was asked for.
            summary: The model's; None where it is not used.
            why: Why it is not used.

        Returns:
            Whether it was still waited for.
        """
        ...

    async def find_event(self, event_id: int) -> EventRecord | None:
        """Return an event."""
        ...

    async def list_events(self, wanted: EventsWanted, page: PageWanted) -> PageFound[EventRecord]:
        """Return events, newest first."""
        ...

    async def review(self, event_id: int, by: str) -> EventRecord | None:
        """Note who has looked at an event, the first time, and tell of it; None where there is no such."""
        ...

    async def delete_event(self, event_id: int) -> bool:
        """Delete an event and tell of it; whether there was one."""
        ...
