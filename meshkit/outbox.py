"""Events written in the transaction of their change, and the relay that publishes them.

An event is a row until NATS acknowledged it, and is deleted then: what is there is what waits. No cursor over ids is
kept, because a transaction that commits late has a low id and would be passed over.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING

import orjson
import psycopg

from meshkit import metrics, stream, tracing
from meshkit.bus import MSG_ID
from meshkit.db import DatabaseUnavailableError, is_lost
from meshkit.errors import MeshError
from meshkit.leadership import FENCE, Leadership
from meshkit.logging import get_logger
from meshkit.loops import Loop
from meshkit.publishing import Outgoing

if TYPE_CHECKING:
    from sqlalchemy import MetaData, Table

    from meshkit.bus import Bus
    from meshkit.db import Connection, Database
    from meshkit.pipeline import Pipeline

_log = get_logger(__name__)

_PUBLISHED = metrics.counter("outbox_published", "Events acknowledged by NATS", ("schema",))
_WAITING = metrics.gauge("outbox_oldest_unpublished_seconds", "Age of the oldest event that waits", ("schema",))

_LAG = metrics.histogram(
    "outbox_lag_seconds",
    "From the oldest change of a batch to NATS' acknowledgement of its event",
    ("schema",),
    metrics.WAIT_BUCKETS,
)
# Each combination of labels is looked up once: the look-up costs more than the counting.
_published, _waiting, _lag = cache(_PUBLISHED.labels), cache(_WAITING.labels), cache(_LAG.labels)

VERSION_HEADER = stream.VERSION_HEADER
TENANT_HEADER = stream.TENANT_HEADER
EVENT_TYPE_HEADER = stream.EVENT_TYPE_HEADER

_WORK = "relay"
_BATCH = 200
_CLAIM = """
SELECT id, event_id::text, subject, payload, headers::text, date_part('epoch', now() - created_at)
FROM outbox ORDER BY id LIMIT %s
"""
# What a leader that stood still did not publish, its successor has to find.
_FORGET = f"DELETE FROM outbox WHERE id = ANY(%b) AND {FENCE}"  # noqa: S608 -- fixed names
_Row = tuple[int, str, str, bytes, str, float]


@dataclass(frozen=True, slots=True)
class OutboxEvent:
    """An event to publish.

    Attributes:
        subject: Subject within the stream of events.
        payload: The serialized event.
        headers: Headers; `traceparent` is added where the current work has one.
        event_id: Its identity: the stream drops repetitions by it, consumers remember it.
    """

    subject: str
    payload: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    event_id: uuid.UUID = field(default_factory=uuid.uuid4)


def event_headers(*, version: int, tenant: str, event_type: str, traceparent: str) -> dict[str, str]:
    """Return the headers of an event about an entity.

    Args:
        version: Version of the entity; a consumer passes over one that is not above what it knows.
        tenant: Tenant that the entity belongs to.
        event_type: Documented name of the event.
        traceparent: Trace of the entity; empty where it has none.
    """
    headers = {VERSION_HEADER: str(version), TENANT_HEADER: tenant, EVENT_TYPE_HEADER: event_type}
    if traceparent:
        headers["traceparent"] = traceparent
    return headers


def outbox_table(metadata: MetaData) -> Table:
    """Return the table, to be created by the owner's migration.

    Args:
        metadata: The owner's tables.
    """
    import sqlalchemy as sa  # noqa: PLC0415 -- only where tables are described
    from sqlalchemy.dialects.postgresql import JSONB  # noqa: PLC0415 -- only where tables are described

    return sa.Table(
        "outbox",
        metadata,
        sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
        sa.Column("event_id", sa.Uuid, nullable=False),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("payload", sa.LargeBinary, nullable=False),
        sa.Column("headers", JSONB, nullable=False, server_default=sa.text("'{}'::jsonb")),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
    )


# Tables of earlier releases kept published events for a day, by a flag; new ones have none.
DROP_PUBLISHED = """
DO $$ BEGIN
    IF EXISTS (SELECT FROM information_schema.columns
               WHERE table_schema = current_schema() AND table_name = 'outbox' AND column_name = 'published_at') THEN
        -- The full lock at once: to ask for it after the deletion would deadlock with an earlier replica that prunes.
        LOCK TABLE outbox;
        DELETE FROM outbox WHERE published_at IS NOT NULL;
        ALTER TABLE outbox DROP COLUMN published_at;
    END IF;
END $$
"""


async def insert(conn: Connection, events: Sequence[OutboxEvent]) -> None:
    """Write events in the transaction of their change.

    Args:
        conn: Connection with that transaction.
        events: The events, in the order in which they are to be published.
    """
    if not events:
        return
    trace = tracing.current()
    common = {"traceparent": trace.traceparent} if trace else {}
    # One statement for all of them: `unnest` keeps the order, and so do the ids.
    await conn.execute(
        "INSERT INTO outbox (event_id, subject, payload, headers) SELECT e, s, p, h::jsonb "
        "FROM unnest(%b::uuid[], %b::text[], %b::bytea[], %b::text[]) WITH ORDINALITY AS t(e, s, p, h, n) ORDER BY n",
        (
            [event.event_id for event in events],
            [event.subject for event in events],
            [event.payload for event in events],
            [orjson.dumps({**common, **event.headers}).decode() for event in events],
        ),
    )


class Relay:
    """Publishes a service's events; of all its replicas one does, the others stand by.

    Args:
        db: The service's database.
        bus: Where to publish.
        interval_seconds: How often to look without being woken.
        batch: Events a run.
        leadership: This replica's claim to the work.
    """

    def __init__(
        self,
        db: Database,
        bus: Bus,
        *,
        interval_seconds: float = 1.0,
        batch: int = _BATCH,
        leadership: Leadership | None = None,
    ) -> None:
        self._db = db
        self._bus = bus
        self._batch = batch
        self._leadership = leadership or Leadership(_WORK)
        self._conn: Pipeline | None = None
        self._wake = asyncio.Event()
        self.loop = Loop(f"outbox-{db.schema}", self.run_once, interval_seconds, wake=self._wake)

    def wake(self) -> None:
        """Publish soon: events were committed; call after the commit."""
        self._wake.set()

    async def run_once(self) -> bool:
        """Publish one batch; body of a loop.

        Returns:
            Whether more wait.

        Raises:
            DatabaseUnavailableError: The database is not there; the work is asked for anew next time.
        """
        # Without NATS there is nothing to do, and no reason to keep the work from a replica that has it.
        if not self._bus.connected:
            await self.close()
            return False
        try:
            # One of its own, leading or standing by: every commit wakes a relay, and to connect costs more than to ask.
            conn = self._conn = self._conn or await self._db.dedicated()
            return await self._leadership.hold(conn) and await self._relay(conn)
        except psycopg.Error as error:
            await self._drop()
            if is_lost(error):
                raise DatabaseUnavailableError from error
            raise

    async def close(self) -> None:
        """Give the work back, and close the connection."""
        if self._conn is not None:
            with suppress(psycopg.Error):
                await self._leadership.give_back(self._conn)
        await self._drop()

    async def _drop(self) -> None:
        self._leadership.lose()
        conn, self._conn = self._conn, None
        if conn is not None:
            await conn.close()

    async def _relay(self, conn: Pipeline) -> bool:
        async with conn.transaction():
            rows: list[_Row] = await (await conn.execute(_CLAIM, (self._batch,), binary=True)).fetchall()
        if not rows:
            _waiting(self._db.schema).set(0)
            return False
        _waiting(self._db.schema).set(max(0.0, rows[0][5]))
        if not self._leadership.valid:  # this process stood still: another has published them, or does
            return False
        read = time.monotonic()
        published = await self._publish(rows)
        if published:
            self._measure(rows, frozenset(published), time.monotonic() - read)
            await self._forget(conn, published)
            _published(self._db.schema).inc(len(published))
        # What failed waits for the next turn: NATS is in trouble, and haste would not help it.
        return len(rows) == self._batch and len(published) == len(rows)

    def _measure(self, rows: Sequence[_Row], published: Collection[int], seconds: float) -> None:
        oldest = max(row[5] for row in rows if row[0] in published)
        _lag(self._db.schema).observe(max(0.0, oldest) + seconds)

    async def _forget(self, conn: Pipeline, ids: Sequence[int]) -> None:
        # A deletion that a crash of PostgreSQL undoes has its event published again, under the same id.
        async with conn.transaction(durable=False):
            await conn.execute(_FORGET, (ids, *self._leadership.fence))

    async def _publish(self, rows: Sequence[_Row]) -> list[int]:
        try:
            acknowledged = await self._bus.publish_all(
                [
                    Outgoing(subject, payload, {**orjson.loads(headers), MSG_ID: event_id})
                    for _, event_id, subject, payload, headers, _ in rows
                ]
            )
        except MeshError:
            acknowledged = [False] * len(rows)
        published = [row[0] for row, stored in zip(rows, acknowledged, strict=True) if stored]
        if len(published) < len(rows):
            _log.warning("events_waiting", schema=self._db.schema, count=len(rows) - len(published))
        return published
