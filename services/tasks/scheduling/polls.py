"""Polls: workers that wait for work at this replica."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from meshkit.errors import unavailable
from services.tasks.domain import SessionRecord, TaskRecord


@dataclass(eq=False, slots=True)
class Poll:
    """A worker that waits for work.

    Attributes:
        answer: The leases; empty where the wait ran out.
        registered: Whether the database knows of the poll.
        busy: Whether a round works for it; others pass it over.
        missed: Queues whose round passed it over meanwhile.
        resting: Whether its worker took nothing, when a round looked at it last: it drains, or is cordoned.
        superseded: Whether its worker polls again; a round that works for it may still answer it.
        lanes: What its worker serves.
        full_tenants: Tenants that hold their share of the worker, and are given nothing by this poll.
    """

    session: SessionRecord
    sequence: int
    capacity: int
    warm: frozenset[str]
    full_tenants: frozenset[str]
    answer: asyncio.Future[list[TaskRecord]]
    registered: bool = False
    busy: bool = False
    missed: set[str] = field(default_factory=set)
    resting: bool = False
    superseded: bool = False
    lanes: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        self.lanes = self.session.lanes

    def settle(self) -> None:
        """Answer without work if the worker polls again."""
        if self.superseded and not self.answer.done():
            self.answer.set_result([])

    def refuse(self) -> None:
        """Tell the worker to ask again, with the same number."""
        if not self.answer.done():
            self.answer.set_exception(unavailable("The scheduler is not ready", reason="SCHEDULER_UNAVAILABLE"))
