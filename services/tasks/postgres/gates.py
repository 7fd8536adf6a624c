"""Gates of providers: read and locked by rounds, moved by what workers note of their calls.

Lock order: a round locks gates after the queue's row, all of them at once in the order of their names, and tasks
afterwards with SKIP LOCKED, so it waits for no task. Whoever notes a call holds its task and then locks its gate.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, NamedTuple

from meshkit.db import Connection, Rows
from services.tasks.domain import parts_of
from services.tasks.postgres import columns
from services.tasks.providers.domain import (
    Breaker,
    BreakerState,
    Gate,
    GateName,
    ProviderLimits,
    TokenBucket,
)
from services.tasks.providers.gates import GATED, GateView, gates_of
from services.tasks.service_requests import ServiceRequestEffect

# A round looks at so many lanes. Where work waits in more, each round goes on where the last one ended.
MAX_LANES = 256

_COLUMNS = (
    "provider, key, state, failure_count, success_count, opened_at, last_failure_at, trials, tokens, filled_at, "
    "blocked_until, total_calls, rejected_calls, waiting_since"
)
_READ = ", ".join(f"g.{name}" for name in _COLUMNS.split(", "))
# Trials whose attempt has ended, or was lost, without a word.
_LOST = """
ARRAY(SELECT r.call FROM unnest(g.trials) AS r (call) WHERE NOT EXISTS (
    SELECT FROM tasks t WHERE t.id = split_part(r.call, '/', 1)::uuid
        AND t.attempt = split_part(r.call, '/', 2)::integer AND t.status = 'EXECUTING'))
"""

# The lanes that work waits in: each the next one in `queue_lanes_next`, however many tenants the last one has.
WAITING_LANES = """
WITH RECURSIVE waiting (lane, place) AS (
    (SELECT l.lane, 1 FROM queue_lanes l WHERE l.queue = %(queue)s AND l.pending > 0 AND l.lane > %(after)s
    ORDER BY l.lane LIMIT 1)
    UNION ALL
    SELECT (SELECT l.lane FROM queue_lanes l WHERE l.queue = %(queue)s AND l.pending > 0 AND l.lane > w.lane
        ORDER BY l.lane LIMIT 1), w.place + 1
    FROM waiting w WHERE w.lane IS NOT NULL AND w.place < %(most)s
)
"""
_LANES = f"{WAITING_LANES} SELECT lane FROM waiting WHERE lane IS NOT NULL"  # noqa: S608 -- fixed names

# `Gate.at_rest` says the same. The first condition is that of the index `provider_gates_restless`.
RESTLESS = """
(g.state <> 'closed' OR g.blocked_until IS NOT NULL OR g.waiting_since IS NOT NULL)
    AND (g.state <> 'closed' OR g.waiting_since IS NOT NULL OR g.blocked_until > clock_timestamp())
"""
# As `GateName` spells itself.
NAMED_BY = "CASE WHEN g.key = '' THEN g.provider ELSE g.provider || '/' || g.key END"

_NAMED = "(SELECT unnest(%(providers)b::text[]) AS provider, unnest(%(keys)b::text[]) AS key) n"

# Where a row may be missing. All locks are taken in one order, those of new rows among them.
_ENSURE = f"""
INSERT INTO provider_gates (provider, key) SELECT n.provider, n.key FROM {_NAMED}
ON CONFLICT (provider, key) DO UPDATE SET key = excluded.key
"""  # noqa: S608 -- fixed names

# One at a time, in the order of the arrays.
_LOCK = f"""
SELECT FROM {_NAMED}
CROSS JOIN LATERAL (
    SELECT FROM provider_gates g WHERE g.provider = n.provider AND g.key = n.key OFFSET 0 FOR UPDATE) g
"""  # noqa: S608 -- fixed names

# A statement of its own after the lock: it sees what was committed while the lock was waited for.
_GATES = f"""
SELECT {_READ}, clock_timestamp(), {_LOST} FROM {_NAMED}
CROSS JOIN LATERAL (SELECT * FROM provider_gates g WHERE g.provider = n.provider AND g.key = n.key OFFSET 0) g
"""  # noqa: S608 -- fixed names

# All attempts under way are read, by `tasks_leased`: they are as many as the mesh has slots.
_RUNNING = """
SELECT t.lane, t.tenant, count(*) FROM tasks t
WHERE t.lease_session IS NOT NULL AND t.provider_type = ANY(%b)
GROUP BY t.lane, t.tenant
"""

_WRITE = """
INSERT INTO provider_gates AS g (provider, key, state, failure_count, success_count, opened_at, last_failure_at, trials,
    tokens, filled_at, blocked_until, total_calls, rejected_calls, waiting_since)
SELECT n.provider, n.key, n.state, n.failure_count, n.success_count, n.opened_at, n.last_failure_at, n.trials::text[],
    n.tokens, n.filled_at, n.blocked_until, n.total_calls, n.rejected_calls, n.waiting_since
FROM (SELECT unnest(%b::text[]) AS provider, unnest(%b::text[]) AS key, unnest(%b::text[]) AS state,
    unnest(%b::integer[]) AS failure_count, unnest(%b::integer[]) AS success_count,
    unnest(%s::timestamptz[]) AS opened_at, unnest(%s::timestamptz[]) AS last_failure_at, unnest(%b::text[]) AS trials,
    unnest(%s::float8[]) AS tokens, unnest(%s::timestamptz[]) AS filled_at,
    unnest(%s::timestamptz[]) AS blocked_until, unnest(%b::bigint[]) AS total_calls,
    unnest(%b::bigint[]) AS rejected_calls, unnest(%s::timestamptz[]) AS waiting_since) n
ON CONFLICT (provider, key) DO UPDATE SET
    state = excluded.state, failure_count = excluded.failure_count, success_count = excluded.success_count,
    opened_at = excluded.opened_at, last_failure_at = excluded.last_failure_at, trials = excluded.trials,
    tokens = excluded.tokens, filled_at = excluded.filled_at, blocked_until = excluded.blocked_until,
    total_calls = excluded.total_calls, rejected_calls = excluded.rejected_calls,
    waiting_since = excluded.waiting_since, used_at = now()
"""

_REFUSED = """
INSERT INTO provider_gates AS g (provider, key, rejected_calls, waiting_since)
SELECT n.provider, n.key, n.rejected, clock_timestamp()
FROM (SELECT unnest(%b::text[]) AS provider, unnest(%b::text[]) AS key, unnest(%b::bigint[]) AS rejected) n
ON CONFLICT (provider, key) DO UPDATE SET
    rejected_calls = g.rejected_calls + excluded.rejected_calls,
    waiting_since = coalesce(g.waiting_since, excluded.waiting_since), used_at = now()
"""

# In the order of the arrays.
_COUNT = """
INSERT INTO provider_gates AS g (provider, key, total_calls)
SELECT n.provider, n.key, n.calls
FROM (SELECT unnest(%b::text[]) AS provider, unnest(%b::text[]) AS key, unnest(%b::bigint[]) AS calls) n
ON CONFLICT (provider, key) DO UPDATE SET total_calls = g.total_calls + excluded.total_calls, used_at = now()
"""

_ALL = f"""
SELECT {_READ}, clock_timestamp(), {_LOST} FROM provider_gates g ORDER BY g.provider, g.key LIMIT 1000
"""  # noqa: S608 -- fixed names


_CALLS_OF = """
SELECT t.provider_type, count(*) FROM tasks t WHERE t.lease_session IS NOT NULL AND t.tenant = %s GROUP BY 1
"""

# Those that are locked are in use.
_FORGET = """
DELETE FROM provider_gates WHERE (provider, key) IN (
    SELECT provider, key FROM provider_gates WHERE used_at < now() - %s * interval '1 second' LIMIT 5000
    FOR UPDATE SKIP LOCKED)
"""
# A lane has a row for each tenant that had work in it; an application or a model may never be asked for again.
_FORGET_LANES = """
DELETE FROM queue_lanes WHERE (queue, tenant, lane) IN (
    SELECT queue, tenant, lane FROM queue_lanes WHERE pending <= 0 AND lane LIKE '%%/%%/%%' LIMIT 5000
    FOR UPDATE SKIP LOCKED)
"""


# Buckets of tenants that are full again say nothing.
_FORGET_BUCKETS = "DELETE FROM provider_tenants WHERE filled_at < now() - %s * interval '1 second'"

_BUCKETS = "SELECT tenant, provider, tokens, filled_at FROM provider_tenants WHERE provider = ANY(%b)"

_WRITE_BUCKETS = """
INSERT INTO provider_tenants AS b (tenant, provider, tokens, filled_at)
SELECT unnest(%b::text[]), unnest(%b::text[]), unnest(%b::float8[]), unnest(%s::timestamptz[])
ON CONFLICT (provider, tenant) DO UPDATE SET tokens = excluded.tokens, filled_at = excluded.filled_at
"""


class _AskedGates(NamedTuple):
    gates: Rows
    running: Rows | None
    buckets: Rows | None = None


class GateTable:
    """The gates, on an open transaction.

    Args:
        conn: A connection in the transaction.
        limits: What gates are held to; attempts under way are counted where they ask for it.
    """

    def __init__(self, conn: Connection, limits: ProviderLimits) -> None:
        self._conn = conn
        self._limits = limits

    async def waiting(self, queue: str, pairs: Collection[str], after: str) -> tuple[GateView, str]:
        """Read the gates of the lanes that work waits in, without a lock.

        Args:
            queue: The queue.
            pairs: Pairs that the workers run; others' lanes are passed over.
            after: Where to begin among the lanes.

        Returns:
            What there is, and where to begin the next time.
        """
        asked = await self._conn.execute(_LANES, {"queue": queue, "after": after, "most": MAX_LANES})
        found = await asked.fetchall()
        lanes = [lane for (lane,) in found if parts_of(lane)[0] in pairs]
        view = await self.view(await self.ask(gates_of(lanes)), lanes)
        return view, found[-1][0] if len(found) == MAX_LANES else ""

    async def count(self, calls: Mapping[GateName, int]) -> None:
        """Count calls that were admitted without their gates' rows."""
        columns = [(*name, count) for name, count in sorted(calls.items())]
        await self._conn.execute(_COUNT, [list(column) for column in zip(*columns, strict=True)])

    async def lock(self, names: Sequence[GateName], *, known: bool) -> None:
        """Lock gates, in their order.

        Args:
            names: The gates, sorted.
            known: Whether all have rows; those that are missing are made else.
        """
        await self._conn.execute(_LOCK if known else _ENSURE, _named(names))

    async def ask(self, names: Sequence[GateName]) -> _AskedGates:
        """Ask for gates; `view` brings the answer."""
        gates = await self._conn.execute(_GATES, _named(names))
        counted = sorted({name.provider for name in names if self._limits.counts(name.provider)})
        rated = sorted({name.provider for name in names if self._limits.rates(name.provider)})
        return _AskedGates(
            gates,
            await self._conn.execute(_RUNNING, (counted,)) if counted else None,
            await self._conn.execute(_BUCKETS, (rated,)) if rated else None,
        )

    async def view(self, asked: _AskedGates, lanes: Sequence[str]) -> GateView:
        """Return what was asked for."""
        gates: dict[GateName, Gate] = {}
        now: datetime | None = None
        for *row, now, lost in await asked.gates.fetchall():  # noqa: B007 -- the same in each row
            gate = _gate(row, lost)
            gates[gate.name] = gate
        if now is None:
            [[now]] = await (await self._conn.execute("SELECT clock_timestamp()")).fetchall()
        running = {} if asked.running is None else {row[:2]: row[2] for row in await asked.running.fetchall()}
        buckets = (
            {} if asked.buckets is None else {row[:2]: TokenBucket(*row[2:]) for row in await asked.buckets.fetchall()}
        )
        return GateView(now, lanes, gates, running, buckets)

    async def note_end(
        self, name: GateName, call: str, effect: ServiceRequestEffect, retry_after: float | None
    ) -> bool:
        """Move a gate after a call has ended.

        Args:
            name: The gate.
            call: The attempt that called, as `trial_name` has it.
            effect: What the breaker is to make of it.
            retry_after: Seconds that the provider asks to be left alone for.

        Returns:
            Whether the gate has changed.
        """
        if effect is ServiceRequestEffect.IGNORED and retry_after is None:
            return False
        view = await self.view(await self.ask([name]), ())
        if self._ended(view, name, call, effect, retry_after) is None:
            return False  # as nearly all calls: nobody has to wait for the row
        await self.lock([name], known=name in view.gates)
        view = await self.view(await self.ask([name]), ())
        after = self._ended(view, name, call, effect, retry_after)
        if after is None:
            return False
        await self.write([after])
        return True

    def _ended(
        self, view: GateView, name: GateName, call: str, effect: ServiceRequestEffect, retry_after: float | None
    ) -> Gate | None:
        """Return a gate after a call; None where it stays as it is."""
        policy, now = self._limits.of(name).breaker, view.now
        before = view.gates.get(name) or Gate(name)
        settled = before.breaker.at(now, policy)
        breaker = settled.after(call, effect, now, policy)
        bucket = before.bucket if retry_after is None else before.bucket.rest(retry_after, now)
        if breaker is settled and bucket is before.bucket:
            return None
        return replace(before, breaker=breaker, bucket=bucket)

    async def all(self) -> GateView:
        """Return all gates that have a row, a thousand at most, with the attempts under way at each."""
        gates = await self._conn.execute(_ALL)
        return await self.view(_AskedGates(gates, await self._conn.execute(_RUNNING, (sorted(GATED),))), ())

    async def known(self, name: GateName) -> bool:
        """Whether a gate has a row."""
        return bool((await self.view(await self.ask([name]), ())).gates)

    async def reset(self, name: GateName) -> tuple[Gate, Gate]:
        """Close the breaker of a gate and let its bucket give again.

        Returns:
            The gate before and after.
        """
        await self.lock([name], known=False)
        view = await self.view(await self.ask([name]), ())
        before = view.gates[name]
        after = replace(before, breaker=before.breaker.reset(), bucket=TokenBucket(), waiting_since=None)
        await self.write([after])
        return before, after

    async def write(self, gates: Sequence[Gate]) -> None:
        """Write gates, whose rows the transaction holds."""
        if gates:
            await self._conn.execute(_WRITE, [list(column) for column in zip(*map(_row, gates), strict=True)])

    async def write_buckets(self, buckets: Mapping[tuple[str, str], TokenBucket]) -> None:
        """Write buckets of tenants; the transaction holds the gates of their providers."""
        if buckets:
            rows = [(*key, bucket.tokens, bucket.filled_at) for key, bucket in sorted(buckets.items())]
            await self._conn.execute(_WRITE_BUCKETS, [list(column) for column in zip(*rows, strict=True)])

    async def note_refused(self, refused: Sequence[tuple[GateName, bool]]) -> None:
        """Note which gates passed work over, and whether for their breaker."""
        if refused:
            await self._conn.execute(
                _REFUSED,
                (
                    [name.provider for name, _ in refused],
                    [name.key for name, _ in refused],
                    [int(broken) for _, broken in refused],
                ),
            )


async def calls_of(conn: Connection, tenant: str) -> dict[str, int]:
    """Return the attempts of a tenant that are under way, by provider."""
    cursor = await conn.execute(_CALLS_OF, (tenant,))
    return dict(await cursor.fetchall())


async def forget_idle(conn: Connection, age_seconds: float) -> None:
    """Delete gates that nothing has passed or waited before for so long, and lanes of providers' keys without work."""
    await conn.execute(_FORGET, (age_seconds,))
    await conn.execute(_FORGET_LANES)
    await conn.execute(_FORGET_BUCKETS, (age_seconds,))


def _named(names: Sequence[GateName]) -> dict[str, list[str]]:
    return {"providers": [name.provider for name in names], "keys": [name.key for name in names]}


def _gate(row: Sequence[Any], lost: Sequence[str]) -> Gate:
    (
        provider,
        key,
        state,
        failures,
        successes,
        opened,
        failed,
        trials,
        tokens,
        filled,
        blocked,
        total,
        rejected,
        since,
    ) = row
    breaker = Breaker(BreakerState(state), failures, successes, opened, failed, frozenset(trials))
    return Gate(
        GateName(provider, key),
        breaker.without(lost),
        TokenBucket(tokens, filled, blocked),
        total,
        rejected,
        since,
    )


def _row(gate: Gate) -> tuple[Any, ...]:
    breaker, bucket = gate.breaker, gate.bucket
    return (
        *gate.name,
        breaker.state.value,
        breaker.failure_count,
        breaker.success_count,
        breaker.opened_at,
        breaker.last_failure_at,
        columns.array(sorted(breaker.trials)),
        bucket.tokens,
        bucket.filled_at,
        bucket.blocked_until,
        gate.total_calls,
        gate.rejected_calls,
        gate.waiting_since,
    )
