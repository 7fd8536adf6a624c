"""Waiting tasks and virtual time of tenants: kept in the transaction of every change, last in it.

A tenant's row is locked before its lanes' rows, and tenants are locked in order, so two transactions never wait for
each other here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from meshkit.db import Connection
from services.tasks.catalog import JOB_QUEUES, LOCAL, QUEUES
from services.tasks.domain import TaskRecord, lane_of


class CounterChange(NamedTuple):
    """What a change of state does to its tenant's place in a queue.

    Attributes:
        pending: Tasks more that wait, or fewer.
        charge: Virtual time that passes for the tenant.
    """

    queue: str
    tenant: str
    lane: str
    pending: int = 0
    charge: float = 0.0


def waits(record: TaskRecord) -> bool:
    """Whether a task counts as waiting: a delayed retry does not, until its time has come."""
    return record.status == "PENDING" and record.not_before is None


def entering(record: TaskRecord) -> CounterChange:
    """Return the change for a task that begins to wait."""
    return CounterChange(record.queue_name, record.tenant, record.lane, pending=1)


def leaving(record: TaskRecord) -> CounterChange:
    """Return the change for a task that waits no more."""
    return CounterChange(record.queue_name, record.tenant, record.lane, pending=-1)


# Both tables are written by upserts alone: an upsert finds its row by the key, whatever statistics the planner has.
# Rows unnested in a list of columns keep their order, and so do the locks.

# A tenant without waiting work starts again at the queue's virtual time, or at its own where that is later. The column
# `charged` carries the charge into DO UPDATE.
_TENANTS = """
INSERT INTO queue_tenants AS t (queue, tenant, virtual_time, pending, charged)
SELECT c.queue, c.tenant, coalesce((SELECT q.virtual_time FROM queues q WHERE q.name = c.queue), 0), c.pending, c.charge
FROM (SELECT unnest(%b::text[]) AS queue, unnest(%b::text[]) AS tenant, unnest(%b::bigint[]) AS pending,
    unnest(%b::float8[]) AS charge) c
ON CONFLICT (queue, tenant) DO UPDATE SET
    virtual_time = excluded.charged + CASE WHEN t.pending <= 0 AND excluded.pending > 0
        THEN greatest(t.virtual_time, excluded.virtual_time) ELSE t.virtual_time END,
    pending = greatest(0, t.pending + excluded.pending),
    charged = t.charged + excluded.charged
"""

# Lanes that work enters, after their tenants.
_ENTER = """
INSERT INTO queue_lanes AS l (queue, tenant, lane, virtual_time, pending)
SELECT c.queue, c.tenant, c.lane,
    (SELECT t.virtual_time FROM queue_tenants t WHERE t.queue = c.queue AND t.tenant = c.tenant), c.pending
FROM (SELECT unnest(%b::text[]) AS queue, unnest(%b::text[]) AS tenant, unnest(%b::text[]) AS lane,
    unnest(%b::bigint[]) AS pending) c
ON CONFLICT (queue, tenant, lane) DO UPDATE SET
    virtual_time = excluded.virtual_time, pending = l.pending + excluded.pending
"""

# Where work leaves or a tenant's clock moves, all of its lanes with work follow that clock. IS TRUE keeps the planner
# from using the test for work as the condition of `queue_lanes_next`: it would read the whole queue by that index.
_FOLLOW = """
INSERT INTO queue_lanes AS l (queue, tenant, lane, virtual_time, pending)
SELECT w.queue, w.tenant, o.lane,
    (SELECT t.virtual_time FROM queue_tenants t WHERE t.queue = w.queue AND t.tenant = w.tenant), coalesce(
        (SELECT c.pending FROM (SELECT unnest(%(queues)b::text[]) AS queue, unnest(%(tenants)b::text[]) AS tenant,
            unnest(%(lanes)b::text[]) AS lane, unnest(%(pending)b::bigint[]) AS pending) c
        WHERE c.queue = w.queue AND c.tenant = w.tenant AND c.lane = o.lane), 0)
FROM (SELECT unnest(%(of)b::text[]) AS queue, unnest(%(who)b::text[]) AS tenant) w
CROSS JOIN LATERAL (
    SELECT l.lane FROM queue_lanes l
    WHERE l.queue = w.queue AND l.tenant = w.tenant AND (l.pending > 0) IS TRUE OFFSET 0
) o
ON CONFLICT (queue, tenant, lane) DO UPDATE SET
    virtual_time = excluded.virtual_time, pending = greatest(0, l.pending + excluded.pending)
"""

# A counter that is too high would keep its tenant among the candidates: count again what the index holds.
_RECOUNT_LANES = """
UPDATE queue_lanes l SET pending = (
    SELECT count(*) FROM tasks t WHERE t.queue_name = l.queue AND t.tenant = l.tenant AND t.lane = l.lane
        AND t.status = 'PENDING' AND t.not_before IS NULL)
WHERE l.queue = %s AND l.tenant = ANY(%b)
"""
_RECOUNT_TENANTS = """
UPDATE queue_tenants q SET pending = (
    SELECT coalesce(sum(l.pending), 0) FROM queue_lanes l WHERE l.queue = q.queue AND l.tenant = q.tenant)
WHERE q.queue = %s AND q.tenant = ANY(%b)
"""


async def apply(conn: Connection, changes: Iterable[CounterChange]) -> None:
    """Apply the changes of a transaction, summed by lane.

    Args:
        conn: A connection in the transaction of the changes themselves.
        changes: Any number, for any tenants.
    """
    lanes: dict[tuple[str, str, str], int] = {}
    tenants: dict[tuple[str, str], tuple[int, float]] = {}
    for change in changes:
        lane = (change.queue, change.tenant, change.lane)
        lanes[lane] = lanes.get(lane, 0) + change.pending
        pending, charge = tenants.get(lane[:2], (0, 0.0))
        tenants[lane[:2]] = (pending + change.pending, charge + change.charge)
    entered = [(*lane, pending) for lane, pending in sorted(lanes.items()) if pending > 0]
    left = [(*lane, pending) for lane, pending in sorted(lanes.items()) if pending < 0]
    moved = {lane[:2] for lane in left} | {tenant for tenant, (_, charge) in tenants.items() if charge}
    touched = moved | {lane[:2] for lane in entered}
    if not touched:
        return
    await conn.execute(_TENANTS, _arrays([(*tenant, *tenants[tenant]) for tenant in sorted(touched)]))
    if entered:
        await conn.execute(_ENTER, _arrays(entered))
    if moved:
        names = ("queues", "tenants", "lanes", "pending", "of", "who")
        columns = [*(_arrays(left) or [[], [], [], []]), *_arrays(sorted(moved))]
        await conn.execute(_FOLLOW, dict(zip(names, columns, strict=True)))


async def waiting_of(conn: Connection, tenant: str) -> int:
    """Return how many tasks of a tenant wait, in all queues: few rows, found by their keys.

    Jobs of other services are none, and those services have limits of their own.
    """
    cursor = await conn.execute(
        "SELECT coalesce(sum(n.pending), 0)::bigint - (SELECT coalesce(sum(j.pending), 0)::bigint FROM "
        "unnest(%s::text[], %s::text[]) AS k (queue, lane) CROSS JOIN LATERAL (SELECT l.pending FROM queue_lanes l "
        "WHERE l.queue = k.queue AND l.tenant = %s AND l.lane = k.lane OFFSET 0) j) "
        "FROM unnest(%s::text[]) AS q (name) CROSS JOIN LATERAL "
        "(SELECT t.pending FROM queue_tenants t WHERE t.queue = q.name AND t.tenant = %s OFFSET 0) n",
        (list(JOB_QUEUES.values()), [lane_of("", LOCAL, k) for k in JOB_QUEUES], tenant, sorted(QUEUES), tenant),
    )
    [[count]] = await cursor.fetchall()
    return max(0, int(count))


def _arrays(rows: Sequence[tuple[Any, ...]]) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)]


async def recount(conn: Connection, queue: str, tenants: Sequence[str], others: Sequence[str]) -> None:
    """Count a few tenants' waiting tasks again.

    Args:
        conn: A connection in a transaction.
        queue: The queue.
        tenants: The tenants.
        others: Tenants that the transaction changes afterwards: the rows of all are locked now, in order.
    """
    await conn.execute(
        "SELECT FROM queue_tenants WHERE queue = %s AND tenant = ANY(%b) ORDER BY tenant FOR UPDATE",
        (queue, [*tenants, *others]),
    )
    await conn.execute(_RECOUNT_LANES, (queue, list(tenants)))
    await conn.execute(_RECOUNT_TENANTS, (queue, list(tenants)))
