"""Retention on PostgreSQL."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any
from uuid import UUID

from atelier.events.v1 import live_pb2

from services.monitoring.capture.cleanup.store import KeptFile
from services.monitoring.capture.postgres.changes import CaptureChanges

_JUDGED = """
p.deleted_at IS NULL AND p.state IN ('DETECTED', 'FAILED')
    AND EXISTS (SELECT FROM batches b WHERE b.id = p.batch_id AND b.state = 'analysed')
    AND p.id <> ALL(%s)
    AND NOT (%s AND EXISTS (SELECT FROM photo_runs r WHERE r.photo_id = p.id AND r.state IN ('WAITING', 'RUNNING')))
"""
_OLD = f"""
SELECT p.id, p.file, p.size, p.modified_ns, p.missed FROM photos p
WHERE p.seen_at < now() - %s * interval '1 second' AND {_JUDGED} ORDER BY p.seen_at, p.id LIMIT %s
"""  # noqa: S608 -- fixed texts
_EXCESS = f"""
SELECT p.id, p.file, p.size, p.modified_ns, p.missed FROM (
    SELECT *, sum(size) FILTER (WHERE NOT missed) OVER (ORDER BY seen_at DESC, id DESC) AS newer FROM photos
    WHERE deleted_at IS NULL) p
WHERE p.newer > %s AND {_JUDGED} ORDER BY p.seen_at, p.id LIMIT %s
"""  # noqa: S608 -- fixed texts
_HIDDEN = """
SELECT id, file, size, modified_ns, missed FROM photos WHERE deleted_at IS NOT NULL AND id > %s ORDER BY id LIMIT %s
"""
_EVENTS = """
DELETE FROM events WHERE id IN (
    SELECT id FROM events WHERE created_at < now() - %s * interval '1 second' ORDER BY created_at, id LIMIT %s)
RETURNING id, deleted_at IS NULL
"""
_DONE = """
SELECT id FROM batches b WHERE state = 'analysed' AND deleted_at IS NULL
    AND NOT EXISTS (SELECT FROM photos WHERE batch_id = b.id AND deleted_at IS NULL) LIMIT %s
"""
_EMPTY = """
DELETE FROM batches b WHERE deleted_at IS NOT NULL AND NOT EXISTS (SELECT FROM photos WHERE batch_id = b.id)
    AND NOT EXISTS (SELECT FROM events WHERE batch_id = b.id)
"""

_CAMERAS = """
DELETE FROM cameras c WHERE removed_at IS NOT NULL AND NOT EXISTS (SELECT FROM photos WHERE camera_id = c.id)
    AND NOT EXISTS (SELECT FROM batches WHERE camera_id = c.id)
    AND NOT EXISTS (SELECT FROM events WHERE camera_id = c.id)
    AND NOT EXISTS (SELECT FROM alerts WHERE camera_id = c.id)
"""


class PostgresForgettingStore:
    """Implements `services.monitoring.capture.cleanup.store.ForgettingStore`.

    Args:
        changes: Changes rows.
        runs: Whether a workflow runs for each photo: one whose workflow has not ended is not forgotten.
    """

    def __init__(self, changes: CaptureChanges, *, runs: bool = False) -> None:
        self._changes = changes
        self._runs = runs

    async def old_photos(self, age_seconds: float, limit: int, but: Collection[UUID]) -> Sequence[KeptFile]:
        """Return photos that were seen longer ago; without some."""
        return await self._files(_OLD, age_seconds, list(but), self._runs, limit)

    async def excess_photos(self, most_bytes: int, limit: int, but: Collection[UUID]) -> Sequence[KeptFile]:
        """Return the oldest photos, beyond those that take so many bytes together; without some."""
        return await self._files(_EXCESS, most_bytes, list(but), self._runs, limit)

    async def forgotten_photos(self, after: UUID, limit: int) -> Sequence[KeptFile]:
        """Return photos that are forgotten but for their row, which keeps their file from being a new photo."""
        return await self._files(_HIDDEN, after, limit)

    async def forget_photos(self, gone: Collection[UUID], there: Collection[UUID]) -> None:
        """Forget photos with all that was found on them: rows of `gone` go, those of `there` stay, hidden."""

        async def body() -> None:
            async with self._changes.db.transaction() as conn:
                await conn.execute("DELETE FROM photos WHERE id = ANY(%s)", (list(gone),))
                await conn.execute("DELETE FROM detections WHERE photo_id = ANY(%s)", (list(there),))
                await conn.execute(
                    "UPDATE photos SET deleted_at = now(), findings = NULL WHERE id = ANY(%s)", (list(there),)
                )

        await self._changes.db.retrying(body)

    async def forget_events(self, age_seconds: float, limit: int) -> int:
        """Delete events that were made longer ago, with their alerts, and tell of it; return how many."""

        async def body() -> int:
            async with self._changes.change() as change:
                rows = await (await change.conn.execute(_EVENTS, (age_seconds, limit))).fetchall()
                for event_id, was_there in rows:
                    if was_there:
                        change.announce(live_pb2.SecurityDeletedEvent(event_id=event_id))
            return len(rows)

        return await self._changes.db.retrying(body)

    async def forget_batches(self, limit: int) -> int:
        """Delete, or hide, batches that have no photos any more; return how many."""

        async def body() -> int:
            async with self._changes.db.transaction() as conn:
                rows = await (await conn.execute(_DONE, (limit,))).fetchall()
                ids = [one for (one,) in rows]
                await conn.execute("UPDATE batches SET deleted_at = now() WHERE id = ANY(%s)", (ids,))
                await conn.execute(_EMPTY)
            return len(ids)

        return await self._changes.db.retrying(body)

    async def forget_cameras(self) -> None:
        """Delete removed cameras of which nothing else is left."""

        async def body() -> None:
            async with self._changes.db.transaction() as conn:
                await conn.execute(_CAMERAS)

        await self._changes.db.retrying(body)

    async def _files(self, query: str, *values: Any) -> Sequence[KeptFile]:
        async with self._changes.db.connection() as conn:
            cursor = await conn.execute(query, values)
            return [KeptFile(one, bytes(file), *rest) for one, file, *rest in await cursor.fetchall()]
