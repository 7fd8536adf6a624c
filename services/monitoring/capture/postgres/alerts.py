"""Alerts on PostgreSQL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, TypeAlias
from uuid import UUID, uuid4

from atelier.events.v1 import events_pb2, live_pb2

from meshkit.moments import assign
from services.monitoring.capture.alerts.domain import (
    AlertGrade,
    AlertHandover,
    AlertRecord,
    AlertState,
    AlertsWanted,
    NewAlert,
)
from services.monitoring.capture.analysis.domain import EventRecord
from services.monitoring.capture.pages import PageFound, PageWanted
from services.monitoring.capture.postgres.changes import CaptureChange, CaptureChanges

_COLUMNS = ", ".join({"grade": "severity"}.get(field.name, field.name) for field in fields(AlertRecord))
_WANTED = (
    "(%(camera_id)s::text IS NULL OR camera_id = %(camera_id)s) AND (%(state)s::text IS NULL OR state = %(state)s) "
    "AND (%(grade)s::text IS NULL OR severity = %(grade)s) "
    "AND (%(event_id)s::bigint IS NULL OR event_id = %(event_id)s)"
)
# Replicas judge batches of one camera at once: the camera's row keeps two alerts from being raised within a pause.
_LOCK = "SELECT FROM cameras WHERE id = %s FOR UPDATE"
_RAISE = f"""
INSERT INTO alerts (id, event_id, camera_id, rule, severity, message, state)
SELECT %(id)s, %(event_id)s, %(camera_id)s, %(rule)s, %(severity)s, %(message)s, 'open'
WHERE %(pause)s <= 0 OR NOT EXISTS (
    SELECT FROM alerts WHERE rule = %(rule)s AND camera_id = %(camera_id)s
        AND created_at > now() - %(pause)s * interval '1 second')
ON CONFLICT (event_id, rule) DO NOTHING
RETURNING {_COLUMNS}
"""  # noqa: S608 -- fixed names
# By and since when it is so stands in columns that bear the state's name.
_TURN = """
UPDATE alerts SET state = '{state}', {state}_by = %s, {state}_at = now()
WHERE id = %s AND state IN ({before}) RETURNING {columns}
"""
_BEFORE = {AlertState.ACKNOWLEDGED: "'open'", AlertState.DISMISSED: "'open', 'acknowledged'"}
_HANDOVER = """
INSERT INTO webhook_handovers (event_id, alert_id, version, url, event_name, event)
VALUES (%s, %s, %s, %s, 'AlertStatusEvent', %s)
"""
_OF_EVENT = "SELECT risk_score, risk_level, summary FROM events WHERE id = %s"
_Told: TypeAlias = live_pb2.AlertCreatedEvent | live_pb2.AlertAcknowledgedEvent | live_pb2.AlertDismissedEvent
_LIVE: Mapping[AlertState, type[_Told]] = {
    AlertState.OPEN: live_pb2.AlertCreatedEvent,
    AlertState.ACKNOWLEDGED: live_pb2.AlertAcknowledgedEvent,
    AlertState.DISMISSED: live_pb2.AlertDismissedEvent,
}


class PostgresAlertStore:
    """Implements `services.monitoring.capture.alerts.store.AlertStore`.

    Args:
        changes: Changes rows.
    """

    def __init__(self, changes: CaptureChanges) -> None:
        self._changes = changes

    async def find_alert(self, alert_id: UUID) -> AlertRecord | None:
        """Return an alert."""
        async with self._changes.db.connection() as conn:
            cursor = await conn.execute(f"SELECT {_COLUMNS} FROM alerts WHERE id = %s", (alert_id,))  # noqa: S608 -- fixed names
            row = await cursor.fetchone()
            return None if row is None else _alert(row)

    async def list_alerts(self, wanted: AlertsWanted, page: PageWanted) -> PageFound[AlertRecord]:
        """Return alerts, newest first."""
        values = {
            "camera_id": wanted.camera_id,
            "state": wanted.state and wanted.state.value,
            "grade": wanted.grade and wanted.grade.value,
            "event_id": wanted.event_id,
            "offset": page.offset,
            "limit": page.limit,
        }
        async with self._changes.db.connection() as conn:
            cursor = await conn.execute(
                f"SELECT {_COLUMNS} FROM alerts WHERE {_WANTED} "  # noqa: S608 -- fixed texts
                "ORDER BY created_at DESC, id DESC OFFSET %(offset)s LIMIT %(limit)s",
                values,
            )
            found = [_alert(row) for row in await cursor.fetchall()]
            counted = await conn.execute(f"SELECT count(*) FROM alerts WHERE {_WANTED}", values)  # noqa: S608 -- fixed texts
            [(total,)] = await counted.fetchall()
        return PageFound(found, total)

    async def turn_alert(self, alert_id: UUID, state: AlertState, by: str, url: str) -> AlertRecord | None:
        """Acknowledge or dismiss an alert where that is open to it, and tell of it; None where there is no such."""
        turn = _TURN.format(state=state.value, before=_BEFORE[state], columns=_COLUMNS)

        async def body() -> None:
            async with self._changes.change() as change:
                row = await (await change.conn.execute(turn, (by, alert_id))).fetchone()
                if row is not None:
                    alert = _alert(row)
                    [about] = await (await change.conn.execute(_OF_EVENT, (alert.event_id,))).fetchall()
                    await _tell(change, alert, about, url)

        await self._changes.db.retrying(body)
        return await self.find_alert(alert_id)

    async def handovers(self, limit: int) -> Sequence[AlertHandover]:
        """Return what webhooks are to be told, oldest first."""
        async with self._changes.db.connection() as conn:
            cursor = await conn.execute(
                "SELECT event_id, alert_id, version, url, event FROM webhook_handovers ORDER BY position LIMIT %s",
                (limit,),
            )
            return [AlertHandover(*row) for row in await cursor.fetchall()]

    async def forget_handover(self, event_id: UUID) -> None:
        """Forget what was handed in."""
        async with self._changes.db.transaction() as conn:
            await conn.execute("DELETE FROM webhook_handovers WHERE event_id = %s", (event_id,))


async def raise_alerts(change: CaptureChange, event: EventRecord, wanted: Sequence[NewAlert]) -> int:
    """Write the alerts of a new event and tell of them; return how many."""
    raised = 0
    if wanted:
        await change.conn.execute(_LOCK, (event.camera_id,))
    for one in wanted:
        values = {
            "id": uuid4(),
            "event_id": event.id,
            "camera_id": event.camera_id,
            "rule": one.rule,
            "severity": one.grade.value,
            "message": one.message,
            "pause": one.pause_seconds,
        }
        row = await (await change.conn.execute(_RAISE, values)).fetchone()
        if row is not None:
            about = (event.risk_score, event.risk_level.value, event.summary)
            await _tell(change, _alert(row), about, one.webhook_url)
            raised += 1
    return raised


async def _tell(change: CaptureChange, alert: AlertRecord, about: Sequence[Any], url: str) -> None:
    live = _LIVE[alert.state](
        alert_id=str(alert.id), event_id=alert.event_id, severity=alert.grade.value, message=alert.message
    )
    assign(live.created_at, alert.created_at)
    change.announce(live)
    if url:
        told = _status_event(alert, about).SerializeToString()
        await change.conn.execute(_HANDOVER, (uuid4(), alert.id, alert.version, url, told))


def _status_event(alert: AlertRecord, about: Sequence[Any]) -> events_pb2.AlertStatusEvent:
    score, level, summary = about
    event = events_pb2.AlertStatusEvent(
        event_type=events_pb2.EVENT_TYPE_ALERT_STATUS_UPDATE,
        alert_id=str(alert.id),
        status=alert.state.value,
        event_id=alert.event_id,
        camera_id=alert.camera_id,
        rule=alert.rule,
        severity=alert.grade.value,
        message=alert.message,
        risk_score=score,
        risk_level=level,
        summary=summary,
        acknowledged_by=alert.acknowledged_by,
        dismissed_by=alert.dismissed_by,
    )
    assign(event.timestamp, alert.dismissed_at or alert.acknowledged_at or alert.created_at)
    assign(event.created_at, alert.created_at)
    return event


def _alert(row: Sequence[Any]) -> AlertRecord:
    alert_id, event_id, camera_id, rule, severity, message, state, *rest = row
    return AlertRecord(alert_id, event_id, camera_id, rule, AlertGrade(severity), message, AlertState(state), *rest)
