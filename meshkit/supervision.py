"""What a process tells the monitoring service of its loops, and how it follows what operators want of them.

Reports and wishes go over core NATS and may be lost: both are repeated every few seconds. Wishes that nobody sends, as
where NATS or the monitoring service is away, leave every loop as it is.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
from collections.abc import Iterable
from contextlib import AsyncExitStack
from typing import Self
from uuid import uuid4

from atelier.monitoring.v1 import loops_pb2 as pb

from meshkit.bus import Bus, BusMessage, BusSubscription
from meshkit.logging import get_logger
from meshkit.loops import KeptLoop, Loop, Loops, LoopState
from meshkit.moments import assign

_log = get_logger(__name__)

REPORTS = "atelier.loops.report"
"""Subject of reports; the process's role follows."""
WISHES = "atelier.loops.wishes"
ASK = "atelier.loops.ask"
"""Subject on which the monitoring service asks for a report at once."""
REPORT_SECONDS = 5.0

_STATUS = {state: pb.LoopStatus.Value(f"LOOP_STATUS_{state.name}") for state in LoopState}


def shown_name(name: str) -> str:
    """Return what the API calls a loop: names there have letters, digits and underscores."""
    return re.sub(r"[^a-zA-Z0-9_]", "_", name)


async def supervise(stack: AsyncExitStack, loops: Loops, bus: Bus, role: str) -> None:
    """Run a process's loops, tell of them, and follow what operators want of them, until the stack is closed.

    Args:
        stack: Closed at the process's end.
        loops: The loops.
        bus: The connection to NATS.
        role: Service that the process is of.
    """
    await stack.enter_async_context(loops)
    await stack.enter_async_context(LoopReporter(bus, loops, role))


class LoopReporter:
    """Tells of a process's loops, and follows wishes; an async context manager.

    Args:
        bus: The connection to NATS.
        loops: The loops.
        role: Service that the process is of.
    """

    def __init__(self, bus: Bus, loops: Loops, role: str) -> None:
        self._bus = bus
        self._loops = loops
        self._role = role
        self._replica = f"{role}@{socket.gethostname()}:{os.getpid()}:{uuid4().hex[:8]}"
        self._seen: dict[str, int] = {}
        self._parked: set[str] = set()
        self._subscriptions: list[BusSubscription] = []
        self._reports = Loop("loops-report", self._report, REPORT_SECONDS, wake=asyncio.Event())
        self._own = Loops(self._reports)

    async def __aenter__(self) -> Self:
        self._subscriptions = [
            await self._bus.subscribe(WISHES, self._on_wishes),
            await self._bus.subscribe(ASK, self._on_ask),
        ]
        self._loops.on_change = self._reports.wake
        self._own.start()
        self._reports.wake()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        self._loops.on_change = lambda: None
        for subscription in self._subscriptions:
            await subscription.unsubscribe()
        await self._own.stop()
        # The process is not away: it has ended, and its loops with it.
        await self._report(ended=True)

    async def _on_wishes(self, message: BusMessage) -> None:
        await self.follow(pb.LoopWishes.FromString(message.data).wishes)

    async def _on_ask(self, message: BusMessage) -> None:
        del message
        self._reports.wake()

    async def follow(self, wishes: Iterable[pb.LoopWish]) -> None:
        """Do what is wanted of the loops that this process has."""
        kept = {shown_name(one.loop.name): one for one in self._loops.kept}
        for wish in wishes:
            if wish.name in kept:
                await self._follow(kept[wish.name], wish)

    async def _follow(self, kept: KeptLoop, wish: pb.LoopWish) -> None:
        seen = self._seen.get(wish.name)
        if seen is not None and wish.revision < seen:
            return  # older than what was followed already
        # What was asked for before this process heard of it the first time is past: its loops are as they began.
        is_new = seen is not None and wish.revision > seen
        before = kept.state
        if is_new:
            self._parked.discard(wish.name)
            await self._obey(kept, wish)
        if wish.stopped:
            await kept.stop()
        elif kept.state is LoopState.STOPPED and wish.name not in self._parked:
            kept.start()
        self._seen[wish.name] = wish.revision  # reports tell of it once it is done
        if is_new or kept.state is not before:
            _log.info("loop_wish_followed", loop=kept.loop.name, state=kept.state.value, revision=wish.revision)
        if is_new or seen is None:
            self._reports.wake()

    async def _obey(self, kept: KeptLoop, wish: pb.LoopWish) -> None:
        if wish.command == pb.LOOP_COMMAND_RESTART:
            await kept.restart()
        elif wish.command == pb.LOOP_COMMAND_START:
            kept.start()
        elif wish.command == pb.LOOP_COMMAND_RESET:
            if kept.state is LoopState.FAILED:
                self._parked.add(wish.name)
            kept.reset()

    async def _report(self, *, ended: bool = False) -> None:
        report = pb.LoopReport(replica=self._replica, role=self._role)
        for kept in () if ended else self._loops.kept:
            _write(report.loops.add(), kept, self._seen.get(shown_name(kept.loop.name), 0))
        self._bus.notify(f"{REPORTS}.{self._role}", report.SerializeToString())


def _write(target: pb.ReportedLoop, kept: KeptLoop, revision: int) -> None:
    target.name = shown_name(kept.loop.name)
    target.status = _STATUS[kept.state]
    target.restart_count = kept.restart_count
    target.revision = revision
    if kept.started_at is not None:
        assign(target.last_started_at, kept.started_at)
    if kept.crashed_at is not None:
        assign(target.last_crashed_at, kept.crashed_at)
    if kept.error is not None:
        target.error = kept.error
    for event in kept.events:
        line = target.events.add(
            event_id=str(event.event_id), attempt=event.attempt, kind=event.kind.value, error=event.error
        )
        assign(line.at, event.at)
