"""Events of changes, in the transaction of the change: to the mesh by the outbox, to a task's webhook by a delivery."""

from __future__ import annotations

from collections.abc import Sequence

from meshkit import outbox
from meshkit.db import Connection
from meshkit.outbox import OutboxEvent
from services.tasks import events
from services.tasks.domain import JobKind, TaskRecord
from services.tasks.postgres import webhooks


async def created(conn: Connection, records: Sequence[TaskRecord]) -> None:
    """Write the events of tasks that were accepted."""
    await _tell(conn, [(record, events.created(record)) for record in records])


async def changed(conn: Connection, records: Sequence[TaskRecord]) -> None:
    """Write the events of tasks that changed their state."""
    await _tell(conn, [(record, events.changed(record)) for record in records])


async def _tell(conn: Connection, told: Sequence[tuple[TaskRecord, OutboxEvent]]) -> None:
    await outbox.insert(conn, [event for _, event in told])
    # Jobs of other kinds have no webhooks here: their owners tell.
    await webhooks.insert(
        conn,
        [
            events.delivery(record, record.webhook_url, event)
            for record, event in told
            if record.webhook_url is not None and record.kind == JobKind.TASK
        ],
    )
