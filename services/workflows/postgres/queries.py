"""Reading workflows."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg import sql

from meshkit.db import Connection
from services.workflows.domain import StepRecord
from services.workflows.postgres import columns
from services.workflows.store import Page, WorkflowCounts, WorkflowFilter, WorkflowSnapshot

_SORTS = frozenset({"created_at", "updated_at", "started_at", "completed_at", "name", "status"})


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
    steps = await _steps(conn, workflow_ids)
    records = [columns.workflow(row) for row in await found.fetchall()]
    return [WorkflowSnapshot(record, tuple(steps.get(record.id, ()))) for record in records]


# Sizes are known without reading what is large. The first workflow of a page is in it, however large.
_PAGE = """
WITH page AS (
    SELECT id, row_number() OVER (ORDER BY {order}) AS place, octet_length(config) AS own
    FROM workflows WHERE {where} ORDER BY {order} OFFSET {skip} LIMIT {limit}
), cut AS (
    SELECT p.id, p.place, sum(p.own + s.bytes) OVER (ORDER BY p.place) AS total
    FROM page p CROSS JOIN LATERAL (
        SELECT coalesce(sum(octet_length(definition) + coalesce(octet_length(result), 0)
            + coalesce(octet_length(item), 0)), 0) AS bytes
        FROM steps WHERE workflow_id = p.id
    ) s
)
SELECT {columns} FROM workflows JOIN cut USING (id) WHERE total <= {max_bytes} OR place = {skip} + 1 ORDER BY place
"""


async def list_workflows(
    conn: Connection, which: WorkflowFilter, page: Page, max_bytes: int
) -> tuple[list[WorkflowSnapshot], int]:
    """Workflows with their steps, and how many there are in all; fewer where they are larger than `max_bytes`."""
    where, values = _where(which)
    cursor = await conn.execute(sql.SQL("SELECT count(*) FROM workflows WHERE {}").format(where), values)
    counted = await cursor.fetchone()
    assert page.sort_by in _SORTS, "the contract lists what may be sorted by"
    order = sql.SQL("{column} {way} NULLS LAST, id {way}").format(
        column=sql.Identifier(page.sort_by), way=sql.SQL("DESC" if page.descending else "ASC")
    )
    query = sql.SQL(_PAGE).format(
        columns=sql.SQL(columns.WORKFLOW),
        where=where,
        order=order,
        skip=sql.Literal(page.skip),
        limit=sql.Literal(page.limit),
        max_bytes=sql.Literal(max_bytes),
    )
    cursor = await conn.execute(query, values)
    records = [columns.workflow(row) for row in await cursor.fetchall()]
    steps = await _steps(conn, [record.id for record in records])
    return [WorkflowSnapshot(record, tuple(steps.get(record.id, ()))) for record in records], counted[
        0
    ] if counted else 0


async def stats(conn: Connection, which: WorkflowFilter) -> WorkflowCounts:
    """Count of workflows that match."""
    where, values = _where(which)
    query = sql.SQL(
        "SELECT status, count(*), count(*) FILTER (WHERE created_at > now() - interval '1 hour'), "
        "count(*) FILTER (WHERE created_at > now() - interval '24 hours'), sum(total_steps) "
        "FROM workflows WHERE {} GROUP BY status"
    ).format(where)
    rows = await (await conn.execute(query, values)).fetchall()
    total = sum(row[1] for row in rows)
    return WorkflowCounts(
        by_status={row[0]: row[1] for row in rows},
        last_hour=sum(row[2] for row in rows),
        last_day=sum(row[3] for row in rows),
        average_steps=float(sum(row[4] for row in rows)) / total if total else 0.0,
    )


async def _steps(conn: Connection, workflow_ids: list[UUID]) -> dict[UUID, list[StepRecord]]:
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


def _where(which: WorkflowFilter) -> tuple[sql.Composable, list[Any]]:
    conditions: list[sql.Composable] = [sql.SQL("true")]
    values: list[Any] = []
    for column, operator, value in (
        ("tenant", "=", which.tenant),
        ("status", "=", which.status),
        ("origin_instance", "=", which.origin_instance),
        ("origin_zone", "=", which.origin_zone),
        ("created_at", ">=", which.created_after),
        ("created_at", "<", which.created_before),
    ):
        if value is not None:
            conditions.append(sql.SQL("{} {} %s").format(sql.Identifier(column), sql.SQL(operator)))
            values.append(value)
    if which.search is not None:
        # An id is found by its beginning, with or without hyphens.
        conditions.append(
            sql.SQL(
                "(strpos(lower(name), lower(%s)) > 0 "
                "OR starts_with(replace(id::text, '-', ''), replace(lower(%s), '-', '')))"
            )
        )
        values += [which.search, which.search]
    if not which.include_deleted:
        conditions.append(sql.SQL("NOT is_deleted"))
    return sql.SQL(" AND ").join(conditions), values
