"""The stream of events as one process reads it for itself: in order, each event once, none left out.

The reader has no durable consumer: it says where to begin, and a consumer of its own pushes from there. What is lost on
the way shows as a gap in the consumer's numbers, and the reader begins again after the last event that it took.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from nats import errors as nats_errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext, api
from nats.js import errors as js_errors

from meshkit.bus import Bus, BusMessage
from meshkit.logging import get_logger
from meshkit.loops import cancel

_log = get_logger(__name__)

_HEARTBEAT_SECONDS = 2.0
# Two heartbeats that did not come: the consumer is gone.
_SILENCE_SECONDS = 5.0
# How long the server keeps the consumer of a reader that is gone.
_FORGOTTEN_SECONDS = 30.0
_ERRORS = (nats_errors.Error, js_errors.Error, TimeoutError, OSError)


class EventTaker(Protocol):
    """What takes the events."""

    def begin(self, first: int, last: int, upcoming: int) -> int:
        """Return which event of the stream comes first; called at each start, and when the stream has been made anew.

        Args:
            first: Number of its first event.
            last: Number of its last event.
            upcoming: Number of the event after the last one that was taken of this stream; 0 if none was.
        """
        ...

    def take(self, sequence: int, at: datetime, message: BusMessage) -> None:
        """Take an event.

        Args:
            sequence: Its number in the stream.
            at: When the stream took it.
            message: The event.
        """
        ...

    def caught_up(self) -> None:
        """Note that every event that the stream holds has been taken."""
        ...


@dataclass(slots=True)
class FollowerState:
    """How a follower fares.

    Attributes:
        following: Whether events come.
        failures: Attempts in a row that came to nothing.
    """

    following: bool = False
    failures: int = 0


class Follower:
    """Reads the stream of events for as long as it runs; it may be closed and started again.

    Args:
        bus: The connection.
        subjects: Subjects to read.
        taker: Takes the events.
    """

    def __init__(self, bus: Bus, subjects: Sequence[str], taker: EventTaker) -> None:
        self.state = FollowerState()
        self._bus = bus
        self._subjects = list(subjects)
        self._taker = taker
        self._task: asyncio.Task[None] | None = None
        # When the stream that is read was made, and the event that comes next.
        self._made: datetime | None = None
        self._next = 0
        self._started = False
        self._delivered = 0
        self._signal = asyncio.Event()
        self._gap = False

    def start(self) -> None:
        """Begin to read."""
        self._started = True
        self._task = asyncio.create_task(self._follow_for_ever(), name="follow-events")

    async def close(self) -> None:
        """Stop reading."""
        if self._task is not None:
            await cancel([self._task])
            self._task = None
        self.state.following, self.state.failures = False, 0

    async def _follow_for_ever(self) -> None:
        while True:
            try:
                await self._follow(*await self._bus.events())
            except _ERRORS as error:
                _log.info("following_failed", cause=type(error).__name__)
            self.state.following = False
            self.state.failures += 1
            await asyncio.sleep(random.uniform(0.2, 1.0))  # noqa: S311 -- jitter, not a secret

    async def _follow(self, client: Client, js: JetStreamContext, stream: str) -> None:
        found = await js.stream_info(stream)
        same = found.created == self._made
        if self._started or not same:
            self._next = self._taker.begin(found.state.first_seq, found.state.last_seq, self._next if same else 0)
            self._made, self._started = found.created, False
        self._delivered, self._gap = 0, False
        inbox = client.new_inbox()
        subscription = await client.subscribe(inbox, cb=self._on_message)
        consumer = ""
        try:
            made = await js.add_consumer(stream, self._consumer(inbox))
            consumer = made.name
            if not made.num_pending:
                self._taker.caught_up()
            self.state.following, self.state.failures = True, 0
            while not self._gap:
                async with asyncio.timeout(_SILENCE_SECONDS):
                    await self._signal.wait()
                self._signal.clear()
            _log.info("events_left_out", after=self._next - 1)
        finally:
            with suppress(*_ERRORS):
                await subscription.unsubscribe()
                if consumer:
                    await js.delete_consumer(stream, consumer)

    def _consumer(self, inbox: str) -> api.ConsumerConfig:
        return api.ConsumerConfig(
            deliver_subject=inbox,
            filter_subjects=self._subjects,
            deliver_policy=api.DeliverPolicy.BY_START_SEQUENCE,
            opt_start_seq=self._next,
            ack_policy=api.AckPolicy.NONE,
            flow_control=True,
            idle_heartbeat=_HEARTBEAT_SECONDS,
            inactive_threshold=_FORGOTTEN_SECONDS,
            mem_storage=True,
            num_replicas=1,
        )

    async def _on_message(self, message: Msg) -> None:
        if self._gap:
            return
        self._signal.set()
        headers = message.headers or {}
        if headers.get("Status") == "100":
            # A heartbeat tells how far the consumer is; what it delivered before has come before it.
            told = headers.get("Nats-Last-Consumer")
            self._gap = told is not None and int(told) != self._delivered
            for reply in (message.reply, headers.get("Nats-Consumer-Stalled")):
                if reply:
                    await message._client.publish(reply)  # noqa: SLF001 -- `respond` takes no other subject
            return
        numbers = message.metadata.sequence
        if numbers.consumer != self._delivered + 1:
            self._gap = True
            return
        self._delivered += 1
        self._next = numbers.stream + 1
        try:
            event = BusMessage(message.subject, message.data, headers)
            self._taker.take(numbers.stream, message.metadata.timestamp, event)
        except Exception:
            _log.exception("event_not_taken", subject=message.subject)
        if message.metadata.num_pending == 0:
            self._taker.caught_up()
