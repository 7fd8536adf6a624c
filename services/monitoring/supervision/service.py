"""The supervisor: what every process reports of its loops, and what operators want of them.

Each replica of this service hears every report and keeps the newest of each process; wishes and history are rows. So
any replica answers, and none leads.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from meshkit.loops import Loop
from meshkit.supervision import ASK, REPORT_SECONDS, WISHES
from services.monitoring.errors import bad_worker_name, no_such_worker, supervisor_not_running
from services.monitoring.supervision.domain import (
    HistoryLine,
    LoopOnReplica,
    LoopOrder,
    LoopOverview,
    Wish,
    followed,
    is_name,
)
from services.monitoring.supervision.domain import overview as together
from services.monitoring.supervision.store import LoopStore

# A process that has reported nothing for so long is away.
_AWAY_SECONDS = 3 * REPORT_SECONDS
_FOLLOW_SECONDS = 3.0
_FORGET_SECONDS = 3600.0


class Hints(Protocol):
    """Core NATS, as far as the supervisor needs it."""

    @property
    def connected(self) -> bool:
        """Whether NATS answers right now."""
        ...

    def notify(self, subject: str, payload: bytes = b"") -> None:
        """Send a message; never raise, never wait."""
        ...


@dataclass(frozen=True, slots=True)
class ProcessReport:
    """What one process told last."""

    role: str
    loops: Sequence[LoopOnReplica]
    heard: float


class Supervisor:
    """Knows every loop of the mesh.

    Args:
        store: Wishes and history.
        hints: Reaches the processes.
        encode: Turns wishes into a message.
        history_days: How long lines of history are kept.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        store: LoopStore,
        hints: Hints,
        encode: Callable[[Sequence[Wish]], bytes],
        *,
        history_days: float = 90.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._hints = hints
        self._encode = encode
        self._history_days = history_days
        self._clock = clock
        self._reports: dict[str, ProcessReport] = {}
        self._known: dict[str, Wish] = {}
        self._lines: dict[str, HistoryLine] = {}
        self._written: set[str] = set()
        self._heard = asyncio.Event()
        self._record = asyncio.Event()

    def loops(self) -> list[Loop]:
        """All loops of a replica."""
        return [
            Loop("monitoring-wishes", self.tell, REPORT_SECONDS),
            Loop("monitoring-record", self.record, REPORT_SECONDS, wake=self._record),
            Loop("monitoring-maintenance", self.forget, _FORGET_SECONDS),
        ]

    @property
    def running(self) -> bool:
        """Whether loops can be told anything."""
        return self._hints.connected

    def ask(self) -> None:
        """Have every process report at once."""
        self._hints.notify(ASK)

    def hear(self, replica: str, role: str, loops: Sequence[LoopOnReplica], lines: Sequence[HistoryLine]) -> None:
        """Take a report; one without loops is a process's last."""
        if loops:
            self._reports[replica] = ProcessReport(role, loops, self._clock())
        else:
            self._reports.pop(replica, None)
        fresh = {str(one.event_id): one for one in lines if str(one.event_id) not in self._written}
        if fresh or any(one.name not in self._known for one in loops):
            self._lines |= fresh
            self._record.set()
        self._heard.set()

    async def overview(self) -> list[LoopOverview]:
        """Return every loop; none while the supervisor is not running."""
        if not self.running:
            return []
        return together(list(self._known), [one for report in self._present().values() for one in report.loops])

    async def order(self, name: str, order: LoopOrder) -> bool:
        """Have something done to a loop in every process that has it.

        Returns:
            Whether all of them have followed; those that have not follow once they hear of it.

        Raises:
            MeshError: There is no such loop, or the supervisor is not running.
        """
        if not is_name(name):
            raise bad_worker_name(name)
        if not self.running:
            raise supervisor_not_running()
        if name not in {one.name for one in await self.overview()}:
            raise no_such_worker(name)
        before = self._known.get(name, Wish(name))
        wish = await self._store.order(name, order)
        self._known[name] = wish
        # A process carries out what it hears to be newer than what it knew: it may have heard of nothing yet.
        self._hints.notify(WISHES, self._encode([before, wish]))
        try:
            async with asyncio.timeout(_FOLLOW_SECONDS):
                while not followed(wish, {name: one.loops for name, one in self._present().items()}):
                    self._heard.clear()
                    await self._heard.wait()
        except TimeoutError:
            return False
        return True

    async def history(self, name: str | None, limit: int, offset: int) -> tuple[list[HistoryLine], int]:
        """Return crashes and restarts, newest first, and how many there are in all.

        Raises:
            MeshError: No loop can be called so.
        """
        if name is not None and not is_name(name):
            raise bad_worker_name(name)
        await self.record()
        return await self._store.history(name, limit, offset)

    async def tell(self) -> None:
        """Tell all processes what is wanted of their loops; body of a loop."""
        self._known = {wish.loop: wish for wish in await self._store.wishes()}
        self._hints.notify(WISHES, self._encode(list(self._known.values())))

    async def record(self) -> None:
        """Write down what processes reported; body of a loop."""
        lines, present = dict(self._lines), self._present()
        loops = {one.name: report.role for report in present.values() for one in report.loops}
        await self._store.note(loops, list(lines.values()))
        self._written |= lines.keys()
        self._lines = {key: one for key, one in self._lines.items() if key not in lines}
        for name in loops:
            self._known.setdefault(name, Wish(name))

    async def forget(self) -> None:
        """Delete what is old; body of a loop."""
        self._written = set()  # reported lines are noted again, which changes nothing
        await self._store.forget(self._history_days)

    def _present(self) -> dict[str, ProcessReport]:
        since = self._clock() - _AWAY_SECONDS
        self._reports = {replica: report for replica, report in self._reports.items() if report.heard >= since}
        return self._reports
