"""Work by queue in seconds, cordons of sessions, and measured times."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any
from uuid import UUID

from meshkit.db import Connection, Database
from services.tasks.scaling.domain import CordonedBy, QueueWork, RemovalMark, ScaleDecision, WorkerPool, workers_of
from services.tasks.scaling.store import ScaleView, WorkTime

_SCALE_IN_LOCK = 0x7363616C65696E  # any number of its own
# Waiting jobs are counted; how long they take is told by some at the head of the longest lanes.
_SAMPLED_LANES = 200
_SAMPLED_JOBS = 20
# Measured times follow the last so many attempts.
_REMEMBERED_ATTEMPTS = 50

# What a job named `t` is expected to take: as it says itself, as its model or its lane took, as its type declares.
_MODEL = "coalesce((SELECT substr(k, 7) FROM unnest(t.warm_keys) AS k WHERE k LIKE 'model:%%' LIMIT 1), '')"
_COSTS = "costs AS (SELECT unnest(%(pairs)s::text[]) AS pair, unnest(%(seconds)s::float8[]) AS seconds)"
_PAIR = "split_part({lane}, '/', 1) || '/' || split_part({lane}, '/', 2)"
_OF_LANE = f"""
LEFT JOIN work_times ofl ON ofl.lane = {{t}}.lane AND ofl.model = ''
LEFT JOIN costs c ON c.pair = {_PAIR.format(lane="{t}.lane")}
"""
_OF_JOB = "LEFT JOIN work_times ofm ON ofm.lane = t.lane AND ofm.model = t.model AND t.model <> ''" + _OF_LANE.format(
    t="t"
)
_EXPECTED = "coalesce(t.expected_seconds, ofm.seconds, ofl.seconds, c.seconds, 1.0)"

_WAITING = f"""
WITH {_COSTS}, lanes AS (
    SELECT queue, tenant, lane, pending FROM queue_lanes WHERE pending > 0
), sampled AS (
    SELECT w.queue, w.lane, sum(w.pending * s.seconds) / sum(w.pending) AS seconds
    FROM (SELECT * FROM lanes ORDER BY pending DESC LIMIT {_SAMPLED_LANES}) w
    CROSS JOIN LATERAL (
        SELECT avg({_EXPECTED}) AS seconds FROM (
            SELECT t.expected_seconds, t.lane, {_MODEL} AS model FROM tasks t
            WHERE t.queue_name = w.queue AND t.tenant = w.tenant AND t.lane = w.lane
                AND t.status = 'PENDING' AND t.not_before IS NULL
            ORDER BY t.priority DESC, t.created_at, t.id LIMIT {_SAMPLED_JOBS}
        ) t {_OF_JOB}
    ) s
    WHERE s.seconds IS NOT NULL GROUP BY w.queue, w.lane
), waiting AS (SELECT queue, lane, sum(pending) AS pending FROM lanes GROUP BY queue, lane)
SELECT t.queue, sum(t.pending)::bigint,
    sum(t.pending * coalesce(s.seconds, ofl.seconds, c.seconds, 1.0))::float8
FROM waiting t LEFT JOIN sampled s ON s.queue = t.queue AND s.lane = t.lane {_OF_LANE.format(t="t")}
GROUP BY t.queue
"""  # noqa: S608 -- constants

_LEASED = f"""
WITH {_COSTS}, held AS (
    SELECT t.queue_name, t.lane, t.expected_seconds, {_MODEL} AS model,
        extract(epoch FROM now() - t.leased_at)::float8 AS elapsed,
        row_number() OVER (PARTITION BY t.lease_session ORDER BY t.lease_sequence, t.leased_at, t.id)
            <= s.slots AS running
    FROM tasks t JOIN sessions s ON s.id = t.lease_session WHERE t.lease_session IS NOT NULL
)
SELECT t.queue_name, count(*) FILTER (WHERE t.running),
    coalesce(sum(greatest(0, {_EXPECTED} - t.elapsed)) FILTER (WHERE t.running), 0)::float8,
    count(*) FILTER (WHERE NOT t.running),
    coalesce(sum({_EXPECTED}) FILTER (WHERE NOT t.running), 0)::float8
FROM held t {_OF_JOB} GROUP BY t.queue_name
"""  # noqa: S608 -- constants

_DELAYED = "SELECT queue_name, count(*) FROM tasks WHERE not_before IS NOT NULL GROUP BY queue_name"

_ALIVE = "s.closed_at IS NULL AND s.expires_at > now()"
_POOLS = f"""
SELECT s.id, s.name, s.queues, s.slots, (SELECT count(*) FROM tasks t WHERE t.lease_session = s.id), s.draining,
    s.cordoned, s.cordoned_at, s.mark, coalesce(s.load ->> 'fault', '') <> ''
FROM sessions s WHERE {_ALIVE} ORDER BY s.name, s.opened_at
"""  # noqa: S608 -- constants

_NAMED = "(s.name = %(name)s OR starts_with(s.name, %(name)s || '/'))"
# A round that leases holds the sessions until its commit: whoever cordons one waits, and sees its leases then.
_LOCK = f"SELECT s.id FROM sessions s WHERE {_ALIVE} AND s.id = ANY(%(ids)s) ORDER BY s.id FOR UPDATE"  # noqa: S608 -- constants
_CORDON = "UPDATE sessions SET cordoned = %(by)s, cordoned_at = now() WHERE id = ANY(%(ids)s)"
_UNCORDON = """
UPDATE sessions SET cordoned = NULL, cordoned_at = NULL,
    leases_after = CASE WHEN mark IS NOT NULL THEN now() + %(settle)s * interval '1 second' END
WHERE id = ANY(%(ids)s) AND cordoned IS NOT NULL
"""
_WORKER = "split_part(s.name, '/', 1)"
_LOCK_WORKERS = f"SELECT s.id FROM sessions s WHERE {_ALIVE} AND {_WORKER} = ANY(%(workers)s) ORDER BY s.id FOR UPDATE"  # noqa: S608 -- constants
_MARK = "UPDATE sessions SET mark = %(mark)s WHERE id = ANY(%(ids)s) AND mark IS DISTINCT FROM %(mark)s"

_ADD_TIMES = f"""
INSERT INTO work_times AS w (lane, model, seconds, attempts, measured_at)
SELECT t.lane, t.model, t.seconds, t.attempts, now() FROM unnest(
    %(lanes)s::text[], %(models)s::text[], %(seconds)s::float8[], %(attempts)s::integer[])
    AS t (lane, model, seconds, attempts)
ORDER BY t.lane, t.model
ON CONFLICT (lane, model) DO UPDATE SET
    seconds = (w.seconds * w.attempts + excluded.seconds * excluded.attempts) / (w.attempts + excluded.attempts),
    attempts = least(w.attempts + excluded.attempts, {_REMEMBERED_ATTEMPTS}), measured_at = excluded.measured_at
"""  # noqa: S608 -- constants


class PostgresScaling:
    """Implements `services.tasks.scaling.store.ScalingStore`.

    Args:
        db: The service's database, migrated.
    """

    def __init__(self, db: Database) -> None:
        self._db = db

    async def view(self, queues: Collection[str], costs: Mapping[str, float]) -> ScaleView:
        """Return the work of queues and all pools that are alive, of one moment."""
        async with self._db.transaction() as conn:
            await conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            return await _view(conn, queues, costs)

    async def pools(self) -> list[WorkerPool]:
        """Return the pools that are alive, by name."""
        async with self._db.connection() as conn:
            return await _pools(conn)

    async def cordon(self, worker: str) -> list[WorkerPool]:
        """Cordon the pools that a name stands for, by an operator."""
        async with self._named(worker) as (conn, ids):
            await conn.execute(_CORDON, {"ids": ids, "by": CordonedBy.OPERATOR.value})
            return [pool for pool in await _pools(conn) if pool.session in ids]

    async def uncordon(self, worker: str, settle_seconds: float) -> list[WorkerPool]:
        """Uncordon the pools that a name stands for."""
        async with self._named(worker) as (conn, ids):
            await conn.execute(_UNCORDON, {"ids": ids, "settle": settle_seconds})
            return [pool for pool in await _pools(conn) if pool.session in ids]

    async def note_marks(
        self, announced: Sequence[str], marked: Sequence[str], unmarked: Sequence[str]
    ) -> Sequence[str]:
        """Note which workers bear a mark, which do not any more, and which are to be marked."""
        workers = sorted({*announced, *marked, *unmarked})
        if not workers:
            return []
        async with self._db.transaction() as conn:
            await conn.execute(_LOCK_WORKERS, {"workers": workers})
            pools = await _pools(conn)
            surplus = {worker.name for worker in workers_of(pools) if worker.is_surplus}
            accepted = [name for name in announced if name in surplus]
            for names, mark in ((accepted, RemovalMark.ANNOUNCED), (marked, RemovalMark.SET), (unmarked, None)):
                ids = [pool.session for pool in pools if pool.worker in names]
                await conn.execute(_MARK, {"ids": ids, "mark": mark})
            return accepted

    async def scale_in(
        self,
        queues: Collection[str],
        costs: Mapping[str, float],
        decide: Callable[[ScaleView], ScaleDecision],
        settle_seconds: float,
    ) -> ScaleDecision | None:
        """Decide and apply, one replica at a time; a worker that holds something by now is not cordoned."""
        async with self._db.transaction() as conn:
            cursor = await conn.execute("SELECT pg_try_advisory_xact_lock(%s)", (_SCALE_IN_LOCK,))
            if not (await cursor.fetchone() or (False,))[0]:
                return None
            view = await _view(conn, queues, costs)
            decision = decide(view)
            chosen = {*decision.cordon, *decision.uncordon}
            if not chosen:
                return decision
            await _lock(conn, [pool.session for pool in view.pools if pool.worker in chosen])
            pools = await _pools(conn)
            busy = {pool.worker for pool in pools if pool.held}
            cordoned = [name for name in decision.cordon if name not in busy]
            ids = {name: [pool for pool in pools if pool.worker == name] for name in chosen}
            # What an operator has cordoned stays an operator's.
            free = [pool.session for name in cordoned for pool in ids[name] if pool.cordoned_by is None]
            own = [
                pool.session
                for name in decision.uncordon
                for pool in ids[name]
                if pool.cordoned_by is CordonedBy.SCHEDULER
            ]
            await conn.execute(_CORDON, {"ids": free, "by": CordonedBy.SCHEDULER.value})
            await conn.execute(_UNCORDON, {"ids": own, "settle": settle_seconds})
            return ScaleDecision(cordoned, decision.uncordon)

    async def add_times(self, times: Sequence[WorkTime]) -> None:
        """Add measured times to those that are known."""
        async with self._db.transaction() as conn:
            await conn.execute(
                _ADD_TIMES,
                {
                    "lanes": [time.lane for time in times],
                    "models": [time.model for time in times],
                    "seconds": [time.seconds for time in times],
                    "attempts": [time.attempts for time in times],
                },
            )

    async def forget_times(self) -> None:
        """Forget times of what has not ended for a week."""
        async with self._db.transaction() as conn:
            await conn.execute("DELETE FROM work_times WHERE measured_at < now() - interval '7 days'")

    @asynccontextmanager
    async def _named(self, worker: str) -> AsyncIterator[tuple[Connection, list[UUID]]]:
        """Return a transaction that holds the sessions which a name stands for, with their ids."""
        async with self._db.transaction() as conn:
            cursor = await conn.execute(
                f"SELECT s.id FROM sessions s WHERE {_ALIVE} AND {_NAMED}",  # noqa: S608 -- constants
                {"name": worker},
            )
            ids = [row[0] for row in await cursor.fetchall()]
            yield conn, await _lock(conn, ids)


async def _lock(conn: Connection, ids: Sequence[UUID]) -> list[UUID]:
    cursor = await conn.execute(_LOCK, {"ids": list(ids)})
    return [row[0] for row in await cursor.fetchall()]


async def _view(conn: Connection, queues: Collection[str], costs: Mapping[str, float]) -> ScaleView:
    values: dict[str, Any] = {"pairs": list(costs), "seconds": list(costs.values())}
    waiting = {row[0]: row[1:] for row in await (await conn.execute(_WAITING, values)).fetchall()}
    leased = {row[0]: row[1:] for row in await (await conn.execute(_LEASED, values)).fetchall()}
    delayed = dict(await (await conn.execute(_DELAYED)).fetchall())
    works = []
    for name in queues:
        count, seconds = waiting.get(name, (0, 0.0))
        running, left, reserved, reserved_seconds = leased.get(name, (0, 0.0, 0, 0.0))
        works.append(
            QueueWork(
                name,
                waiting=count + reserved,
                waiting_seconds=seconds + reserved_seconds,
                running=running,
                running_seconds=left,
                delayed=delayed.get(name, 0),
            )
        )
    pools = await _pools(conn)
    row = await (await conn.execute("SELECT now()")).fetchone()
    assert row is not None
    at: datetime = row[0]
    return ScaleView(works, pools, at)


async def _pools(conn: Connection) -> list[WorkerPool]:
    cursor = await conn.execute(_POOLS)
    return [
        WorkerPool(
            session,
            name,
            queues,
            slots,
            held,
            draining=draining,
            cordoned_by=None if cordoned is None else CordonedBy(cordoned),
            cordoned_at=cordoned_at,
            mark=None if mark is None else RemovalMark(mark),
            faulty=faulty,
        )
        for session, name, queues, slots, held, draining, cordoned, cordoned_at, mark, faulty in await cursor.fetchall()
    ]
