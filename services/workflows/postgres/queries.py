"""Reading workflows."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from meshkit.db import Connection
from services.workflows.domain import StepRecord
from services.workflows.postgres import columns
from services.workflows.store import WorkflowSnapshot


async def find(conn: Connection, workflow_id: UUID, *, lock: bool = False) -> WorkflowSnapshot | None:
    """Return a workflow with its steps.

    Args:
        conn: A connection; in a transaction where it is locked.
        workflow_id: The workflow.
        lock: Whether to lock its row.
    """
    tail = " FOR UPDATE" if lock else ""
    found = await conn.execute(
        f"SELECT {columns.WORKFLOW} FROM workflows WHERE id = %s{tail}",  # noqa: S608 -- fixed names
        (workflow_id,),
        binary=True,
    )
    # A statement of its own, sent together with the first in a pipeline: its snapshot is of after the lock.
    steps = await conn.execute(
        f"SELECT {columns.STEP} FROM steps WHERE workflow_id = %s ORDER BY position",  # noqa: S608 -- constants
        (workflow_id,),
        binary=True,
    )
    row = await found.fetchone()
    if row is None:
        return None
    return WorkflowSnapshot(columns.workflow(row), tuple(columns.step(one) for one in await steps.fetchall()))


async def lock(conn: Connection, workflow_ids: list[UUID]) -> list[tuple[UUID, int, datetime]]:
    """Lock workflows, in the order in which every transaction locks several.

    Args:
        conn: A connection in a transaction.
        workflow_ids: The workflows.

    Returns:
        Of each that exists its identifier, its version and the time of its last change.
    """
    cursor = await conn.execute(
        "SELECT id, version, updated_at FROM workflows WHERE id = ANY(%b) ORDER BY id FOR UPDATE",
        (workflow_ids,),
        binary=True,
    )
    return await cursor.fetchall()


async def find_all(conn: Connection, workflow_ids: list[UUID]) -> list[WorkflowSnapshot]:
    """Those of these workflows that exist, with their steps."""
    found = await conn.execute(
        f"SELECT {columns.WORKFLOW} FROM workflows WHERE id = ANY(%b)",  # noqa: S608 -- fixed names
        (workflow_ids,),
        binary=True,
    )
    steps = await steps_of(conn, workflow_ids)
    records = [columns.workflow(row) for row in await found.fetchall()]
    return [WorkflowSnapshot(record, tuple(steps.get(record.id, ()))) for record in records]


async def steps_of(conn: Connection, workflow_ids: list[UUID]) -> dict[UUID, list[StepRecord]]:
    """Return the steps of workflows, by workflow."""
    cursor = await conn.execute(
        f"SELECT {columns.STEP} FROM steps WHERE workflow_id = ANY(%b) ORDER BY workflow_id, position",  # noqa: S608 -- constants
        (workflow_ids,),
        binary=True,
    )
    found: dict[UUID, list[StepRecord]] = {}
    for row in await cursor.fetchall():
        step = columns.step(row)
        found.setdefault(step.workflow_id, []).append(step)
    return found
