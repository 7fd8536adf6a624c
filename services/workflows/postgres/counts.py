"""How many workflows there are.

Triggers note each change of a workflow in its transaction; `fold` adds the notes up. A reader adds what is not folded
yet in the same statement, so that its figures are exact.
"""

from __future__ import annotations

from typing import Any

from psycopg import sql

from meshkit import counting
from meshkit.db import Connection, Database
from services.workflows.store import WorkflowCounts, WorkflowFilter

# In the order of the indexes.
LABELS = ("tenant", "status", "origin_instance", "origin_zone")

_COUNTED = sql.SQL("""
SELECT {figures} FROM (
    SELECT tenant, origin_instance, origin_zone, status, is_deleted, workflows, steps FROM workflow_counts UNION ALL
    SELECT tenant, origin_instance, origin_zone, status, is_deleted, workflows, steps FROM workflow_changes
) counted WHERE {where}
""")
_TOTAL = sql.SQL("coalesce(sum(workflows), 0)::bigint")
_BY_STATUS = sql.SQL("status, sum(workflows)::bigint, sum(steps)::bigint")

# Whole minutes are counted; of the minute in which the time begins, the rows themselves.
_CREATED = sql.SQL("""
WITH edge AS (SELECT date_trunc('minute', now() - %(span)s * interval '1 hour') + interval '1 minute' AS minute),
created AS (
    SELECT created_minute, tenant, origin_instance, origin_zone, workflows FROM workflow_creations UNION ALL
    SELECT created_minute, tenant, origin_instance, origin_zone, workflows FROM workflow_changes WHERE NOT is_deleted
)
SELECT coalesce((
    SELECT sum(workflows) FROM created WHERE {labels} AND created_minute >= (SELECT minute FROM edge)
), 0)::bigint + (
    SELECT count(*) FROM workflows WHERE NOT is_deleted AND {labels}
        AND created_at >= now() - %(span)s * interval '1 hour' AND created_at < (SELECT minute FROM edge))
""")

_FOLD_LOCK = 0x776F726B666C6F77  # any number of its own
_FOLD = """
WITH taken AS (DELETE FROM workflow_changes RETURNING *),
minutes AS (
    INSERT INTO workflow_creations AS c (created_minute, tenant, origin_instance, origin_zone, workflows)
    SELECT created_minute, tenant, origin_instance, origin_zone, sum(workflows) FROM taken
    WHERE NOT is_deleted AND created_minute > now() - interval '25 hours'
    GROUP BY 1, 2, 3, 4 HAVING sum(workflows) <> 0
    ON CONFLICT (created_minute, tenant, origin_instance, origin_zone)
    DO UPDATE SET workflows = c.workflows + excluded.workflows
)
INSERT INTO workflow_counts AS c (tenant, origin_instance, origin_zone, status, is_deleted, workflows, steps)
SELECT tenant, origin_instance, origin_zone, status, is_deleted, sum(workflows), sum(steps) FROM taken
GROUP BY 1, 2, 3, 4, 5 HAVING sum(workflows) <> 0 OR sum(steps) <> 0
ON CONFLICT (tenant, origin_instance, origin_zone, status, is_deleted)
DO UPDATE SET workflows = c.workflows + excluded.workflows, steps = c.steps + excluded.steps
"""
_FORGET = (
    "DELETE FROM workflow_counts WHERE workflows = 0",
    "DELETE FROM workflow_creations WHERE workflows = 0 OR created_minute < now() - interval '25 hours'",
)


async def fold(db: Database) -> None:
    """Add what was noted of changes to the counters."""
    await counting.fold(db, _FOLD_LOCK, _FOLD, *_FORGET)


def labels(which: WorkflowFilter) -> tuple[list[sql.Composable], dict[str, Any]]:
    """Return conditions on what workflows are counted by, hidden ones aside, and the values of their placeholders."""
    values = {name: value for name in LABELS if (value := getattr(which, name)) is not None}
    return [sql.SQL("{} = {}").format(sql.Identifier(name), sql.Placeholder(name)) for name in values], values


async def total(conn: Connection, which: WorkflowFilter) -> int:
    """Return how many workflows match a filter that is counted."""
    assert which.is_counted, "no counter knows"
    where, values = _where(which)
    [[count]] = await (await conn.execute(_COUNTED.format(figures=_TOTAL, where=where), values)).fetchall()
    return int(count)


async def stats(conn: Connection, which: WorkflowFilter) -> WorkflowCounts:
    """Count workflows by their labels; the connection's transaction has to see the rows of one moment."""
    where, values = _where(which)
    query = _COUNTED.format(figures=_BY_STATUS, where=where) + sql.SQL(" GROUP BY status HAVING sum(workflows) <> 0")
    rows = await (await conn.execute(query, values)).fetchall()
    conditions, values = labels(which)
    created = _CREATED.format(labels=_all(conditions))
    spans = []
    for hours in (1, 24):
        [[count]] = await (await conn.execute(created, {**values, "span": hours})).fetchall()
        spans.append(int(count))
    workflows = sum(row[1] for row in rows)
    return WorkflowCounts(
        by_status={row[0]: row[1] for row in rows},
        last_hour=spans[0],
        last_day=spans[1],
        average_steps=sum(row[2] for row in rows) / workflows if workflows else 0.0,
    )


def _where(which: WorkflowFilter) -> tuple[sql.Composable, dict[str, Any]]:
    conditions, values = labels(which)
    return _all([*conditions, *([] if which.include_deleted else [sql.SQL("NOT is_deleted")])]), values


def _all(conditions: list[sql.Composable]) -> sql.Composable:
    return sql.SQL(" AND ").join([sql.SQL("true"), *conditions])
