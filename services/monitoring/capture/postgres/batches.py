"""Batches on PostgreSQL."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from services.monitoring.capture.batches.domain import (
    BatchesWanted,
    BatchLimits,
    BatchRecord,
    BatchState,
    GatheredBatch,
    gather,
)
from services.monitoring.capture.pages import PageFound, PageWanted
from services.monitoring.capture.postgres.changes import CaptureChanges

_SELECT = """
SELECT b.id, b.camera_id, b.state, b.started_at, b.last_activity_at, b.closed_at, b.photo_count,
    (SELECT count(*) FROM photos p JOIN detections d ON d.photo_id = p.id WHERE p.batch_id = b.id)
FROM batches b
"""
_WANTED = (
    "b.deleted_at IS NULL AND (%(camera_id)s::text IS NULL OR b.camera_id = %(camera_id)s) "
    "AND (%(state)s::text IS NULL OR b.state = %(state)s)"
)
_TO_GATHER = """
SELECT camera_id FROM photos WHERE batch_id IS NULL UNION SELECT camera_id FROM batches WHERE state = 'open' ORDER BY 1
"""
# Of several replicas one gathers a camera at a time.
_LOCK = "SELECT clock_timestamp() FROM cameras WHERE id = %s FOR UPDATE"
_OPEN = "SELECT id, started_at, last_activity_at FROM batches WHERE camera_id = %s AND state = 'open'"
_PHOTOS = "SELECT id, seen_at FROM photos WHERE camera_id = %s AND batch_id IS NULL ORDER BY seen_at, id LIMIT %s"
_NEW = """
INSERT INTO batches (id, camera_id, state, started_at, last_activity_at, closed_at, photo_count)
VALUES (%(id)s, %(camera_id)s, %(state)s, %(started_at)s, %(last_activity_at)s, %(closed_at)s, %(count)s)
"""
_MORE = """
UPDATE batches SET state = %(state)s, last_activity_at = %(last_activity_at)s, closed_at = %(closed_at)s,
    photo_count = photo_count + %(count)s
WHERE id = %(id)s AND state = 'open'
"""
_JOIN = "UPDATE photos SET batch_id = %s WHERE id = ANY(%s)"
_MOST_PHOTOS = 1000


class PostgresBatchStore:
    """Implements `services.monitoring.capture.batches.store.BatchStore`.

    Args:
        changes: Changes rows.
    """

    def __init__(self, changes: CaptureChanges) -> None:
        self._changes = changes

    async def find_batch(self, batch_id: UUID) -> BatchRecord | None:
        """Return a batch."""
        async with self._changes.db.connection() as conn:
            cursor = await conn.execute(f"{_SELECT} WHERE b.id = %s AND b.deleted_at IS NULL", (batch_id,))
            row = await cursor.fetchone()
            return None if row is None else batch(row)

    async def list_batches(self, wanted: BatchesWanted, page: PageWanted) -> PageFound[BatchRecord]:
        """Return batches, newest first."""
        values = {
            "camera_id": wanted.camera_id,
            "state": None if wanted.state is None else wanted.state.value,
            "offset": page.offset,
            "limit": page.limit,
        }
        order = "ORDER BY b.started_at DESC, b.id DESC OFFSET %(offset)s LIMIT %(limit)s"
        async with self._changes.db.connection() as conn:
            cursor = await conn.execute(f"{_SELECT} WHERE {_WANTED} {order}", values)
            found = [batch(row) for row in await cursor.fetchall()]
            counted = await conn.execute(f"SELECT count(*) FROM batches b WHERE {_WANTED}", values)  # noqa: S608 -- fixed texts
            [(total,)] = await counted.fetchall()
        return PageFound(found, total)

    async def open_batches(self) -> tuple[Sequence[BatchRecord], datetime]:
        """Return those that take further photos, oldest first, and the present."""
        async with self._changes.db.connection() as conn:
            cursor = await conn.execute(f"{_SELECT} WHERE b.state = 'open' ORDER BY b.started_at, b.id")
            found = [batch(row) for row in await cursor.fetchall()]
            [(now,)] = await (await conn.execute("SELECT clock_timestamp()")).fetchall()
        return found, now

    async def to_gather(self) -> Sequence[str]:
        """Return the cameras that have an open batch, or photos that belong to none."""
        async with self._changes.db.connection() as conn:
            return [camera for (camera,) in await (await conn.execute(_TO_GATHER)).fetchall()]

    async def gather(self, camera_id: str, limits: BatchLimits) -> tuple[int, bool]:
        """Put photos of a camera into batches, and close those that are complete."""

        async def body() -> tuple[int, bool]:
            async with self._changes.db.transaction() as conn:
                [(now,)] = await (await conn.execute(_LOCK, (camera_id,))).fetchall()
                opened = await (await conn.execute(_OPEN, (camera_id,))).fetchone()
                current = None if opened is None else GatheredBatch(opened[0], opened[1], opened[2], is_new=False)
                seen = await (await conn.execute(_PHOTOS, (camera_id, _MOST_PHOTOS))).fetchall()
                more = len(seen) == _MOST_PHOTOS
                found = gather(current, seen, now, limits, whole=not more)
                for one in found:
                    await self._write(conn, camera_id, one)
            return sum(one.closed_at is not None for one in found), more

        return await self._changes.db.retrying(body)

    @staticmethod
    async def _write(conn: Any, camera_id: str, one: GatheredBatch) -> None:
        if not one.is_new and not one.photos and one.closed_at is None:
            return
        values = {
            "id": one.id,
            "camera_id": camera_id,
            "state": (BatchState.OPEN if one.closed_at is None else BatchState.CLOSED).value,
            "started_at": one.started_at,
            "last_activity_at": one.last_activity_at,
            "closed_at": one.closed_at,
            "count": len(one.photos),
        }
        await conn.execute(_NEW if one.is_new else _MORE, values)
        await conn.execute(_JOIN, (one.id, list(one.photos)))


def batch(row: Sequence[Any]) -> BatchRecord:
    """Return a row of batches as a record."""
    batch_id, camera_id, state, *rest = row
    return BatchRecord(batch_id, camera_id, BatchState(state), *rest)
