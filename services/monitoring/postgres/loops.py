"""Wishes and history of background loops on PostgreSQL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from meshkit.db import Database
from meshkit.loops import LoopEventKind
from services.monitoring.supervision.domain import HistoryLine, LoopOrder, Wish

# By the clock, so that a database that was lost begins above what processes have followed.
_ORDER = """
INSERT INTO loops AS l (name, role, stopped, last_order, revision, seen_at)
VALUES (%(name)s, '', coalesce(%(stopped)s, false), %(order)s,
    (extract(epoch FROM clock_timestamp()) * 1000000)::bigint, now())
ON CONFLICT (name) DO UPDATE SET stopped = coalesce(%(stopped)s, l.stopped), last_order = excluded.last_order,
    revision = greatest(l.revision + 1, excluded.revision)
RETURNING name, stopped, last_order, revision
"""
_MANUAL = """
INSERT INTO loop_events (event_id, loop, at, attempt, kind, replica)
VALUES (gen_random_uuid(), %s, clock_timestamp(), 0, 'manual', '')
"""
_SEEN = """
INSERT INTO loops AS l (name, role, seen_at) SELECT n, r, now() FROM unnest(%s::text[], %s::text[]) AS t(n, r)
ON CONFLICT (name) DO UPDATE SET seen_at = now(), role = excluded.role
WHERE l.seen_at < now() - interval '1 minute' OR l.role = ''
"""
_LINE = """
INSERT INTO loop_events (event_id, loop, at, attempt, kind, error, replica)
VALUES (%s, %s, %s, %s, %s, %s, %s) ON CONFLICT (event_id) DO NOTHING
"""
_STOPPED = {LoopOrder.START: False, LoopOrder.RESTART: False, LoopOrder.STOP: True, LoopOrder.RESET: None}


class PostgresLoopStore:
    """Implements `services.monitoring.supervision.store.LoopStore`.

    Args:
        db: The service's database, migrated.
    """

    def __init__(self, db: Database) -> None:
        self._db = db

    async def wishes(self) -> list[Wish]:
        """Return every loop that there was lately or that somebody has stopped, with what is wanted of it."""
        async with self._db.connection() as conn:
            cursor = await conn.execute("SELECT name, stopped, last_order, revision FROM loops ORDER BY name")
            return [_wish(row) for row in await cursor.fetchall()]

    async def order(self, loop: str, order: LoopOrder) -> Wish:
        """Write down what somebody wants of a loop; a restart is a line of its history."""

        async def body() -> Wish:
            async with self._db.transaction() as conn:
                values = {"name": loop, "stopped": _STOPPED[order], "order": order.value}
                [row] = await (await conn.execute(_ORDER, values)).fetchall()
                if order is LoopOrder.RESTART:
                    await conn.execute(_MANUAL, (loop,))
            return _wish(row)

        return await self._db.retrying(body)

    async def note(self, loops: Mapping[str, str], lines: Sequence[HistoryLine]) -> None:
        """Write down what processes reported; lines that are there already are left as they are."""
        names = sorted(loops)
        async with self._db.transaction() as conn:
            await conn.execute(_SEEN, (names, [loops[name] for name in names]))
            for one in lines:
                row = (one.event_id, one.loop, one.at, one.attempt, one.kind.value, one.error, one.replica)
                await conn.execute(_LINE, row)

    async def history(self, loop: str | None, limit: int, offset: int) -> tuple[list[HistoryLine], int]:
        """Return lines of history, newest first, of one loop or of all; and how many there are in all."""
        chosen = "" if loop is None else "WHERE loop = %(loop)s"
        values = {"loop": loop, "limit": limit, "offset": offset}
        async with self._db.transaction() as conn:
            cursor = await conn.execute(f"SELECT count(*) FROM loop_events {chosen}", values)  # noqa: S608 -- fixed text
            [[total]] = await cursor.fetchall()
            cursor = await conn.execute(
                f"SELECT event_id, loop, at, attempt, kind, error, replica FROM loop_events {chosen} "  # noqa: S608 -- fixed text
                "ORDER BY at DESC, attempt DESC, event_id LIMIT %(limit)s OFFSET %(offset)s",
                values,
            )
            return [_line(row) for row in await cursor.fetchall()], int(total)

    async def forget(self, days: float) -> None:
        """Delete lines that are older, and loops that no process has had for a day."""
        async with self._db.transaction() as conn:
            await conn.execute("DELETE FROM loop_events WHERE at < now() - %s * interval '1 day'", (days,))
            await conn.execute("DELETE FROM loops WHERE seen_at < now() - interval '1 day' AND NOT stopped")


def _wish(row: tuple[Any, ...]) -> Wish:
    name, stopped, order, revision = row
    return Wish(name, stopped, None if order is None else LoopOrder(order), revision)


def _line(row: tuple[Any, ...]) -> HistoryLine:
    event_id, loop, at, attempt, kind, error, replica = row
    return HistoryLine(event_id, loop, at, attempt, LoopEventKind(kind), error, replica)
