"""Waiting tasks and virtual time of tenants: kept in the transaction of every change, last in it.

A tenant's row is locked before its lanes' rows, and tenants are locked in order, so two transactions never wait for
each other here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from meshkit.db import Connection
from services.tasks.domain import TaskRecord


@dataclass(frozen=True, slots=True)
class Change:
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


def entering(record: TaskRecord) -> Change:
    """A task begins to wait."""
    return Change(record.queue_name, record.tenant, record.lane, pending=1)


def leaving(record: TaskRecord) -> Change:
    """A task waits no more."""
    return Change(record.queue_name, record.tenant, record.lane, pending=-1)


# A tenant without waiting work starts again at the queue's virtual time, or at its own where that is later. The column
# `charged` carries the charge into DO UPDATE. Lanes that are not part of the change follow their tenant's clock.
_APPLY = """
WITH changes AS (
    SELECT * FROM unnest(%b::text[], %b::text[], %b::text[], %b::bigint[], %b::float8[])
        AS c (queue, tenant, lane, pending, charge)
), totals AS (
    SELECT queue, tenant, sum(pending)::bigint AS pending, sum(charge) AS charge
    FROM changes GROUP BY queue, tenant ORDER BY queue, tenant
), tenants AS (
    INSERT INTO queue_tenants AS t (queue, tenant, virtual_time, pending, charged)
    SELECT c.queue, c.tenant, coalesce(q.virtual_time, 0), c.pending, c.charge
    FROM totals c LEFT JOIN queues q ON q.name = c.queue
    ORDER BY c.queue, c.tenant
    ON CONFLICT (queue, tenant) DO UPDATE SET
        virtual_time = excluded.charged + CASE WHEN t.pending <= 0 AND excluded.pending > 0
            THEN greatest(t.virtual_time, excluded.virtual_time) ELSE t.virtual_time END,
        pending = greatest(0, t.pending + excluded.pending),
        charged = t.charged + excluded.charged
    RETURNING queue, tenant, virtual_time
), others AS (
    UPDATE queue_lanes l SET virtual_time = t.virtual_time
    FROM tenants t
    WHERE l.queue = t.queue AND l.tenant = t.tenant AND l.pending > 0 AND l.virtual_time <> t.virtual_time
        AND NOT EXISTS (SELECT FROM changes c WHERE c.queue = l.queue AND c.tenant = l.tenant AND c.lane = l.lane)
)
INSERT INTO queue_lanes AS l (queue, tenant, lane, virtual_time, pending)
SELECT c.queue, c.tenant, c.lane, t.virtual_time, greatest(0, c.pending)
FROM changes c JOIN tenants t USING (queue, tenant)
ON CONFLICT (queue, tenant, lane) DO UPDATE SET
    virtual_time = excluded.virtual_time,
    pending = greatest(0, l.pending + (
        SELECT c.pending FROM changes c WHERE c.queue = l.queue AND c.tenant = l.tenant AND c.lane = l.lane))
"""

# Counters that say more than there is would be asked for ever: count again what the index holds.
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


async def apply(conn: Connection, changes: Iterable[Change]) -> None:
    """Applies the changes of a transaction, summed by lane.

    Args:
        conn: A connection in the transaction of the changes themselves.
        changes: Any number, for any tenants.
    """
    sums: dict[tuple[str, str, str], tuple[int, float]] = {}
    for change in changes:
        key = (change.queue, change.tenant, change.lane)
        pending, charge = sums.get(key, (0, 0.0))
        sums[key] = (pending + change.pending, charge + change.charge)
    rows = [(*key, pending, charge) for key, (pending, charge) in sorted(sums.items()) if pending or charge]
    if rows:
        await conn.execute(_APPLY, [list(column) for column in zip(*rows, strict=True)])


async def recount(conn: Connection, queue: str, tenants: Sequence[str], others: Sequence[str]) -> None:
    """Counts a few tenants' waiting tasks again.

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
