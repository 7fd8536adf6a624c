"""Events on PostgreSQL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any, TypeAlias
from uuid import UUID

from atelier.events.v1 import live_pb2
from psycopg.types.json import Jsonb

from meshkit.moments import assign
from services.monitoring.capture.analysis.domain import (
    AskedText,
    BatchFacts,
    EventDraft,
    EventRecord,
    EventsWanted,
    PhotoFacts,
    RiskLevel,
    TextBy,
)
from services.monitoring.capture.analysis.findings import read_photo
from services.monitoring.capture.pages import PageFound, PageWanted
from services.monitoring.capture.postgres.alerts import raise_alerts
from services.monitoring.capture.postgres.changes import CaptureChange, CaptureChanges

_COLUMNS = ", ".join(field.name for field in fields(EventRecord))
_LEVEL = [field.name for field in fields(EventRecord)].index("risk_level")
_WANTED = (
    "deleted_at IS NULL AND (%(camera_id)s::text IS NULL OR camera_id = %(camera_id)s) "
    "AND (%(level)s::text IS NULL OR risk_level = %(level)s) "
    "AND (%(score_least)s::int IS NULL OR risk_score >= %(score_least)s) "
    "AND (%(reviewed)s::bool IS NULL OR (reviewed_at IS NOT NULL) = %(reviewed)s)"
)
_TO_JUDGE = """
SELECT id FROM batches b WHERE state = 'closed'
    AND NOT EXISTS (SELECT FROM photos WHERE batch_id = b.id AND state IN ('WAITING', 'DETECTING'))
ORDER BY closed_at, id LIMIT %s
"""
_PHOTOS = """
SELECT p.camera_id, p.path, p.seen_at, p.findings, p.error, d.faces, d.confidence
FROM photos p CROSS JOIN LATERAL (
    SELECT count(*) FILTER (WHERE object_type = 'face') AS faces,
        max(confidence) FILTER (WHERE object_type = 'person') AS confidence
    FROM detections WHERE photo_id = p.id) d
WHERE p.batch_id = %s AND p.deleted_at IS NULL ORDER BY p.seen_at, p.id
"""
_NEW = f"""
INSERT INTO events (batch_id, camera_id, risk_score, risk_level, summary, reasoning, started_at, ended_at, facts,
    text_task_id)
SELECT id, camera_id, %(score)s, %(level)s, %(summary)s, %(reasoning)s, started_at, last_activity_at, %(facts)s,
    %(text_task_id)s
FROM batches WHERE id = %(batch_id)s AND state = 'closed'
ON CONFLICT (batch_id) DO NOTHING
RETURNING {_COLUMNS}
"""  # noqa: S608 -- fixed names
_ANALYSED = "UPDATE batches SET state = 'analysed' WHERE id = %s AND state = 'closed'"
_ASKED = """
SELECT id, batch_id, text_task_id, extract(epoch FROM now() - created_at)::float8 FROM events
WHERE text_task_id IS NOT NULL AND deleted_at IS NULL ORDER BY created_at, id LIMIT %s
"""
_END_TEXT = f"""
UPDATE events SET summary = coalesce(%(summary)s, summary), facts = facts || %(facts)s, text_task_id = NULL,
    updated_at = now()
WHERE id = %(id)s AND text_task_id = %(task_id)s AND deleted_at IS NULL
RETURNING {_COLUMNS}
"""  # noqa: S608 -- fixed names
_REVIEW = f"""
UPDATE events SET reviewed_by = %s, reviewed_at = now(), updated_at = now()
WHERE id = %s AND reviewed_at IS NULL AND deleted_at IS NULL RETURNING {_COLUMNS}
"""  # noqa: S608 -- fixed names
_DELETE = "UPDATE events SET deleted_at = now(), text_task_id = NULL WHERE id = %s AND deleted_at IS NULL"
_Told: TypeAlias = live_pb2.SecurityCreatedEvent | live_pb2.SecurityUpdatedEvent


class PostgresEventStore:
    """Implements `services.monitoring.capture.analysis.store.EventStore`.

    Args:
        changes: Changes rows.
    """

    def __init__(self, changes: CaptureChanges) -> None:
        self._changes = changes

    async def batches_to_judge(self, limit: int) -> Sequence[UUID]:
        """Return closed batches whose photos have all been looked at, those first that were closed first."""
        async with self._changes.db.connection() as conn:
            return [one for (one,) in await (await conn.execute(_TO_JUDGE, (limit,))).fetchall()]

    async def batch_facts(self, batch_id: UUID) -> BatchFacts | None:
        """Return what was found in a batch; None where its photos are there no more."""
        async with self._changes.db.connection() as conn:
            rows = await (await conn.execute(_PHOTOS, (batch_id,))).fetchall()
        return BatchFacts(rows[0][0], [_photo(row) for row in rows]) if rows else None

    async def write_event(self, draft: EventDraft) -> bool:
        """Write the event of a batch with its alerts, and tell of them; whether it is new."""
        values = {
            "batch_id": draft.batch_id,
            "score": draft.risk.score,
            "level": draft.risk.level.value,
            "summary": draft.summary,
            "reasoning": draft.reasoning,
            "facts": Jsonb(draft.document),
            "text_task_id": draft.text_task_id,
        }

        async def body() -> bool:
            async with self._changes.change() as change:
                row = await (await change.conn.execute(_NEW, values)).fetchone()
                await change.conn.execute(_ANALYSED, (draft.batch_id,))
                if row is None:
                    return False
                event = _event(row)
                _tell(change, live_pb2.SecurityCreatedEvent(), event)
                await raise_alerts(change, event, draft.alerts)
                return True

        return await self._changes.db.retrying(body)

    async def skip_batch(self, batch_id: UUID) -> None:
        """Note that a batch has nothing to judge."""

        async def body() -> None:
            async with self._changes.db.transaction() as conn:
                await conn.execute(_ANALYSED, (batch_id,))

        await self._changes.db.retrying(body)

    async def asked_texts(self, limit: int) -> Sequence[AskedText]:
        """Return events whose summary a language model was asked for, oldest first."""
        async with self._changes.db.connection() as conn:
            return [AskedText(*row) for row in await (await conn.execute(_ASKED, (limit,))).fetchall()]

    async def end_text(self, asked: AskedText, summary: str | None, why: str | None) -> bool:
        """Write what came of a summary, and tell of it where it is a new one; whether it was still waited for."""
        by = TextBy.FACTS if summary is None else TextBy.MODEL
        values = {
            "id": asked.event_id,
            "task_id": asked.task_id,
            "summary": summary,
            "facts": Jsonb({"summary_by": by.value, "model_text_unused": why}),
        }

        async def body() -> bool:
            async with self._changes.change() as change:
                row = await (await change.conn.execute(_END_TEXT, values)).fetchone()
                if row is not None and summary is not None:
                    _tell(change, live_pb2.SecurityUpdatedEvent(), _event(row))
            return row is not None

        return await self._changes.db.retrying(body)

    async def find_event(self, event_id: int) -> EventRecord | None:
        """Return an event."""
        async with self._changes.db.connection() as conn:
            cursor = await conn.execute(
                f"SELECT {_COLUMNS} FROM events WHERE id = %s AND deleted_at IS NULL",  # noqa: S608 -- fixed names
                (event_id,),
            )
            row = await cursor.fetchone()
            return None if row is None else _event(row)

    async def list_events(self, wanted: EventsWanted, page: PageWanted) -> PageFound[EventRecord]:
        """Return events, newest first."""
        values = {
            "camera_id": wanted.camera_id,
            "level": wanted.level and wanted.level.value,
            "score_least": wanted.score_least,
            "reviewed": wanted.reviewed,
            "offset": page.offset,
            "limit": page.limit,
        }
        async with self._changes.db.connection() as conn:
            cursor = await conn.execute(
                f"SELECT {_COLUMNS} FROM events WHERE {_WANTED} "  # noqa: S608 -- fixed texts
                "ORDER BY created_at DESC, id DESC OFFSET %(offset)s LIMIT %(limit)s",
                values,
            )
            found = [_event(row) for row in await cursor.fetchall()]
            counted = await conn.execute(f"SELECT count(*) FROM events WHERE {_WANTED}", values)  # noqa: S608 -- fixed texts
            [(total,)] = await counted.fetchall()
        return PageFound(found, total)

    async def review(self, event_id: int, by: str) -> EventRecord | None:
        """Note who has looked at an event, the first time, and tell of it; None where there is no such."""

        async def body() -> None:
            async with self._changes.change() as change:
                row = await (await change.conn.execute(_REVIEW, (by, event_id))).fetchone()
                if row is not None:
                    _tell(change, live_pb2.SecurityUpdatedEvent(), _event(row))

        await self._changes.db.retrying(body)
        return await self.find_event(event_id)

    async def delete_event(self, event_id: int) -> bool:
        """Delete an event and tell of it; whether there was one."""

        async def body() -> bool:
            async with self._changes.change() as change:
                cursor = await change.conn.execute(_DELETE, (event_id,))
                if cursor.rowcount:
                    change.announce(live_pb2.SecurityDeletedEvent(event_id=event_id))
            return bool(cursor.rowcount)

        return await self._changes.db.retrying(body)


def _tell(change: CaptureChange, told: _Told, event: EventRecord) -> None:
    told.id = told.event_id = event.id
    told.batch_id, told.camera_id = str(event.batch_id), event.camera_id
    told.risk_score, told.risk_level = event.risk_score, event.risk_level.value
    told.summary, told.reasoning = event.summary, event.reasoning
    assign(told.started_at, event.started_at)
    change.announce(told)


def _photo(row: Sequence[Any]) -> PhotoFacts:
    _, path, seen_at, findings, error, faces, confidence = row
    return read_photo(path, seen_at, findings=findings, error=error, faces=faces, confidence=confidence)


def _event(row: Sequence[Any]) -> EventRecord:
    found = list(row)
    found[_LEVEL] = RiskLevel(found[_LEVEL])
    return EventRecord(*found)
