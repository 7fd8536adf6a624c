"""News that the worker listens to: that an attempt of its session may have been cancelled.

The news only makes the next heartbeat go at once, whose answer is the truth; without NATS it goes at its interval.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from meshkit.bus import Bus, BusMessage, BusSubscription

_SUBJECT = "atelier.cancel.{session}"


class CancelListener:
    """Follows the worker's session from one to the next.

    Args:
        bus: The bus.
        on_news: Called for every message.
    """

    def __init__(self, bus: Bus, on_news: Callable[[], None]) -> None:
        self._bus = bus
        self._on_news = on_news
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

    async def _receive(self, message: BusMessage) -> None:  # noqa: ARG002 -- whatever it says, the heartbeat's answer counts
        self._on_news()
