"""The stream of events, read once for this process and written into the log of live messages."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache, partial
from typing import Any

import orjson
from atelier.events.v1 import events_pb2, live_pb2
from google.protobuf.message import Message

from meshkit.bus import Bus, BusMessage
from meshkit.following import Follower, FollowerState
from meshkit.live import jobs
from meshkit.live.log import MOST_KEPT, LiveLog, LiveMessage
from meshkit.live.registry import descriptor_of, facts
from meshkit.loops import cancel
from meshkit.stream import TENANT_HEADER
from meshkit.transcoding.codec import Codecs

# Reading an option copies it, and there are few messages.
_facts = cache(facts)
# Of the operators; no tenant is called so.
OPERATORS = "*"
# A stream that is full is read in a second or two.
_READY_SECONDS = 10.0


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
        self._follower = Follower(bus, jobs.SUBJECTS, self)
        self._heart: asyncio.Task[None] | None = None

    @property
    def state(self) -> FollowerState:
        """How the reading fares."""
        return self._follower.state

    async def start(self) -> None:
        """Begin to read, and wait until the log is up with the stream; without NATS, that comes once it is there.

        Who listens from then on misses nothing.
        """
        await self._bus.subscribe(jobs.PROGRESS_SUBJECT, self._on_progress)
        self._follower.start()
        self._heart = asyncio.create_task(self._beat(), name="live-heartbeat")
        await self._bus.connect()
        if self._bus.connected:
            with suppress(TimeoutError):
                await asyncio.wait_for(self.log.ready.wait(), _READY_SECONDS)

    async def close(self) -> None:
        """Stop reading."""
        await self._follower.close()
        if self._heart is not None:
            await cancel([self._heart])
        await self._bus.close()

    # -- what the follower tells ---------------------------------------------------------------------------------

    def begin(self, first: int, last: int) -> int:
        """Begin with the newest events, as many as are kept; with all of a stream that took the place of a lost one."""
        begin = first if self.log.began_at else max(first, last - self._most + 1)
        self.log.begin(begin - 1, last)
        return begin

    def take(self, sequence: int, at: datetime, message: BusMessage) -> None:
        """Write an event into the log."""
        self.log.newest = max(self.log.newest, sequence)
        tenant = message.headers.get(TENANT_HEADER, "")
        told = jobs.read(message.subject, message.data) if tenant else None
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
