"""What was used by day, and what lay in storage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any
from uuid import UUID

from psycopg import sql

from meshkit import counting
from meshkit.db import Connection, Database
from services.tasks.usage.domain import CPU, StoredFigures, UsageFigures, UsageQuery, total_of

_FOLD_LOCK = 0x7573616765  # any number of its own
_FOLD = """
WITH taken AS (DELETE FROM usage_changes RETURNING *)
INSERT INTO usage_days AS u
SELECT day, tenant, task_type, provider_type, model, device, currency, sum(attempts), sum(failed_attempts),
    sum(run_seconds), sum(device_seconds), sum(calls), sum(failed_calls), sum(call_seconds), sum(cost)
FROM taken GROUP BY 1, 2, 3, 4, 5, 6, 7
ON CONFLICT (day, tenant, task_type, provider_type, model, device, currency) DO UPDATE SET
    attempts = u.attempts + excluded.attempts, failed_attempts = u.failed_attempts + excluded.failed_attempts,
    run_seconds = u.run_seconds + excluded.run_seconds, device_seconds = u.device_seconds + excluded.device_seconds,
    calls = u.calls + excluded.calls, failed_calls = u.failed_calls + excluded.failed_calls,
    call_seconds = u.call_seconds + excluded.call_seconds, cost = u.cost + excluded.cost
"""

# Days and notes are read in one statement, and so of one moment.
_USED = sql.SQL("""
WITH used AS (SELECT * FROM usage_days UNION ALL SELECT * FROM usage_changes)
SELECT {by}, currency, device = {cpu}, device = '', sum(attempts)::bigint, sum(failed_attempts)::bigint,
    sum(run_seconds), sum(device_seconds), sum(calls)::bigint, sum(failed_calls)::bigint, sum(call_seconds), sum(cost)
FROM used WHERE day BETWEEN %(first)s AND %(last)s AND {where}
GROUP BY {groups}, currency, device = {cpu}, device = '' LIMIT {limit}
""")
_STORED = sql.SQL("""
SELECT {by}, sum(objects)::bigint, sum(bytes)::bigint FROM (
    SELECT day, tenant, task_type, '' AS provider_type, model, '' AS device, objects, bytes FROM stored_days) s
WHERE {days} AND {where} GROUP BY {groups} LIMIT {limit}
""")
_LAST_DAY = sql.SQL("day = (SELECT max(day) FROM stored_days WHERE day BETWEEN %(first)s AND %(last)s)")
_EVERY_DAY = sql.SQL("day BETWEEN %(first)s AND %(last)s")

_CLAIM = """
INSERT INTO stored_measures AS m (tenant, measured_at) VALUES (%(tenant)s, now())
ON CONFLICT (tenant) DO UPDATE SET measured_at = now()
WHERE m.measured_at < now() - %(age)s * interval '1 second' OR m.measured_at < date_trunc('day', now(), 'UTC')
RETURNING tenant
"""
# The attempt whose result the task has is the last one that completed.
_MODELS = """
SELECT DISTINCT ON (task_id) task_id, model FROM attempts
WHERE task_id = ANY(%b) AND outcome = 'COMPLETED' ORDER BY task_id, attempt DESC
"""


class PostgresUsage:
    """Implements `services.tasks.usage.store.UsageStore`.

    Args:
        db: The service's database, migrated.
    """

    def __init__(self, db: Database) -> None:
        self._db = db

    async def today(self) -> date:
        """Return the day in UTC, by the database's clock."""
        async with self._db.connection() as conn:
            row = await (await conn.execute("SELECT (now() AT TIME ZONE 'UTC')::date")).fetchone()
        assert row is not None
        day: date = row[0]
        return day

    async def used(self, query: UsageQuery, most: int) -> tuple[Sequence[UsageFigures], UsageFigures] | None:
        """Sum up what was used, by row and in all; None where there are more rows than `most`."""
        rows: dict[tuple[str, ...], UsageFigures] = {}
        by = len(query.by)
        # Several lines of a row differ in their currency and the kind of their device.
        limit = 8 * (most + 1)
        async with self._db.transaction() as conn:
            await conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            lines = await self._lines(conn, _USED, query, limit)
            stored = [] if query.provider_type is not None else await self._lines(conn, _STORED, query, limit)
            stored_now = stored
            if "day" in query.by and stored:
                last = max(line[query.by.index("day")] for line in stored)
                stored_now = [line for line in stored if line[query.by.index("day")] == last]
        for line in lines:
            figures = _row(rows, query, line)
            currency, on_cpu, on_none, *sums = line[by:]
            _add(figures, sums, currency, on_cpu=on_cpu, on_none=on_none)
        for line in stored:
            figures = _row(rows, query, line)
            figures.objects += line[by]
            figures.bytes += line[by + 1]
        if len(rows) > most or max(len(lines), len(stored)) == limit:
            return None
        ordered = [rows[key] for key in sorted(rows)]
        told = {"objects": sum(line[by] for line in stored_now), "bytes": sum(line[by + 1] for line in stored_now)}
        return ordered, total_of(ordered, told)

    async def fold(self) -> None:
        """Add what was noted of changes to the days; another replica that is at it does it for this one."""
        await counting.fold(self._db, _FOLD_LOCK, _FOLD)

    async def claim(self, tenant: str, age_seconds: float) -> bool:
        """Whether this replica is to measure a tenant's storage: nobody has within a time, or on this day."""
        async with self._db.transaction() as conn:
            cursor = await conn.execute(_CLAIM, {"tenant": tenant, "age": age_seconds})
            return await cursor.fetchone() is not None

    async def measured(self) -> Sequence[str]:
        """Return the tenants whose storage was ever measured."""
        async with self._db.connection() as conn:
            cursor = await conn.execute("SELECT tenant FROM stored_measures ORDER BY tenant")
            return [row[0] for row in await cursor.fetchall()]

    async def models(self, task_ids: Sequence[UUID]) -> Mapping[UUID, str]:
        """Return the models that made what tasks have stored, where they are known."""
        async with self._db.connection() as conn:
            cursor = await conn.execute(_MODELS, (list(task_ids),))
            return dict(await cursor.fetchall())

    async def write_stored(self, tenant: str, figures: Sequence[StoredFigures]) -> None:
        """Write what a tenant stores today, in place of what was written before."""
        async with self._db.transaction() as conn:
            await conn.execute(
                "DELETE FROM stored_days WHERE tenant = %s AND day = (now() AT TIME ZONE 'UTC')::date", (tenant,)
            )
            for one in figures:
                await conn.execute(
                    "INSERT INTO stored_days (day, tenant, task_type, model, objects, bytes) "
                    "VALUES ((now() AT TIME ZONE 'UTC')::date, %s, %s, %s, %s, %s)",
                    (tenant, *one),
                )

    @staticmethod
    async def _lines(conn: Connection, statement: sql.SQL, query: UsageQuery, limit: int) -> list[Any]:
        conditions: list[sql.Composable] = [sql.SQL("true")]
        values: dict[str, Any] = {"first": query.first, "last": query.last}
        for name in ("tenant", "task_type", "provider_type", "model"):
            if (value := getattr(query, name)) is not None:
                conditions.append(sql.SQL("{} = {}").format(sql.Identifier(name), sql.Placeholder(name)))
                values[name] = value
        columns = sql.SQL(", ").join(
            sql.SQL("day::text") if name == "day" else sql.Identifier(name) for name in query.by
        )
        composed = statement.format(
            by=columns,
            groups=columns,
            cpu=sql.Literal(CPU),
            days=_EVERY_DAY if "day" in query.by else _LAST_DAY,
            where=sql.SQL(" AND ").join(conditions),
            limit=sql.Literal(limit),
        )
        return list(await (await conn.execute(composed, values)).fetchall())


def _row(rows: dict[tuple[str, ...], UsageFigures], query: UsageQuery, line: Sequence[Any]) -> UsageFigures:
    key = tuple(line[: len(query.by)])
    found = rows.get(key)
    if found is None:
        found = rows[key] = UsageFigures(dict(zip(query.by, key, strict=True)))
    return found


def _add(figures: UsageFigures, sums: Sequence[Any], currency: str, *, on_cpu: bool, on_none: bool) -> None:
    attempts, failed, run, device, calls, failed_calls, call_seconds, cost = sums
    figures.attempts += attempts
    figures.failed_attempts += failed
    figures.run_seconds += run
    figures.device_seconds += device
    if on_cpu:
        figures.cpu_seconds += device
    elif not on_none:
        figures.gpu_seconds += device
    figures.calls += calls
    figures.failed_calls += failed_calls
    figures.call_seconds += call_seconds
    if currency:
        figures.costs[currency] = figures.costs.get(currency, 0.0) + cost
