"""Pages of workflows.

An index gives the order of each list by one filter, of a tenant and of all tenants. A page's identifiers are searched
by themselves, so that the rows before it are passed over in the index alone.
"""

from __future__ import annotations

from typing import Any

from psycopg import sql

from meshkit import counting
from meshkit.db import Connection
from meshkit.identifiers import ids_beginning_with
from services.workflows.domain import WorkflowStatus
from services.workflows.postgres import columns, counts, queries
from services.workflows.store import ListedWorkflow, Page, WorkflowFilter, WorkflowSnapshot

_SORTS = frozenset({"created_at", "updated_at", "started_at", "completed_at", "name", "status"})
_NULLABLE = frozenset({"started_at", "completed_at"})

_PAGE = "page AS (SELECT id FROM workflows WHERE {where} ORDER BY {order} OFFSET {skip} LIMIT {limit})"
_ITEMS = f"""
WITH {_PAGE}
SELECT id, name, description, status, total_steps, completed_steps, current_step, final_step_id, origin_instance,
    origin_zone, tenant, created_at, started_at, completed_at, cardinality(errors) > 0
FROM page JOIN workflows USING (id) ORDER BY {{order}}
"""  # noqa: S608 -- constants
# Sizes are known without reading what is large. The first workflow of a page is in it, however large.
_WORKFLOWS = f"""
WITH {_PAGE}, sized AS (
    SELECT id, row_number() OVER (ORDER BY {{order}}) AS place, octet_length(config) + s.bytes AS bytes
    FROM page JOIN workflows USING (id) CROSS JOIN LATERAL (
        SELECT coalesce(sum(octet_length(definition) + coalesce(octet_length(result), 0)
            + coalesce(octet_length(item), 0)), 0) AS bytes
        FROM steps WHERE workflow_id = workflows.id
    ) s
), cut AS (
    SELECT id, place, sum(bytes) OVER (ORDER BY place) AS total FROM sized
)
SELECT {columns.WORKFLOW} FROM workflows JOIN cut USING (id) WHERE total <= {{max_bytes}} OR place = 1 ORDER BY place
"""  # noqa: S608 -- constants


async def list_items(conn: Connection, which: WorkflowFilter, page: Page) -> tuple[list[ListedWorkflow], int, bool]:
    """Workflows without their steps, how many there are in all, and whether that number is exact."""
    where, values = _where(which)
    if which.is_counted:
        total, exact = await counts.total(conn, which), True
    else:
        total, exact = await counting.total_of(conn, sql.SQL("workflows WHERE {}").format(where), values)
    cursor = await conn.execute(_paged(_ITEMS, where, page), values)
    return [ListedWorkflow._make(_item(row)) for row in await cursor.fetchall()], total, exact


async def list_workflows(
    conn: Connection, which: WorkflowFilter, page: Page, max_bytes: int
) -> tuple[list[WorkflowSnapshot], int]:
    """Workflows with their steps, and how many there are in all; fewer where they are larger than `max_bytes`."""
    where, values = _where(which)
    cursor = await conn.execute(_paged(_WORKFLOWS, where, page, max_bytes=sql.Literal(max_bytes)), values)
    records = [columns.workflow(row) for row in await cursor.fetchall()]
    steps = await queries.steps_of(conn, [record.id for record in records])
    found = [WorkflowSnapshot(record, tuple(steps.get(record.id, ()))) for record in records]
    return found, await counts.total(conn, which)


def _item(row: tuple[Any, ...]) -> list[Any]:
    values = list(row)
    values[_STATUS] = WorkflowStatus(values[_STATUS])
    return values


_STATUS = ListedWorkflow._fields.index("status")


def _paged(query: str, where: sql.Composable, page: Page, **more: sql.Composable) -> sql.Composed:
    assert page.sort_by in _SORTS, "the contract lists what may be sorted by"
    # What is never null goes without NULLS LAST: an index then gives the order.
    order = sql.SQL("{column} {way}{nulls}, id {way}").format(
        column=sql.Identifier(page.sort_by),
        way=sql.SQL("DESC" if page.descending else "ASC"),
        nulls=sql.SQL(" NULLS LAST" if page.sort_by in _NULLABLE else ""),
    )
    return sql.SQL(query).format(
        where=where, order=order, skip=sql.Literal(page.skip), limit=sql.Literal(page.limit), **more
    )


def _where(which: WorkflowFilter) -> tuple[sql.Composable, dict[str, Any]]:
    conditions, values = counts.labels(which)
    for operator, name in ((">=", "created_after"), ("<", "created_before")):
        if (moment := getattr(which, name)) is not None:
            conditions.append(sql.SQL("created_at {} {}").format(sql.SQL(operator), sql.Placeholder(name)))
            values[name] = moment
    if which.search:
        values["search"] = which.search
        found: sql.Composable = sql.SQL("strpos(lower(name), lower(%(search)s)) > 0")
        ids = ids_beginning_with(which.search)
        if ids is not None:
            found = sql.SQL("({} OR id BETWEEN %(first)s AND %(last)s)").format(found)
            values["first"], values["last"] = ids
        conditions.append(found)
    if not which.include_deleted:
        conditions.append(sql.SQL("NOT is_deleted"))
    return sql.SQL(" AND ").join([sql.SQL("true"), *conditions]), values
