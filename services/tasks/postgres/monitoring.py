"""Lists, counters and figures for operators.

Triggers note each change of a task in its transaction; `fold` adds the notes up. A reader adds what is not folded yet
in the same statement, so that its figures are of one moment.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import fields, replace
from datetime import datetime
from typing import Any

from psycopg import sql

from meshkit import counting
from meshkit.db import Connection, Database
from services.tasks.devices import GpuReading, WarmModel
from services.tasks.domain import WorkerLoad
from services.tasks.monitoring.celery import REVOKED_HOURS, REVOKED_MOST, DelayedTask, HeldTask, Roster, RosterWorker
from services.tasks.monitoring.domain import (
    RATE_MINUTES,
    TIMED_MINUTES,
    TIMED_TASKS,
    CompletionTimes,
    Fleet,
    ListedRow,
    ListedTask,
    QueueFigures,
    TaskCounts,
    TaskQuery,
    WorkerFigures,
    WorkFigures,
)
from services.tasks.postgres import listing

_DURATION = "completed_at - started_at"
_NULLABLE = frozenset({"duration_ms", "started_at", "completed_at"})
_COLUMNS = (
    "id, task_type, provider_type, status, progress, origin_instance, origin_zone, tenant, created_at, started_at, "
    "completed_at, cardinality(errors) > 0"
)
# Of all tenants, the indexes by filter do not give the order: so many that match are sorted.
_FEW = 5_000
_LISTED = sql.SQL("kind = 'TASK' AND NOT is_deleted")

_COUNTED = sql.SQL("""
WITH counted AS (
    SELECT tenant, origin_instance, origin_zone, task_type, provider_type, status, tasks FROM task_counts UNION ALL
    SELECT tenant, origin_instance, origin_zone, task_type, provider_type, status, tasks FROM task_changes
    WHERE status IS NOT NULL UNION ALL
    SELECT tenant, origin_instance, origin_zone, task_type, provider_type, status_before, -tasks FROM task_changes
    WHERE status_before IS NOT NULL
)
SELECT {figures} FROM counted WHERE {where}
""")
_TOTAL = sql.SQL("coalesce(sum(tasks), 0)::bigint")
_BY_DIMENSION = sql.SQL("status, provider_type, task_type, sum(tasks)::bigint")
_DIMENSIONS = sql.SQL(" GROUP BY status, provider_type, task_type")

# Whole minutes are counted; of the minute in which the time begins, the rows themselves.
_CREATED = sql.SQL("""
WITH edge AS (SELECT date_trunc('minute', now() - %(span)s * interval '1 hour') + interval '1 minute' AS minute),
created AS (
    SELECT created_minute, tenant, origin_instance, origin_zone, tasks FROM task_creations
    WHERE created_minute >= (SELECT minute FROM edge)
    UNION ALL SELECT created_minute, tenant, origin_instance, origin_zone,
        CASE WHEN status IS NULL THEN -tasks ELSE tasks END FROM task_changes
    WHERE created_minute >= (SELECT minute FROM edge) AND (status IS NULL) <> (status_before IS NULL)
)
SELECT coalesce((SELECT sum(tasks) FROM created WHERE {where}), 0)::bigint + (SELECT count(*) FROM {rows})
""")

_AT_EDGE = sql.SQL("created_at >= now() - %(span)s * interval '1 hour' AND created_at < (SELECT minute FROM edge)")

_FLOW = """
WITH flow AS (
    SELECT minute, queue_name, tenant, worker, started, waited_ms, completed FROM queue_flow UNION ALL
    SELECT minute, queue_name, tenant, worker, started, waited_ms, completed FROM task_changes WHERE minute IS NOT NULL
)
"""
_QUEUE_FLOW = f"""{_FLOW}
SELECT queue_name, sum(started)::bigint, sum(waited_ms), sum(completed)::bigint FROM flow
WHERE minute >= now() - interval '1 hour' AND (%(tenant)s::text IS NULL OR tenant = %(tenant)s) GROUP BY queue_name
"""  # noqa: S608 -- constants
_PENDING = """
SELECT queue, sum(pending)::bigint FROM queue_tenants
WHERE pending > 0 AND (%(tenant)s::text IS NULL OR tenant = %(tenant)s) GROUP BY queue
"""
_DELAYED = """
SELECT queue_name, count(*) FROM tasks
WHERE not_before IS NOT NULL AND (%(tenant)s::text IS NULL OR tenant = %(tenant)s) GROUP BY queue_name
"""
# Attempts of a session in the order in which they were leased: it runs as many as it has slots.
_HELD = """
SELECT t.lease_session, t.id, t.kind, t.task_type, t.queue_name, t.tenant, t.priority, t.attempt, t.leased_at,
    row_number() OVER (PARTITION BY t.lease_session ORDER BY t.lease_sequence, t.leased_at, t.id) <= s.slots AS running
FROM tasks t JOIN sessions s ON s.id = t.lease_session WHERE t.lease_session IS NOT NULL
"""
_NAMED = "CASE WHEN kind = 'TASK' THEN task_type ELSE kind END"
_HOLDINGS = f"SELECT lease_session, id, {_NAMED}, queue_name, priority, attempt, leased_at, running FROM ({_HELD}) held"  # noqa: S608 -- constants
_DELAYED_TASKS = f"""
SELECT id, {_NAMED}, queue_name, priority, attempt, executor_instance, not_before FROM tasks
WHERE not_before IS NOT NULL ORDER BY not_before LIMIT 1000
"""  # noqa: S608 -- constants
_CANCELLED = f"""
SELECT id FROM tasks
WHERE status = 'CANCELLED' AND kind = 'TASK' AND NOT is_deleted
    AND completed_at > now() - interval '{REVOKED_HOURS} hours'
ORDER BY created_at DESC LIMIT {REVOKED_MOST}
"""  # noqa: S608 -- constants
_LEASED = f"""
SELECT queue_name, count(*) FILTER (WHERE running), count(*) FILTER (WHERE NOT running) FROM ({_HELD}) held
WHERE %(tenant)s::text IS NULL OR tenant = %(tenant)s GROUP BY queue_name
"""  # noqa: S608 -- constants
_ALIVE = "closed_at IS NULL AND expires_at > now()"
_SERVING = f"SELECT q.name, count(*) FROM sessions, unnest(queues) AS q (name) WHERE {_ALIVE} GROUP BY q.name"  # noqa: S608 -- constants
_WORKERS = f"""{_FLOW}
SELECT s.name, s.queues, s.slots, s.draining, s.cordoned IS NOT NULL,
    (SELECT count(*) FROM tasks t WHERE t.lease_session = s.id),
    coalesce((SELECT sum(f.completed) FROM flow f
        WHERE f.worker = s.name AND f.minute > now() - interval '{RATE_MINUTES + 1} minutes'), 0)::bigint,
    s.load
FROM sessions s WHERE {_ALIVE} ORDER BY s.name, s.opened_at
"""  # noqa: S608 -- constants

_ROSTER = f"SELECT id, name, queues, slots, opened_at, sequence, load FROM sessions WHERE {_ALIVE} ORDER BY name"  # noqa: S608 -- constants

_TOLD = f"SELECT name, load FROM sessions WHERE {_ALIVE} AND load IS NOT NULL ORDER BY name, opened_at"  # noqa: S608 -- constants
# No index is by the time of completion, which every task would pay for: what is read is bounded by the newest rows.
_TIMES = f"""
SELECT avg(t.ms)::float8, percentile_cont(0.95) WITHIN GROUP (ORDER BY t.ms),
    percentile_cont(0.99) WITHIN GROUP (ORDER BY t.ms)
FROM (
    SELECT extract(epoch FROM n.completed_at - n.created_at)::float8 * 1000 AS ms FROM (
        SELECT created_at, completed_at, status, kind FROM tasks WHERE completed_at IS NOT NULL
        ORDER BY created_at DESC, id DESC LIMIT {TIMED_TASKS}
    ) n
    WHERE n.status = 'COMPLETED' AND n.kind = 'TASK' AND n.completed_at > now() - interval '{TIMED_MINUTES} minutes'
) t
"""  # noqa: S608 -- constants

_LOAD = tuple(one.name for one in fields(WorkerLoad))

_FOLD_LOCK = 0x6D6F6E69746F72  # any number of its own
_FOLD = """
WITH taken AS (DELETE FROM task_changes RETURNING *),
places AS (
    SELECT t.tenant, t.origin_instance, t.origin_zone, t.task_type, t.provider_type, t.created_minute, p.status, p.tasks
    FROM taken t CROSS JOIN LATERAL (VALUES (t.status, t.tasks), (t.status_before, -t.tasks)) p (status, tasks)
    WHERE p.status IS NOT NULL
),
minutes AS (
    INSERT INTO task_creations AS c (created_minute, tenant, origin_instance, origin_zone, tasks)
    SELECT created_minute, tenant, origin_instance, origin_zone, sum(tasks) FROM places
    WHERE created_minute > now() - interval '25 hours'
    GROUP BY 1, 2, 3, 4 HAVING sum(tasks) <> 0
    ON CONFLICT (created_minute, tenant, origin_instance, origin_zone) DO UPDATE SET tasks = c.tasks + excluded.tasks
),
flow AS (
    INSERT INTO queue_flow AS f
    SELECT minute, queue_name, tenant, worker, sum(started), sum(waited_ms), sum(completed) FROM taken
    WHERE minute IS NOT NULL GROUP BY 1, 2, 3, 4
    ON CONFLICT (minute, queue_name, tenant, worker) DO UPDATE SET
        started = f.started + excluded.started, waited_ms = f.waited_ms + excluded.waited_ms,
        completed = f.completed + excluded.completed
)
INSERT INTO task_counts AS c
SELECT tenant, origin_instance, origin_zone, task_type, provider_type, status, sum(tasks) FROM places
GROUP BY 1, 2, 3, 4, 5, 6 HAVING sum(tasks) <> 0
ON CONFLICT (tenant, origin_instance, origin_zone, task_type, provider_type, status)
DO UPDATE SET tasks = c.tasks + excluded.tasks
"""
_FORGET = (
    "DELETE FROM task_counts WHERE tasks = 0",
    "DELETE FROM task_creations WHERE tasks = 0 OR created_minute < now() - interval '25 hours'",
    "DELETE FROM queue_flow WHERE minute < now() - interval '2 hours'",
)


class PostgresMonitoring:
    """Implements `services.tasks.monitoring.store.MonitoringStore`.

    Args:
        db: The service's database, migrated.
    """

    def __init__(self, db: Database) -> None:
        self._db = db

    async def list_tasks(self, query: TaskQuery) -> tuple[Sequence[ListedTask], int, bool]:
        """Tasks of a page, how many there are in all, and whether that number is exact."""
        where, values = _rows(query)
        async with self._db.connection() as conn:
            total, exact = await self._total(conn, query)
            page = sql.SQL("SELECT {columns} FROM {source} ORDER BY {order} OFFSET {skip} LIMIT {limit}").format(
                columns=sql.SQL(_COLUMNS),
                source=_source(query, where, total),
                order=_order(query),
                skip=sql.Literal(query.skip),
                limit=sql.Literal(query.limit),
            )
            cursor = await conn.execute(page, values)
            found = [ListedTask._make(row) for row in await cursor.fetchall()]
        return found, total, exact

    async def list_rows(self, query: TaskQuery) -> Sequence[ListedRow]:
        """Tasks in short, newest first, after the query's cursor."""
        query = replace(query, sort_by="created_at", descending=True)
        where, values = _rows(query)
        async with self._db.connection() as conn:
            total, _ = await self._total(conn, query)
            page = sql.SQL(
                "SELECT id, task_type, status, progress, created_at FROM {source} ORDER BY {order} LIMIT {limit}"
            ).format(source=_source(query, where, total), order=_order(query), limit=sql.Literal(query.limit))
            cursor = await conn.execute(page, values)
            return [ListedRow._make(row) for row in await cursor.fetchall()]

    async def counts(self, tenant: str | None, origin_instance: str | None, origin_zone: str | None) -> TaskCounts:
        """Count tasks; of all tenants where none is named."""
        which = TaskQuery(tenant=tenant, origin_instance=origin_instance, origin_zone=origin_zone)
        where, values = _counters(which)
        rows, row_values = _rows(which)
        at_edge = _source(which, sql.SQL("{} AND {}").format(rows, _AT_EDGE))
        created = _CREATED.format(where=where, rows=at_edge)
        by_status, by_provider, by_type = Counter[str](), Counter[str](), Counter[str]()
        async with self._snapshot() as conn:
            cursor = await conn.execute(_COUNTED.format(figures=_BY_DIMENSION, where=where) + _DIMENSIONS, values)
            for status, provider, task_type, tasks in await cursor.fetchall():
                by_status[status] += tasks
                by_provider[provider] += tasks
                by_type[task_type] += tasks
            spans = [
                (await (await conn.execute(created, {**values, **row_values, "span": hours})).fetchone() or (0,))[0]
                for hours in (1, 24)
            ]
        return TaskCounts(
            total=by_status.total(),
            by_status=by_status,
            by_provider=+by_provider,
            by_task_type=+by_type,
            last_hour=spans[0],
            last_day=spans[1],
        )

    async def queues(self, names: Collection[str], tenant: str | None) -> tuple[Sequence[QueueFigures], datetime]:
        """Tell of queues what waits and runs there, and when this was so."""
        values = {"tenant": tenant}
        async with self._snapshot() as conn:
            flow = {row[0]: row[1:] for row in await (await conn.execute(_QUEUE_FLOW, values)).fetchall()}
            pending = Counter[str](dict(await (await conn.execute(_PENDING, values)).fetchall()))
            pending.update(dict(await (await conn.execute(_DELAYED, values)).fetchall()))
            leased = {row[0]: row[1:] for row in await (await conn.execute(_LEASED, values)).fetchall()}
            serving = dict(await (await conn.execute(_SERVING)).fetchall())
            at = await _now(conn)
        figures = []
        for name in sorted(names):
            started, waited, completed = flow.get(name, (0, 0.0, 0))
            active, reserved = leased.get(name, (0, 0))
            figures.append(
                QueueFigures(
                    name,
                    pending=pending[name],
                    workers=serving.get(name, 0),
                    active=active,
                    reserved=reserved,
                    wait_ms=waited / started if started else None,
                    completed=completed,
                )
            )
        return figures, at

    async def fleet(self) -> Fleet:
        """Return the workers that are alive."""
        async with self._db.connection() as conn:
            cursor = await conn.execute(_WORKERS)
            workers = [WorkerFigures._make((*row[:-1], _load(row[-1]))) for row in await cursor.fetchall()]
            return Fleet(workers, await _now(conn))

    async def roster(self) -> Roster:
        """Return the workers that are alive, with what each holds and what waits for a time."""
        async with self._snapshot() as conn:
            workers = [
                RosterWorker._make((*row[:-1], _load(row[-1])))
                for row in await (await conn.execute(_ROSTER)).fetchall()
            ]
            held = [HeldTask._make(row) for row in await (await conn.execute(_HOLDINGS)).fetchall()]
            delayed = [DelayedTask._make(row) for row in await (await conn.execute(_DELAYED_TASKS)).fetchall()]
            cancelled = [row[0] for row in await (await conn.execute(_CANCELLED)).fetchall()]
            return Roster(await _now(conn), workers, held, delayed, cancelled)

    async def work_figures(self, names: Collection[str]) -> WorkFigures:
        """Tell how fast tasks are done, what waits, and what workers tell of themselves."""
        async with self._snapshot() as conn:
            times = await (await conn.execute(_TIMES)).fetchone()
            pending = Counter[str](dict(await (await conn.execute(_PENDING, {"tenant": None})).fetchall()))
            pending.update(dict(await (await conn.execute(_DELAYED, {"tenant": None})).fetchall()))
            told = await (await conn.execute(_TOLD)).fetchall()
        return WorkFigures(
            CompletionTimes._make(times) if times is not None and times[0] is not None else None,
            {name: pending[name] for name in sorted(names)},
            [(name, load) for name, stored in told if (load := _load(stored)) is not None],
        )

    async def fold(self) -> None:
        """Add what was noted of changes to the counters; another replica that is at it does it for this one."""
        await counting.fold(self._db, _FOLD_LOCK, _FOLD, *_FORGET)

    @asynccontextmanager
    async def _snapshot(self) -> AsyncIterator[Connection]:
        """Return a connection whose statements see the rows of one moment."""
        async with self._db.transaction() as conn:
            await conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            yield conn

    async def _total(self, conn: Connection, query: TaskQuery) -> tuple[int, bool]:
        if query.is_counted:
            where, values = _counters(query)
            row = await (await conn.execute(_COUNTED.format(figures=_TOTAL, where=where), values)).fetchone()
            return (row[0] if row is not None else 0), True
        where, values = _rows(query)
        plain = sql.SQL("tasks WHERE {}").format(where)
        return await counting.total_of(conn, _source(query, where), values, plain)


async def _now(conn: Connection) -> datetime:
    row = await (await conn.execute("SELECT now()")).fetchone()
    assert row is not None
    moment: datetime = row[0]
    return moment


def _load(stored: Any) -> WorkerLoad | None:
    # A worker's replica of another release may have told more.
    if stored is None:
        return None
    load = WorkerLoad(**{name: stored[name] for name in _LOAD if name in stored})
    return replace(
        load,
        models=[WarmModel(**_known(WarmModel, one)) for one in load.models],
        gpus=[GpuReading(**_known(GpuReading, one)) for one in load.gpus],
    )


def _known(kind: type[WarmModel | GpuReading], stored: Any) -> dict[str, Any]:
    return {one.name: stored[one.name] for one in fields(kind) if one.name in stored}


def _equalities(query: TaskQuery, zone: str) -> tuple[list[sql.Composable], dict[str, Any]]:
    conditions: list[sql.Composable] = []
    values: dict[str, Any] = {}
    for name in ("tenant", *listing.FILTERS):
        value = getattr(query, name)
        if value is not None:
            column = sql.SQL(zone) if name == "origin_zone" else sql.Identifier(name)
            conditions.append(sql.SQL("{} = {}").format(column, sql.Placeholder(name)))
            values[name] = value
    return conditions, values


def _source(query: TaskQuery, where: sql.Composable, total: int | None = None) -> sql.Composable:
    """Return where to look for tasks, of which there are so many in all; where that is unknown, they are counted."""
    is_filtered = any(getattr(query, name) is not None for name in listing.FILTERS)
    is_of_all = query.tenant is None and query.ids is None  # identifiers are found by their own index
    is_rare = is_of_all and is_filtered and query.is_counted and total is not None and total <= _FEW
    order = _order(query) if query.sort_by == "created_at" and total is not None else None
    return listing.source(where, order, is_parted=is_filtered or is_of_all, status=query.status, is_rare=is_rare)


def _order(query: TaskQuery) -> sql.Composable:
    # What is never null goes without NULLS LAST: an index then gives the order.
    return sql.SQL("{column} {way}{nulls}, id {way}").format(
        column=sql.SQL(_DURATION) if query.sort_by == "duration_ms" else sql.Identifier(query.sort_by),
        way=sql.SQL("DESC" if query.descending else "ASC"),
        nulls=sql.SQL(" NULLS LAST" if query.sort_by in _NULLABLE else ""),
    )


def _counters(query: TaskQuery) -> tuple[sql.Composable, dict[str, Any]]:
    conditions, values = _equalities(query, "origin_zone")
    return sql.SQL(" AND ").join([sql.SQL("true"), *conditions]), values


def _rows(query: TaskQuery) -> tuple[sql.Composable, dict[str, Any]]:
    conditions, values = _equalities(query, "origin_zone")
    for operator, name in ((">=", "created_after"), ("<", "created_before")):
        if (moment := getattr(query, name)) is not None:
            conditions.append(sql.SQL("created_at {} {}").format(sql.SQL(operator), sql.Placeholder(name)))
            values[name] = moment
    if query.ids is not None:
        conditions.append(sql.SQL("id BETWEEN {} AND {}").format(sql.Placeholder("first"), sql.Placeholder("last")))
        values["first"], values["last"] = query.ids
    if query.after is not None:
        conditions.append(
            sql.SQL("(created_at, id) < ({}, {})").format(sql.Placeholder("after_moment"), sql.Placeholder("after_id"))
        )
        values["after_moment"], values["after_id"] = query.after
    return sql.SQL(" AND ").join([_LISTED, *conditions]), values
