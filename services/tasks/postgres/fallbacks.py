"""Tasks that wait for a provider which takes no requests, and have another that may."""

from __future__ import annotations

from meshkit.catalog import PROVIDERS
from meshkit.db import Connection
from services.tasks.domain import RetryPolicy, TaskRecord, lane_of
from services.tasks.postgres import columns, counters, endings

# At a time; the next round takes the rest.
_MOST = 200

# Providers whose breaker is not closed, that asked to be left alone for longer than anybody waits, or whose limits have
# held work up for that long.
_SHUT = """
SELECT provider, key, coalesce(blocked_until > now() + %(bound)s * interval '1 second', false) AS long
FROM provider_gates WHERE state <> 'closed' OR blocked_until > now() + %(bound)s * interval '1 second'
    OR waiting_since <= now() - %(bound)s * interval '1 second'
ORDER BY provider, key
"""

# A request that the provider has taken is paid for: its task waits for the provider, and goes on with it.
FIND = f"""
SELECT {columns.SELECT_T} FROM tasks t
WHERE t.lane = ANY(%(lanes)b) AND t.status = 'PENDING' AND t.fallback = 'AVAILABLE'
    AND t.updated_at <= now() - %(bound)s * interval '1 second'
    AND NOT EXISTS (SELECT FROM service_requests r WHERE r.task_id = t.id AND r.state IN ('ACCEPTED', 'DONE')
        AND r.provider_type = t.provider_type)
ORDER BY t.lane, t.updated_at LIMIT {_MOST} FOR UPDATE SKIP LOCKED
"""  # noqa: S608 -- fixed names


async def fall_back_waiting(conn: Connection, policy: RetryPolicy) -> list[TaskRecord]:
    """Have fallbacks take over what has waited too long, or would, for a provider that takes no requests.

    Returns:
        The tasks, waiting for their fallbacks.
    """
    shut = await (await conn.execute(_SHUT, {"bound": policy.fallback_seconds})).fetchall()
    records: list[TaskRecord] = []
    changes: list[counters.CounterChange] = []
    for provider, key, long in shut:
        lanes = [lane_of(task_type, provider, key=key) for task_type in PROVIDERS[provider].tasks]
        bound = 0.0 if long else policy.fallback_seconds
        cursor = await conn.execute(FIND, {"lanes": lanes, "bound": bound})
        for row in await cursor.fetchall():
            before = columns.record(row)
            after = await endings.fall_back(conn, before, f"{provider} takes no requests now")
            if after is None:
                continue
            records.append(after)
            changes += [counters.leaving(before)] if counters.waits(before) else []
            changes.append(counters.entering(after))
    await counters.apply(conn, changes)
    return records
