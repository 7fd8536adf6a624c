"""One dispatch round in one transaction: note polls, find tenants with waiting tasks, lease the tasks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from uuid import UUID

from meshkit.db import Rows
from meshkit.pipeline import Pipeline
from services.tasks.domain import TaskRecord
from services.tasks.postgres import announcements, columns, counters, gates
from services.tasks.postgres.gates import NAMED_BY, RESTLESS, WAITING_LANES, GateTable
from services.tasks.providers.domain import Gate, GateName, ProviderLimits, TokenBucket
from services.tasks.providers.gates import GateView, gate_of, gates_of
from services.tasks.scheduling.fairness import Candidate, Contender
from services.tasks.store import Grant, HeldRound, PollEntry, RegisteredPoll, RegisteredRound

# Sessions are locked in the order of the arrays, which is that of their ids, and looked up by id: OFFSET and the lock
# keep the subquery from being joined in another way.

# A poll's number is that of the last poll, which it then repeats, or the next. The previous number tells which.
# A cordoned worker gets nothing, nor one that waits for a while after its cordon.
_TAKES_NOTHING = "s.draining OR s.cordoned IS NOT NULL OR coalesce(s.leases_after > now(), false)"
_REGISTER = f"""
WITH known AS (
    SELECT s.id, s.sequence AS previous, p.sequence
    FROM (SELECT unnest(%(sessions)b::uuid[]) AS session, unnest(%(sequences)b::bigint[]) AS sequence) p
    CROSS JOIN LATERAL (SELECT * FROM sessions s WHERE s.id = p.session OFFSET 0 FOR UPDATE) s
    WHERE s.closed_at IS NULL AND s.expires_at > now() AND p.sequence IN (s.sequence, s.sequence + 1)
)
UPDATE sessions s SET sequence = k.sequence, acknowledged = greatest(s.acknowledged, k.sequence - 1)
FROM known k WHERE s.id = k.id AND s.id = ANY(%(sessions)b)
RETURNING s.id, k.previous = k.sequence, {_TAKES_NOTHING}
"""  # noqa: S608 -- constants

# The share lock makes whoever ends the session wait until the round's leases exist, so that they are given back with
# it.
_CONFIRM = f"""
SELECT s.id, s.sequence, {_TAKES_NOTHING}
FROM (SELECT unnest(%(sessions)b::uuid[]) AS session, unnest(%(sequences)b::bigint[]) AS sequence) p
CROSS JOIN LATERAL (SELECT * FROM sessions s WHERE s.id = p.session OFFSET 0 FOR SHARE) s
WHERE s.closed_at IS NULL AND s.expires_at > now() AND s.sequence = p.sequence
"""  # noqa: S608 -- constants

_REPLAY = f"SELECT {columns.SELECT} FROM tasks WHERE lease_session = %s AND lease_sequence = %s ORDER BY leased_at, id"  # noqa: S608 -- fixed names

_CONTENDERS = """
SELECT n.tenant, n.lane, n.virtual_time, n.pending
FROM unnest(%b::text[]) AS w (lane)
CROSS JOIN LATERAL (
    SELECT l.tenant, l.lane, l.virtual_time, l.pending FROM queue_lanes l
    WHERE l.queue = %s AND l.lane = w.lane AND l.pending > 0
    ORDER BY l.virtual_time, l.tenant LIMIT %s
) n
"""

# Each (tenant, lane) is a range of the index `tasks_waiting`, read from its start.
CANDIDATES = """
SELECT n.id, n.tenant, n.lane, n.priority, extract(epoch FROM n.created_at)::float8, n.charged, n.warm_keys,
    extract(epoch FROM now() - n.created_at)::float8, n.bytes, coalesce(n.expected_seconds, 0)
FROM unnest(%b::text[], %b::bigint[]) AS w (tenant, wanted)
CROSS JOIN unnest(%b::text[]) AS s (lane)
CROSS JOIN LATERAL (
    SELECT t.id, t.tenant, t.lane, t.priority, t.created_at, t.charged, t.warm_keys,
        octet_length(t.spec) + octet_length(t.body) AS bytes, t.expected_seconds
    FROM tasks t
    WHERE t.queue_name = %s AND t.tenant = w.tenant AND t.lane = s.lane
        AND t.status = 'PENDING' AND t.not_before IS NULL
    ORDER BY t.priority DESC, t.created_at, t.id LIMIT w.wanted
) n
ORDER BY n.tenant, n.priority DESC, n.created_at, n.id
"""

# With the answer to whether one of some gates is not at rest, which is looked up once.
_TRUSTING_CANDIDATES = CANDIDATES.replace(
    "\nFROM unnest",
    f", EXISTS (SELECT FROM provider_gates g WHERE {RESTLESS} AND {NAMED_BY} = ANY(%b))\nFROM unnest",
    1,
)
_FIELDS = len(Candidate._fields)

# A locked row is being cancelled or changed: the next round sees the result. A task that was moved to another queue or
# provider since it was read is not leased. Rows are locked one at a time and changed where they were found, so that no
# plan can read more of the table. `num_nulls` serves the same: it keeps the planner from `tasks_waiting`, by which it
# would read the whole queue.
# Times are the statement's: the round may have begun, and waited, before a task that it leases was made.
_GRANT = f"""
WITH chosen AS (
    SELECT c.*, t.place
    FROM (SELECT unnest(%(ids)b::uuid[]) AS id, unnest(%(sessions)b::uuid[]) AS session,
        unnest(%(sequences)b::bigint[]) AS sequence, unnest(%(kinds)b::text[]) AS kind,
        unnest(%(names)b::text[]) AS name, unnest(%(costs)b::float8[]) AS cost, unnest(%(lanes)b::text[]) AS lane) c
    CROSS JOIN LATERAL (SELECT t.ctid AS place FROM tasks t WHERE t.id = c.id FOR UPDATE SKIP LOCKED) t
)
UPDATE tasks t SET
    status = 'EXECUTING', attempt = t.attempt + 1, version = t.version + 1,
    started_at = coalesce(t.started_at, statement_timestamp()), updated_at = statement_timestamp(),
    leased_at = statement_timestamp(),
    executor_type = c.kind, executor_instance = c.name, lease_session = c.session, lease_sequence = c.sequence,
    charged = CASE WHEN t.charged > 0 THEN t.charged ELSE c.cost END, missing_since = NULL, error_category = NULL
FROM chosen c
WHERE t.ctid = c.place AND t.status = 'PENDING' AND num_nulls(t.not_before) = 1
    AND t.queue_name = %(queue)s AND t.lane = c.lane
RETURNING {columns.SELECT_T}
"""  # noqa: S608 -- fixed names

# Rounds of the same queue in other replicas wait here. The first round that leases writes the row.
_HOLD = "SELECT FROM queues WHERE name = %s FOR UPDATE"

_ADVANCE = """
INSERT INTO queues AS q (name, virtual_time) VALUES (%s, %s)
ON CONFLICT (name) DO UPDATE SET virtual_time = greatest(q.virtual_time, excluded.virtual_time)
"""


# In one statement, because each that waits for another's answer costs the round a fifth of its time.
_CONTENDERS_OF_WAITING = f"""
{WAITING_LANES}
SELECT n.tenant, n.lane, n.virtual_time, n.pending, w.place
FROM waiting w
CROSS JOIN LATERAL (
    SELECT l.tenant, l.lane, l.virtual_time, l.pending FROM queue_lanes l
    WHERE l.queue = %(queue)s AND l.lane = w.lane AND l.pending > 0
    ORDER BY l.virtual_time, l.tenant LIMIT %(limit)s
) n
"""  # noqa: S608 -- fixed names


class PostgresRound:
    """A round on an open transaction: what needs no answer of what goes before travels with it.

    Args:
        conn: A connection in a transaction, with the settings of hot statements.
        queue: The queue; dispatched by one replica at a time, so that two never serve the same tenant's turn.
        limits: What the gates of providers are held to.

    Attributes:
        called: Calls that were leased past gates without their rows, which are to be counted once this is committed.
    """

    def __init__(self, conn: Pipeline, queue: str, limits: ProviderLimits) -> None:
        self._conn = conn
        self._queue = queue
        self._gates = GateTable(conn, limits)
        self._trusting = False
        self.called: Counter[GateName] = Counter()

    async def register(
        self, polls: Sequence[PollEntry], lanes: Sequence[str], limit: int, after: str | None = None
    ) -> RegisteredRound:
        """Note polls, which acknowledges the leases of earlier ones, and find waiting tenants; see `RoundStore`."""
        registered = None
        if polls:
            registered = await self._conn.execute(_REGISTER, _columns(polls), binary=True)
        contenders = await self._contenders(lanes, limit) if lanes or after is None else None
        waiting = None if after is None else await self._contenders_of_waiting(limit, after)
        answers: dict[UUID, RegisteredPoll] = {}
        if registered is not None:
            known = {row[0]: row[1:] for row in await registered.fetchall()}
            for poll in polls:
                if poll.session in known:
                    repeated, draining = known[poll.session]
                    answers[poll.session] = RegisteredPoll(
                        await self._replay(poll) if repeated else (), draining=draining
                    )
        found = [] if contenders is None else [Contender._make(row) for row in await contenders.fetchall()]
        next_lane = ""
        for tenant, lane, virtual_time, pending, place in [] if waiting is None else await waiting.fetchall():
            if lane not in lanes:
                found.append(Contender(tenant, lane, virtual_time, pending))
            if place == gates.MAX_LANES:
                next_lane = lane
        return RegisteredRound(answers, found, next_lane)

    async def gates(self, pairs: Collection[str], after: str) -> tuple[GateView, str]:
        """Read the gates of the lanes that work waits in; see `RoundStore`."""
        return await self._gates.waiting(self._queue, pairs, after)

    async def hold(
        self,
        polls: Sequence[PollEntry],
        wanted: Mapping[str, int],
        lanes: Sequence[str],
        limit: int,
        gates: GateView | None = None,
        *,
        trusted: Sequence[GateName] = (),
    ) -> HeldRound:
        """Hold sessions, the queue and the gates until the round's end, then read what waits; see `RoundStore`."""
        confirmed = None
        if polls:
            confirmed = await self._conn.execute(_CONFIRM, _columns(polls), binary=True)
        await self._conn.execute(_HOLD, (self._queue,))
        asked = None
        if gates is not None and gates.lanes:
            names = gates_of(gates.lanes)
            await self._gates.lock(names, known=gates.gates.keys() >= set(names))
            asked = await self._gates.ask(names)
        self._trusting = bool(trusted)
        contenders = await self._contenders(lanes, limit)
        places = [list(wanted.keys()), list(wanted.values()), list(lanes), self._queue]
        asked_for = (
            await self._conn.execute(_TRUSTING_CANDIDATES, [[str(name) for name in trusted], *places], binary=True)
            if trusted
            else await self._conn.execute(CANDIDATES, places, binary=True)
        )
        candidates = await asked_for.fetchall()
        return HeldRound(
            {}
            if confirmed is None
            else {PollEntry(session, number): draining for session, number, draining in await confirmed.fetchall()},
            [Contender._make(row) for row in await contenders.fetchall()],
            [Candidate._make(row[:_FIELDS]) for row in candidates],
            None if asked is None or gates is None else await self._gates.view(asked, gates.lanes),
            bool(trusted and candidates and candidates[0][_FIELDS]),
        )

    async def write_gates(
        self,
        changed: Sequence[Gate],
        refused: Sequence[tuple[GateName, bool]],
        buckets: Mapping[tuple[str, str], TokenBucket],
    ) -> None:
        """Write what the round did to gates; see `RoundStore`."""
        await self._gates.write(changed)
        await self._gates.write_buckets(buckets)
        await self._gates.note_refused(refused)

    async def grant(self, grants: Sequence[Grant], virtual_time: float) -> list[TaskRecord]:
        """Lease tasks; those that are not waiting any more are left out."""
        cursor = await self._conn.execute(
            _GRANT,
            {
                "ids": [grant.task_id for grant in grants],
                "sessions": [grant.session for grant in grants],
                "sequences": [grant.sequence for grant in grants],
                "kinds": [grant.kind for grant in grants],
                "names": [grant.name for grant in grants],
                "costs": [grant.cost for grant in grants],
                "lanes": [grant.lane for grant in grants],
                "queue": self._queue,
            },
            binary=True,
        )
        by_id = {row[0]: columns.record(row) for row in await cursor.fetchall()}
        granted = [(grant, by_id[grant.task_id]) for grant in grants if grant.task_id in by_id]
        if granted:
            if self._trusting:
                self.called.update(name for _, record in granted if (name := gate_of(record.lane)) is not None)
            await announcements.changed(self._conn, [record for _, record in granted])
            await self._conn.execute(_ADVANCE, (self._queue, virtual_time))
            await counters.apply(
                self._conn,
                [
                    counters.CounterChange(
                        record.queue_name, record.tenant, record.lane, pending=-1, charge=grant.charge
                    )
                    for grant, record in granted
                ],
            )
        return [record for _, record in granted]

    async def recount(self, tenants: Sequence[str], granted: Sequence[str]) -> None:
        """Correct the counters of tenants that have less work than they say; see `store.RoundStore`."""
        async with self._conn.server_settings():
            await counters.recount(self._conn, self._queue, tenants, granted)

    async def _contenders(self, lanes: Sequence[str], limit: int) -> Rows:
        return await self._conn.execute(_CONTENDERS, (list(lanes), self._queue, limit), binary=True)

    async def _contenders_of_waiting(self, limit: int, after: str) -> Rows:
        values = {"queue": self._queue, "limit": limit, "after": after, "most": gates.MAX_LANES}
        return await self._conn.execute(_CONTENDERS_OF_WAITING, values, binary=True)

    async def _replay(self, poll: PollEntry) -> Sequence[TaskRecord]:
        async with self._conn.server_settings():
            cursor = await self._conn.execute(_REPLAY, (poll.session, poll.sequence))
            leases = [columns.record(row) for row in await cursor.fetchall()]
            if leases:
                await self._conn.execute(
                    "UPDATE tasks SET missing_since = NULL WHERE lease_session = %s AND missing_since IS NOT NULL",
                    (poll.session,),
                )
        return leases


def _columns(polls: Sequence[PollEntry]) -> Mapping[str, Sequence[UUID] | Sequence[int]]:
    ordered = sorted(polls, key=lambda poll: poll.session)
    return {"sessions": [poll.session for poll in ordered], "sequences": [poll.sequence for poll in ordered]}
