"""Wake an attempt that waits for a provider: its next look comes at once.

A wake says nothing about the request. Whoever is woken asks the provider.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from meshkit.bus import Bus, BusMessage

# Tokens of a subject may hold no dots, blanks or wildcards: identifiers of tasks and requests have none.
_SUBJECT = "atelier.provider_wake.{task}.{request}"


class ProviderWakes:
    """The requests that this worker waits for, and their wakes.

    Args:
        notify: Tells the other workers; takes a subject. None where there is no way to.
    """

    def __init__(self, notify: Callable[[str], None] | None = None) -> None:
        self._notify = notify
        self._waiting: dict[tuple[str, str], asyncio.Event] = {}

    @contextmanager
    def waiting(self, task: str, request: str) -> Iterator[asyncio.Event]:
        """Yield an event that is set when the request of this task is said to have ended.

        Args:
            task: Identifier of the task.
            request: What the provider calls its request.
        """
        event = self._waiting[task, request] = asyncio.Event()
        try:
            yield event
        finally:
            self._waiting.pop((task, request), None)

    def wake(self, task: str, request: str) -> None:
        """Wake whoever waits for this request of this task, here or in another worker, and nobody else."""
        if not self.wake_here(task, request) and self._notify is not None:
            self._notify(_SUBJECT.format(task=task, request=request))

    def wake_here(self, task: str, request: str) -> bool:
        """Wake whoever waits for it in this worker; return whether somebody does."""
        event = self._waiting.get((task, request))
        if event is None:
            return False
        event.set()
        return True

    async def listen(self, bus: Bus) -> None:
        """Take wakes of other workers from now on."""

        async def receive(message: BusMessage) -> None:
            *_, task, request = message.subject.split(".")
            self.wake_here(task, request)

        await bus.subscribe(_SUBJECT.format(task="*", request="*"), receive)
