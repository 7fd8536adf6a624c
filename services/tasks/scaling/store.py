"""What scaling needs of a database."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple, Protocol

from services.tasks.scaling.domain import QueueWork, ScaleDecision, WorkerPool


class WorkTime(NamedTuple):
    """How long attempts took.

    Attributes:
        lane: The lane.
        model: The model; empty for all of the lane.
        seconds: Seconds of a slot, on average.
        attempts: How many there were.
    """

    lane: str
    model: str
    seconds: float
    attempts: int


class ScaleView(NamedTuple):
    """Work and workers at a moment."""

    works: Sequence[QueueWork]
    pools: Sequence[WorkerPool]
    at: datetime


class ScalingStore(Protocol):
    """Work by queue, and cordons."""

    async def view(self, queues: Collection[str], costs: Mapping[str, float]) -> ScaleView:
        """Return the work of queues and all pools that are alive.

        Args:
            queues: Names of the queues.
            costs: Seconds that a job is expected to take, by pair, where nothing was measured.
        """
        ...

    async def pools(self) -> list[WorkerPool]:
        """Return the pools that are alive, by name."""
        ...

    async def cordon(self, worker: str) -> list[WorkerPool]:
        """Cordon the pools that a name stands for, by an operator; return them, none where there is none."""
        ...

    async def uncordon(self, worker: str, settle_seconds: float) -> list[WorkerPool]:
        """Uncordon the pools that a name stands for; return them, none where there is none."""
        ...

    async def note_marks(
        self, announced: Sequence[str], marked: Sequence[str], unmarked: Sequence[str]
    ) -> Sequence[str]:
        """Note which workers bear a mark, which do not any more, and which are to be marked.

        Returns:
            Those that were announced and may be marked: the scheduler has cordoned them, and knows of their mark.
        """
        ...

    async def scale_in(
        self,
        queues: Collection[str],
        costs: Mapping[str, float],
        decide: Callable[[ScaleView], ScaleDecision],
        settle_seconds: float,
    ) -> ScaleDecision | None:
        """Decide and apply, one replica at a time; a worker that holds something by now is not cordoned.

        Returns:
            What was changed; None where another replica is at it.
        """
        ...

    async def add_times(self, times: Sequence[WorkTime]) -> None:
        """Add measured times to those that are known."""
        ...

    async def forget_times(self) -> None:
        """Forget times of what has not ended for a week."""
        ...
