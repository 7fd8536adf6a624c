"""The stream of events, read once for this process and written into the log of live messages.

It is read only while somebody listens: a mesh that nobody looks at should not pay for it. The log stays, and the
reading goes on where it ended if that is not too far back; else it begins with as many events as the log keeps.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from functools import cache, partial
from typing import Any

import orjson
from atelier.events.v1 import events_pb2, live_pb2
from google.protobuf.message import Message

from meshkit.bus import Bus, BusMessage, BusSubscription
from meshkit.following import Follower, FollowerState
from meshkit.live import capture, jobs
from meshkit.live.log import MOST_KEPT, LiveLog, LiveMessage
from meshkit.live.registry import descriptor_of, facts
from meshkit.loops import cancel
from meshkit.stream import TENANT_HEADER
from meshkit.transcoding.codec import Codecs

# Reading an option copies it, and there are few messages.
_facts = cache(facts)
# Of the operators; no tenant is called so.
OPERATORS = "*"
# How long a listener waits until it is known which events are news to it: one question to NATS.
_BEGIN_SECONDS = 5.0
# How long the stream is read on after the last listener: many come again at once.
_REST_SECONDS = 10.0


class LiveFeed:
    """Keeps a log up with the mesh.

    Args:
        bus: The connection to NATS, not yet connected.
        heartbeat_seconds: How often listeners are told that the connection lives.
        most: How many messages are kept.
    """

    def __init__(self, bus: Bus, *, heartbeat_seconds: float, most: int = MOST_KEPT) -> None:
        self.log = LiveLog(most)
        self._bus = bus
        self._most = most
        self._heartbeat_seconds = heartbeat_seconds
        self._codecs = Codecs()
        self._follower = Follower(bus, (*jobs.SUBJECTS, *capture.SUBJECTS), self)
        self._heart: asyncio.Task[None] | None = None
        self._listeners = 0
        self._progress: BusSubscription | None = None  # there while the stream is read
        self._turn = asyncio.Lock()
        self._rest_timer: asyncio.TimerHandle | None = None
        self._resting: asyncio.Task[None] | None = None
        # Set once it is known where the reading that goes on began.
        self._begun = asyncio.Event()

    @property
    def state(self) -> FollowerState:
        """How the reading fares; while nobody listens, whether it could begin."""
        reads = self._begun.is_set() or self._follower.state.failures
        return self._follower.state if reads else FollowerState(self._bus.connected)

    async def start(self) -> None:
        """Connect to NATS; without it, that comes once it is there."""
        self._heart = asyncio.create_task(self._beat(), name="live-heartbeat")
        await self._bus.connect()

    async def close(self) -> None:
        """Stop reading."""
        if self._rest_timer is not None:
            self._rest_timer.cancel()
        await cancel([one for one in (self._heart, self._resting) if one is not None])
        await self._follower.close()
        await self._bus.close()

    # -- who listens ---------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Read the stream while somebody listens; who takes a place in the log from then on misses nothing."""
        self._listeners += 1
        if self._rest_timer is not None:
            self._rest_timer.cancel()
            self._rest_timer = None
        try:
            await self._wake()
            yield
        finally:
            self._listeners -= 1
            if not self._listeners:
                loop = asyncio.get_running_loop()
                self._rest_timer = loop.call_later(_REST_SECONDS, self._begin_rest)

    async def _wake(self) -> None:
        async with self._turn:
            if self._progress is None:
                self._progress = await self._bus.subscribe(jobs.PROGRESS_SUBJECT, self._on_progress)
                self._follower.start()
        if self._bus.connected:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._begun.wait(), _BEGIN_SECONDS)

    def _begin_rest(self) -> None:
        self._rest_timer = None
        self._resting = asyncio.create_task(self._rest(), name="live-rest")

    async def _rest(self) -> None:
        async with self._turn:
            if self._listeners or self._progress is None:
                return
            await self._progress.unsubscribe()
            await self._follower.close()
            self._progress = None
            self._begun.clear()
            self.log.ready.clear()

    # -- what the follower tells ---------------------------------------------------------------------------------

    def begin(self, first: int, last: int, upcoming: int) -> int:
        """Go on, or begin with the newest events; with all of a stream that took the place of one that was read."""
        starts = not self._begun.is_set()
        self._begun.set()
        oldest = max(first, last - self._most + 1)
        if starts and upcoming and upcoming >= oldest:
            self.log.began_at = last
            return upcoming
        begin = oldest if starts else first
        self.log.begin(begin - 1, last, first=starts)
        return begin

    def take(self, sequence: int, at: datetime, message: BusMessage) -> None:
        """Write an event into the log."""
        self.log.newest = max(self.log.newest, sequence)
        tenant = message.headers.get(TENANT_HEADER, "")
        told = _told(message) if tenant else None
        if told is not None:
            self.log.keep(tenant, self.rendered(told, sequence, at))

    def caught_up(self) -> None:
        """Let those go on who asked for what they missed."""
        self.log.ready.set()

    # -- what passes ---------------------------------------------------------------------------------------------

    def tell_operators(self, message: Message) -> None:
        """Tell operators something of the mesh itself."""
        self.log.pass_on(OPERATORS, self.rendered(message, self.log.newest))

    def rendered(self, message: Message, sequence: int, at: datetime | None = None) -> LiveMessage:
        """Return a message of the contract as listeners get it; the JSON is made when the first of them does."""
        said = _facts(descriptor_of(message))
        text = partial(self._text, message, sequence, at or datetime.now(UTC))
        return LiveMessage(sequence, said.type, said.channel, text, getattr(message, "job_id", ""))

    def _text(self, message: Message, sequence: int, at: datetime) -> str:
        envelope = {
            "type": _facts(descriptor_of(message)).type,
            "data": self._codecs.of(descriptor_of(message)).encode(message),
            "timestamp": at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "sequence": sequence,
            "requires_ack": False,
        }
        return orjson.dumps(envelope).decode()

    def spoken(self, message: Message) -> str:
        """Return a message of the connection itself: its members stand beside its type."""
        members: Mapping[str, Any] = self._codecs.of(descriptor_of(message)).encode(message)
        return orjson.dumps({"type": facts(descriptor_of(message)).type, **members}).decode()

    def error(self, error: str, message: str, details: Mapping[str, Any] | None = None) -> str:
        """Return what a client is told whose message was not understood."""
        event = live_pb2.ErrorEvent(error=error, message=message)
        if details is not None:
            event.details.update(details)
        return self.spoken(event)

    async def _on_progress(self, message: BusMessage) -> None:
        event = events_pb2.TaskProgressEvent.FromString(message.data)
        if self.log.listened_to(event.tenant):
            self.log.pass_on(event.tenant, self.rendered(jobs.read_progress(event), self.log.newest))

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self._heartbeat_seconds)
            newest = self.log.newest
            ping = LiveMessage(newest, "ping", "", self.spoken(live_pb2.PingEvent(last_seq=newest)))
            self.log.pass_to_all(ping, but=OPERATORS)


def _told(message: BusMessage) -> Message | None:
    """Return what an event tells a listener; None where it tells nothing."""
    return jobs.read(message.subject, message.data) or capture.read(message.subject, message.data)
