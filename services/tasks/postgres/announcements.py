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
    await _tell(conn, [(record, events.created(record)) for record in records if record.kind == JobKind.TASK])


async def changed(conn: Connection, records: Sequence[TaskRecord]) -> None:
    """Write the events of tasks that changed their state."""
    tasks = [(record, events.changed(record)) for record in records if record.kind == JobKind.TASK]
    jobs = [(record, events.job_changed(record)) for record in records if record.kind != JobKind.TASK]
    await _tell(conn, tasks + [(record, event) for record, event in jobs if event is not None])


async def _tell(conn: Connection, told: Sequence[tuple[TaskRecord, OutboxEvent]]) -> None:
    await outbox.insert(conn, [event for _, event in told])
    # Jobs of other kinds name no webhook here: their owners tell.
    await webhooks.insert(
        conn,
        [
            events.delivery(record, record.webhook_url, event)
            for record, event in told
            if record.webhook_url is not None
        ],
    )
