"""How many rows there are: counters that notes of changes are folded into, and totals of what no counter has.

Who counts by notes has triggers write a row for each change, in the transaction of the change. `fold` adds the notes to
the counters; a reader adds what is not folded yet, in the same statement.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from psycopg import sql

from meshkit.db import Connection, Database

# Totals of what no counter has are exact up to here, and the planner's estimate beyond.
EXACT_TOTAL = 10_000


async def fold(db: Database, lock: int, *statements: str) -> None:
    """Add what was noted of changes to counters; another replica that is at it does it for this one.

    Args:
        db: The service's database.
        lock: Number of an advisory lock of these counters alone.
        statements: What adds the notes up and deletes them, and what follows.
    """
    async with db.transaction() as conn:
        cursor = await conn.execute("SELECT pg_try_advisory_xact_lock(%s)", (lock,))
        if (await cursor.fetchone() or (False,))[0]:
            for statement in statements:
                await conn.execute(statement)


async def total_of(
    conn: Connection, source: sql.Composable, values: Mapping[str, Any], plain: sql.Composable | None = None
) -> tuple[int, bool]:
    """Return how many rows there are, and whether that number is exact.

    Args:
        conn: A connection.
        source: What follows FROM.
        values: Values of its placeholders.
        plain: What the planner is asked to estimate in its place.
    """
    counted = sql.SQL("SELECT count(*) FROM (SELECT FROM {} LIMIT {}) found").format(
        source, sql.Literal(EXACT_TOTAL + 1)
    )
    row = await (await conn.execute(counted, values)).fetchone()
    total = row[0] if row is not None else 0
    if total <= EXACT_TOTAL:
        return total, True
    explained = sql.SQL("EXPLAIN (FORMAT JSON) SELECT FROM {}").format(plain or source)
    plan = await (await conn.execute(explained, values)).fetchone()
    assert plan is not None
    told: Any = json.loads(plan[0]) if isinstance(plan[0], str) else plan[0]
    return max(total, int(told[0]["Plan"]["Plan Rows"])), False
