"""Events written in the transaction of the change they tell of, and the relay that publishes them.

An event is a row until NATS acknowledged it. Rows are claimed by their flag, never by a cursor over ids: a transaction
that commits late has a low id and would be passed over.
"""

from __future__ import annotations

import asyncio
import uuid
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import orjson
import psycopg

from meshkit import metrics, tracing
from meshkit.db import DatabaseUnavailableError
from meshkit.errors import MeshError
from meshkit.logging import get_logger
from meshkit.loops import Loop

if TYPE_CHECKING:
    from sqlalchemy import MetaData, Table

    from meshkit.bus import Bus
    from meshkit.db import Connection, Database

_log = get_logger(__name__)

_PUBLISHED = metrics.counter("outbox_published", "Events acknowledged by NATS", ("schema",))
_WAITING = metrics.gauge("outbox_oldest_unpublished_seconds", "Age of the oldest event that waits", ("schema",))

_LOCK_SPACE = 0x6F7574  # "out": keeps these advisory locks apart from others in the same database
_BATCH = 200
_KEEP_HOURS = 24
_PRUNE_BATCH = 5000


@dataclass(frozen=True, slots=True)
class OutboxEvent:
    """An event to publish.

    Attributes:
        subject: Subject within the stream of events.
        payload: The serialized event.
        headers: Headers; `traceparent` is added where the work at hand has one.
        event_id: Its identity: the stream drops repetitions by it, consumers remember it.
    """

    subject: str
    payload: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    event_id: uuid.UUID = field(default_factory=uuid.uuid4)


def outbox_table(metadata: MetaData) -> Table:
    """The table, to be created by the owner's migration.

    Args:
        metadata: The owner's tables.
    """
    import sqlalchemy as sa  # noqa: PLC0415 -- only where tables are described
    from sqlalchemy.dialects.postgresql import JSONB  # noqa: PLC0415

    return sa.Table(
        "outbox",
        metadata,
        sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
        sa.Column("event_id", sa.Uuid, nullable=False),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("payload", sa.LargeBinary, nullable=False),
        sa.Column("headers", JSONB, nullable=False, server_default=sa.text("'{}'::jsonb")),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
        sa.Column("published_at", sa.DateTime(timezone=True), nullable=True),
        sa.Index("outbox_unpublished", "id", postgresql_where=sa.text("published_at IS NULL")),
        sa.Index("outbox_published", "published_at", postgresql_where=sa.text("published_at IS NOT NULL")),
    )


async def insert(conn: Connection, events: Sequence[OutboxEvent]) -> None:
    """Writes events in the transaction of their change.

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
        "FROM unnest(%s::uuid[], %s::text[], %s::bytea[], %s::text[]) WITH ORDINALITY AS t(e, s, p, h, n) ORDER BY n",
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
    """

    def __init__(self, db: Database, bus: Bus, *, interval_seconds: float = 1.0, batch: int = _BATCH) -> None:
        self._db = db
        self._bus = bus
        self._batch = batch
        self._leader: Connection | None = None
        self._holds = False
        self._wake = asyncio.Event()
        self._lock_key = zlib.crc32(db.schema.encode()) - 2**31
        self.loop = Loop(f"outbox-{db.schema}", self.run_once, interval_seconds, wake=self._wake)
        self.prune_loop = Loop(f"outbox-prune-{db.schema}", self.prune, 600.0)

    def wake(self) -> None:
        """Tells that events were committed; call after the commit."""
        self._wake.set()

    async def run_once(self) -> bool:
        """Publishes one batch; body of a loop.

        Returns:
            Whether more wait.
        """
        # Without NATS there is nothing to do, and no reason to hold the lock another replica could use.
        if not self._bus.connected:
            await self.close()
            return False
        if not await self._leads():
            return False
        rows = await self._claim()
        if not rows:
            _WAITING.labels(self._db.schema).set(0)
            return False
        _WAITING.labels(self._db.schema).set(max(0.0, rows[0][5]))
        published = await self._publish(rows)
        if published:
            await self._mark(published)
            _PUBLISHED.labels(self._db.schema).inc(len(published))
        # What failed waits for the next turn: NATS is in trouble, and haste would not help it.
        return len(rows) == self._batch and len(published) == len(rows)

    async def prune(self) -> bool:
        """Deletes events published a day ago; body of a loop.

        Returns:
            Whether more wait.
        """
        async with self._db.transaction() as conn:
            cursor = await conn.execute(
                "DELETE FROM outbox WHERE id = ANY(ARRAY(SELECT id FROM outbox WHERE published_at IS NOT NULL "
                "AND published_at < now() - make_interval(hours => %s) LIMIT %s))",
                (_KEEP_HOURS, _PRUNE_BATCH),
            )
            return cursor.rowcount == _PRUNE_BATCH

    async def close(self) -> None:
        """Gives the lock back."""
        leader, self._leader, self._holds = self._leader, None, False
        if leader is not None:
            await leader.close()

    async def _leads(self) -> bool:
        """Whether this process holds the lock; it lives as long as the connection that took it."""
        try:
            if self._leader is None:
                self._leader = await self._db.dedicated()
            # A lock of a session counts how often it was taken: ask for it once, then only whether the session lives.
            question = "SELECT true" if self._holds else "SELECT pg_try_advisory_lock(%s, %s)"
            cursor = await self._leader.execute(question, None if self._holds else (_LOCK_SPACE, self._lock_key))
            row = await cursor.fetchone()
        except psycopg.OperationalError as error:
            await self.close()
            raise DatabaseUnavailableError from error
        self._holds = bool(row and row[0])
        return self._holds

    async def _claim(self) -> list[tuple[int, uuid.UUID, str, bytes, dict[str, str], float]]:
        async with self._db.connection() as conn:
            cursor = await conn.execute(
                "SELECT id, event_id, subject, payload, headers, extract(epoch FROM now() - created_at)::float8 "
                "FROM outbox WHERE published_at IS NULL ORDER BY id LIMIT %s",
                (self._batch,),
            )
            return await cursor.fetchall()

    async def _publish(self, rows: Sequence[tuple[int, uuid.UUID, str, bytes, dict[str, str], float]]) -> list[int]:
        outcomes = await asyncio.gather(
            *(
                self._bus.publish(subject, bytes(payload), headers, msg_id=str(event_id))
                for _, event_id, subject, payload, headers, _ in rows
            ),
            return_exceptions=True,
        )
        published = [row[0] for row, outcome in zip(rows, outcomes, strict=True) if outcome is None]
        failures = [outcome for outcome in outcomes if outcome is not None]
        for failure in failures:
            if not isinstance(failure, MeshError):
                raise failure
        if failures:
            _log.warning("events wait", schema=self._db.schema, count=len(failures))
        return published

    async def _mark(self, ids: list[int]) -> None:
        # A mark that a crash undoes has its event published again, under the same id.
        async with self._db.transaction(pipelined=True, durable=False) as conn:
            await conn.execute("UPDATE outbox SET published_at = now() WHERE id = ANY(%s)", (ids,))
