"""Photos on their way through detection, on PostgreSQL."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from uuid import UUID

from atelier.events.v1 import live_pb2
from psycopg.types.json import Jsonb

from meshkit.moments import assign
from services.monitoring.capture.detection.domain import DetectionOutcome
from services.monitoring.capture.photos.domain import PhotoRecord
from services.monitoring.capture.postgres.changes import CaptureChange, CaptureChanges
from services.monitoring.capture.postgres.photos import COLUMNS, photo
from services.monitoring.capture.postgres.runs import NEW_RUN

_WAITING = f"""
SELECT {COLUMNS} FROM photos
WHERE state = 'WAITING' AND deleted_at IS NULL AND id <> ALL(%s) ORDER BY seen_at, id LIMIT %s
"""  # noqa: S608 -- fixed names
_UNDER_WAY = "SELECT id FROM photos WHERE state = 'DETECTING' ORDER BY seen_at, id"
_HANDED_OVER = "UPDATE photos SET state = 'DETECTING', task_id = id WHERE id = %s AND state = 'WAITING'"
_LOCK = f"""
SELECT {COLUMNS} FROM photos
WHERE id = %s AND state IN ('WAITING', 'DETECTING') AND file = coalesce(%s, file) FOR UPDATE
"""  # noqa: S608 -- fixed names
_FAILED = "UPDATE photos SET state = 'FAILED', error = %s, missed = %s WHERE id = %s"
_DETECTED = """
UPDATE photos SET state = 'DETECTED', task_id = id, findings = %s, detected_at = clock_timestamp() WHERE id = %s
RETURNING detected_at
"""
_FOUND = """
INSERT INTO detections (photo_id, camera_id, object_type, label, confidence, bbox, detected_at)
VALUES (%s, %s, %s, %s, %s, %s, %s) RETURNING id
"""


class PostgresDetectionStore:
    """Implements `services.monitoring.capture.detection.store.DetectionStore`.

    Args:
        changes: Changes rows.
        runs: Whether a workflow runs for each photo.
    """

    def __init__(self, changes: CaptureChanges, *, runs: bool = False) -> None:
        self._changes = changes
        self._runs = runs

    async def waiting(self, most: int, but: Collection[UUID]) -> Sequence[PhotoRecord]:
        """Return photos that nobody looks at yet, in the order in which they were seen; without some."""
        async with self._changes.db.connection() as conn:
            cursor = await conn.execute(_WAITING, (list(but), most))
            return [photo(row) for row in await cursor.fetchall()]

    async def under_way(self) -> Sequence[UUID]:
        """Return the photos that tasks look at."""
        async with self._changes.db.connection() as conn:
            return [one for (one,) in await (await conn.execute(_UNDER_WAY)).fetchall()]

    async def handed_over(self, photo_id: UUID) -> None:
        """Note that a task looks at a photo."""

        async def body() -> None:
            async with self._changes.db.transaction() as conn:
                await conn.execute(_HANDED_OVER, (photo_id,))

        await self._changes.db.retrying(body)

    async def settle(self, photo_id: UUID, outcome: DetectionOutcome, *, file: bytes | None = None) -> bool:
        """Write what became of a photo, once, and tell listeners of it."""

        async def body() -> bool:
            async with self._changes.change() as change:
                row = await (await change.conn.execute(_LOCK, (photo_id, file))).fetchone()
                if row is None:
                    return False
                if outcome.error is not None:
                    await change.conn.execute(_FAILED, (outcome.error, outcome.missed, photo_id))
                else:
                    await self._write(change, photo(row), outcome)
                    if self._runs and outcome.stored_path:
                        await change.conn.execute(NEW_RUN, (photo_id, outcome.stored_path))
                return True

        return await self._changes.db.retrying(body)

    @staticmethod
    async def _write(change: CaptureChange, record: PhotoRecord, outcome: DetectionOutcome) -> None:
        values = (Jsonb(dict(outcome.findings or {})), record.id)
        [(now,)] = await (await change.conn.execute(_DETECTED, values)).fetchall()
        told: list[live_pb2.DetectionNewEvent] = []
        for one in outcome.detections:
            place = list(one.bbox)
            row = (record.id, record.camera_id, one.object_type, one.label, one.confidence, place, now)
            [(number,)] = await (await change.conn.execute(_FOUND, row)).fetchall()
            event = live_pb2.DetectionNewEvent(
                detection_id=number,
                camera_id=record.camera_id,
                object_type=one.object_type,
                confidence=one.confidence,
                label=one.label,
                photo_id=str(record.id),
            )
            event.bbox.x, event.bbox.y, event.bbox.width, event.bbox.height = place
            assign(event.timestamp, now)
            told.append(event)
        for event in told:
            change.announce(event)
        batch = live_pb2.DetectionBatchEvent(
            batch_id="" if record.batch_id is None else str(record.batch_id),
            detections=told,
            camera_id=record.camera_id,
            photo_id=str(record.id),
        )
        assign(batch.frame_timestamp, record.seen_at)
        change.announce(batch)
