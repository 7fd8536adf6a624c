"""What the monitoring service needs of a database."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from services.monitoring.supervision.domain import HistoryLine, LoopOrder, Wish


class LoopStore(Protocol):
    """Wishes and history of background loops. All methods raise `MeshError` where the database is away."""

    async def wishes(self) -> list[Wish]:
        """Return every loop that there was lately or that somebody has stopped, with what is wanted of it."""
        ...

    async def order(self, loop: str, order: LoopOrder) -> Wish:
        """Write down what somebody wants of a loop; a restart is a line of its history.

        Returns:
            The wish, with a revision above every earlier one.
        """
        ...

    async def note(self, loops: Mapping[str, str], lines: Sequence[HistoryLine]) -> None:
        """Write down what processes reported; lines that are there already are left as they are.

        Args:
            loops: Roles of the processes that have a loop, by the loop's name.
            lines: Lines of history.
        """
        ...

    async def history(self, loop: str | None, limit: int, offset: int) -> tuple[list[HistoryLine], int]:
        """Return lines of history, newest first, of one loop or of all; and how many there are in all."""
        ...

    async def forget(self, days: float) -> None:
        """Delete lines that are older, and loops that no process has had for a day."""
        ...
