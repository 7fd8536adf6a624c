"""Messages that an attempt of the worker's session may have been cancelled.

A message makes the next heartbeat go at once, and its answer decides. Without NATS heartbeats go at their interval.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from meshkit.bus import Bus, BusMessage, BusSubscription

_SUBJECT = "atelier.cancel.{session}"


class CancelListener:
    """Listens for the session that the worker has now.

    Args:
        bus: The bus.
        on_message: Called for every message.
    """

    def __init__(self, bus: Bus, on_message: Callable[[], None]) -> None:
        self._bus = bus
        self._on_message = on_message
        self._wanted: str | None = None
        self._changed = asyncio.Event()

    def follow(self, session_id: str | None) -> None:
        """Listen for this session from now on, and for no other."""
        self._wanted = session_id
        self._changed.set()

    async def run(self) -> None:
        """Subscribe and unsubscribe as sessions come and go, until cancelled."""
        current: BusSubscription | None = None
        while True:
            await self._changed.wait()
            self._changed.clear()
            if current is not None:
                await current.unsubscribe()
                current = None
            if self._wanted is not None:
                current = await self._bus.subscribe(_SUBJECT.format(session=self._wanted), self._receive)

    async def _receive(self, message: BusMessage) -> None:  # noqa: ARG002 -- the answer of the heartbeat decides
        self._on_message()
