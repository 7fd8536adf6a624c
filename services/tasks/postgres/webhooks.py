"""Deliveries of webhooks: written with their change, claimed by one sender at a time, logged.

The database's clock decides what is due. A delivery that waits for its turn behind an earlier event of its entity is
never claimed; it is due when that one is, so that it is not looked at in vain.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from uuid import UUID

from psycopg.types.json import Jsonb

from meshkit.db import Connection, Database
from services.tasks.postgres.planning import HOT, PLANNED_ANEW
from services.tasks.webhooks.domain import (
    LEASE,
    ClaimedDelivery,
    ClaimRoom,
    DeliveryAttempt,
    DeliveryFailure,
    DeliveryRecord,
    DeliveryStatus,
    DeliveryVerdict,
    NewDelivery,
    ReceiverAnswer,
    Secret,
    new_secret,
)

_INSERT = """
INSERT INTO webhook_deliveries
    (id, tenant, entity_id, entity_version, event_type, url, target, body, media, traceparent, status, created_at,
    due_at)
SELECT d.*, 'PENDING', now(), now()
FROM unnest(%b::uuid[], %b::text[], %b::uuid[], %b::bigint[], %b::text[], %b::text[], %b::text[],
    %b::bytea[], %b::jsonb[], %b::text[]) AS d
ON CONFLICT (id) DO NOTHING
"""

# First the tenants, by skipping through the index, and of each that has room its targets; then a few deliveries of each
# target: neither a long queue nor a tenant that has its share costs more. Who has the fewest under way comes first.
# Rows are locked only once they are chosen; one that another sender took meanwhile is passed over. OFFSET keeps the
# look for earlier events on the index of entities: by tenant it would read all that waits for every delivery.
_CLAIM = """
WITH RECURSIVE tenants (tenant) AS (
    (SELECT d.tenant FROM webhook_deliveries d WHERE d.status = 'PENDING' ORDER BY d.tenant LIMIT 1)
    UNION ALL
    SELECT (SELECT d.tenant FROM webhook_deliveries d WHERE d.status = 'PENDING' AND d.tenant > t.tenant
            ORDER BY d.tenant LIMIT 1)
    FROM tenants t WHERE t.tenant IS NOT NULL
), lanes (tenant, under_way, target) AS (
    SELECT o.tenant, o.under_way, (
        SELECT d.target FROM webhook_deliveries d WHERE d.status = 'PENDING' AND d.tenant = o.tenant
        ORDER BY d.target LIMIT 1)
    FROM (
        SELECT t.tenant, coalesce((%(tenants)s::jsonb ->> t.tenant)::integer, 0) AS under_way
        FROM tenants t WHERE t.tenant IS NOT NULL
    ) o WHERE o.under_way < %(per_tenant)s
    UNION ALL
    SELECT l.tenant, l.under_way, (
        SELECT d.target FROM webhook_deliveries d
        WHERE d.status = 'PENDING' AND d.tenant = l.tenant AND d.target > l.target
        ORDER BY d.target LIMIT 1)
    FROM lanes l WHERE l.target IS NOT NULL
), found AS (
    SELECT n.id, n.due_at, l.tenant, l.under_way,
        held.count + row_number() OVER (PARTITION BY l.tenant, l.target ORDER BY n.due_at) AS place
    FROM lanes l
    CROSS JOIN LATERAL (
        SELECT coalesce((%(lanes)s::jsonb -> l.tenant ->> l.target)::integer, 0) AS count
    ) held
    CROSS JOIN LATERAL (
        SELECT d.id, d.due_at FROM webhook_deliveries d
        WHERE d.status = 'PENDING' AND d.tenant = l.tenant AND d.target = l.target AND d.due_at <= now() + %(ahead)s
            AND NOT EXISTS (
                SELECT FROM (
                    SELECT e.url, e.tenant, e.entity_version, e.id FROM webhook_deliveries e
                    WHERE e.status = 'PENDING' AND e.entity_id = d.entity_id OFFSET 0
                ) e WHERE e.url = d.url AND e.tenant = d.tenant AND (e.entity_version, e.id) < (d.entity_version, d.id)
            )
        ORDER BY d.due_at
        LIMIT greatest(0, %(per_lane)s - held.count)
    ) n
    WHERE l.target IS NOT NULL
), ranked AS (
    SELECT f.id, f.due_at, f.under_way + row_number() OVER (PARTITION BY f.tenant ORDER BY f.place, f.due_at) AS turn
    FROM found f
), chosen AS (
    SELECT r.id FROM ranked r WHERE r.turn <= %(per_tenant)s ORDER BY r.turn, r.due_at LIMIT %(room)s
), due AS (
    SELECT d.place FROM chosen c
    CROSS JOIN LATERAL (
        SELECT d.ctid AS place FROM webhook_deliveries d
        WHERE d.id = c.id AND d.status = 'PENDING' AND d.due_at <= now() + %(ahead)s
        FOR UPDATE OF d SKIP LOCKED
    ) d
)
UPDATE webhook_deliveries d SET lease = gen_random_uuid(), due_at = now() + %(ahead)s + %(lease)s
FROM due WHERE d.ctid = due.place
RETURNING d.id, d.lease, d.tenant, d.url, d.target, d.body, d.media, d.tries, now() + %(ahead)s,
    EXISTS (SELECT FROM webhook_disabled x WHERE x.tenant = d.tenant AND x.url = d.url),
    coalesce(nullif(d.traceparent, ''), (SELECT t.traceparent FROM tasks t WHERE t.id = d.entity_id), '')
"""

_KEYS = """
SELECT tenant, key FROM webhook_secrets
WHERE tenant = ANY(%b) AND (expires_at IS NULL OR expires_at > now() + %s)
ORDER BY tenant, expires_at DESC NULLS FIRST
"""

_FINISH = """
UPDATE webhook_deliveries SET
    status = %(status)s, failure = %(failure)s, lease = NULL,
    tries = tries + %(sent)s, attempt_count = attempt_count + %(sent)s,
    last_status_code = CASE WHEN %(sent)s > 0 THEN %(status_code)s ELSE last_status_code END,
    last_error = CASE WHEN %(sent)s > 0 THEN %(error)s ELSE last_error END,
    due_at = now() + %(ahead)s + %(wait)s::interval,
    ended_at = CASE WHEN %(wait)s::interval IS NULL THEN now() + %(ahead)s END
WHERE id = %(id)s AND lease = %(lease)s
RETURNING tenant, entity_id, url, entity_version, attempt_count, due_at
"""

_EXTEND = """
UPDATE webhook_deliveries SET due_at = now() + %s + %s WHERE id = ANY(%b) AND lease = ANY(%b) RETURNING id
"""

# Found by their entity, then by their keys, whatever the planner knows of the table: by tenant it would read all that
# waits. OFFSET keeps the other conditions out of the choice.
_FOLLOWERS = """
UPDATE webhook_deliveries SET due_at = coalesce(%(due_at)s::timestamptz, now() + %(ahead)s)
WHERE id = ANY(ARRAY(
    SELECT e.id FROM (
        SELECT f.id, f.tenant, f.url, f.entity_version FROM webhook_deliveries f
        WHERE f.status = 'PENDING' AND f.entity_id = %(entity)s OFFSET 0
    ) e
    WHERE e.tenant = %(tenant)s AND e.url = %(url)s AND (e.entity_version, e.id) > (%(version)s, %(id)s)
)) AND status = 'PENDING' AND lease IS NULL
"""

_REDELIVER = """
UPDATE webhook_deliveries SET status = 'PENDING', failure = NULL, ended_at = NULL, tries = 0,
    due_at = CASE WHEN lease IS NULL THEN now() + %s ELSE due_at END
WHERE id = %s RETURNING tenant, url
"""

_COLUMNS = (
    "id, tenant, entity_id, entity_version, event_type, url, status, failure, attempt_count, last_status_code, "
    "last_error, created_at, due_at, ended_at, body, media"
)

_LIST = f"""
SELECT {_COLUMNS} FROM webhook_deliveries
WHERE (%(tenant)s::text IS NULL OR tenant = %(tenant)s) AND (%(status)s::text IS NULL OR status = %(status)s)
    AND (%(entity)s::uuid IS NULL OR entity_id = %(entity)s)
ORDER BY created_at DESC, id DESC OFFSET %(skip)s LIMIT %(limit)s
"""  # noqa: S608 -- fixed names


async def insert(conn: Connection, deliveries: Sequence[NewDelivery]) -> None:
    """Write deliveries in the transaction of their change; those that exist stay as they are.

    Args:
        conn: Connection with that transaction.
        deliveries: The deliveries.
    """
    if deliveries:
        rows = [
            (
                *(one.id, one.tenant, one.entity_id, one.entity_version, one.event_type, one.url, one.target),
                *(one.body, Jsonb(one.media) if one.media else None, one.traceparent),
            )
            for one in deliveries
        ]
        await conn.execute(_INSERT, [list(column) for column in zip(*rows, strict=True)])


class PostgresWebhooks:
    """Deliveries and secrets of webhooks.

    Args:
        db: The service's database, migrated.
        ahead: How far the time of webhooks runs ahead of the database's; tests let days pass by it.
    """

    def __init__(self, db: Database, ahead: Callable[[], timedelta] = timedelta) -> None:
        self._db = db
        self._ahead = ahead

    async def enqueue(self, delivery: NewDelivery) -> None:
        """Write a delivery unless it exists."""

        async def body() -> None:
            async with self._db.transaction() as conn:
                await insert(conn, [delivery])

        await self._db.retrying(body)

    async def claim(self, room: ClaimRoom) -> list[ClaimedDelivery]:
        """Take deliveries that are due: those of tenants with the fewest under way first."""
        lanes: dict[str, dict[str, int]] = {}
        for lane, count in room.lanes.items():
            lanes.setdefault(lane.tenant, {})[lane.target] = count
        arguments = {
            "ahead": self._ahead(),
            "lease": LEASE,
            "room": room.deliveries,
            "per_tenant": room.per_tenant,
            "per_lane": room.per_lane,
            "tenants": Jsonb(dict(room.tenants)),
            "lanes": Jsonb(lanes),
        }
        async with self._db.pipeline(settings=PLANNED_ANEW) as conn:
            rows = await (await conn.execute(_CLAIM, arguments)).fetchall()
            keys = await self._keys(conn, sorted({row[2] for row in rows}))
        return [ClaimedDelivery(*(*row, keys[row[2]])) for row in rows]

    async def extend(self, leases: Mapping[UUID, UUID]) -> set[UUID]:
        """Keep deliveries that are under way, given with their leases; which of them are still the caller's."""
        async with self._db.pipeline(settings=HOT) as conn:
            cursor = await conn.execute(_EXTEND, (self._ahead(), LEASE, list(leases.keys()), list(leases.values())))
            return {row[0] for row in await cursor.fetchall()}

    async def finish(self, claimed: ClaimedDelivery, answer: ReceiverAnswer | None, verdict: DeliveryVerdict) -> bool:
        """Write the result of a delivery and let the entity's next one follow.

        Args:
            claimed: The delivery.
            answer: What the receiver answered; None where nothing was sent.
            verdict: What follows.

        Returns:
            Whether the delivery was still the caller's.
        """

        async def body() -> bool:
            async with self._db.pipeline(settings=HOT) as conn:
                return await self._finish(conn, claimed, answer, verdict)

        return await self._db.retrying(body)

    async def redeliver(self, delivery_id: UUID) -> None:
        """Send a delivery again, and enable its address."""
        async with self._db.transaction() as conn:
            cursor = await conn.execute(_REDELIVER, (self._ahead(), delivery_id))
            row = await cursor.fetchone()
            if row is not None:
                await conn.execute("DELETE FROM webhook_disabled WHERE tenant = %s AND url = %s", row)

    async def get(self, delivery_id: UUID) -> DeliveryRecord | None:
        """Return a delivery."""
        async with self._db.connection() as conn:
            cursor = await conn.execute(f"SELECT {_COLUMNS} FROM webhook_deliveries WHERE id = %s", (delivery_id,))  # noqa: S608 -- constants
            row = await cursor.fetchone()
        return None if row is None else DeliveryRecord(*row)

    async def attempts(self, delivery_id: UUID) -> list[DeliveryAttempt]:
        """Return attempts at a delivery, oldest first."""
        async with self._db.connection() as conn:
            cursor = await conn.execute(
                "SELECT started_at, duration_seconds, status_code, error FROM webhook_attempts "
                "WHERE delivery_id = %s ORDER BY number",
                (delivery_id,),
            )
            return [DeliveryAttempt(*row) for row in await cursor.fetchall()]

    async def list_deliveries(
        self, tenant: str | None, status: DeliveryStatus | None, entity_id: UUID | None, skip: int, limit: int
    ) -> list[DeliveryRecord]:
        """Deliveries, newest first."""
        arguments = {
            "tenant": tenant,
            "status": None if status is None else status.value,
            "entity": entity_id,
            "skip": skip,
            "limit": limit,
        }
        async with self._db.connection() as conn:
            cursor = await conn.execute(_LIST, arguments)
            return [DeliveryRecord(*row) for row in await cursor.fetchall()]

    async def secret(self, tenant: str) -> Secret:
        """Return the secret that signs a tenant's webhooks now; made where there is none."""
        async with self._db.transaction() as conn:
            return await self._present(conn, tenant)

    async def rotate(self, tenant: str, overlap: timedelta) -> Secret:
        """Make a new secret; the former one signs beside it for the overlap."""
        async with self._db.transaction() as conn:
            await self._present(conn, tenant)
            await conn.execute(
                "UPDATE webhook_secrets SET expires_at = now() + %s WHERE tenant = %s AND expires_at IS NULL",
                (self._ahead() + overlap, tenant),
            )
            return await self._present(conn, tenant)

    async def forget_secrets(self) -> None:
        """Delete secrets that sign no more."""
        async with self._db.transaction() as conn:
            await conn.execute("DELETE FROM webhook_secrets WHERE expires_at < now() + %s", (self._ahead(),))

    async def _finish(
        self, conn: Connection, claimed: ClaimedDelivery, answer: ReceiverAnswer | None, verdict: DeliveryVerdict
    ) -> bool:
        cursor = await conn.execute(
            _FINISH,
            {
                "id": claimed.id,
                "lease": claimed.lease,
                "status": verdict.status.value,
                "failure": None if verdict.failure is None else verdict.failure.value,
                "sent": 0 if answer is None else 1,
                "status_code": None if answer is None else answer.status_code,
                "error": None if answer is None else answer.error,
                "wait": verdict.wait,
                "ahead": self._ahead(),
            },
        )
        row = await cursor.fetchone()
        if row is None:
            return False
        tenant, entity, url, version, number, due_at = row
        if answer is not None:
            await conn.execute(
                "INSERT INTO webhook_attempts (delivery_id, number, started_at, duration_seconds, status_code, error) "
                "VALUES (%s, %s, %s, %s, %s, %s)",
                (claimed.id, number, claimed.now, answer.seconds, answer.status_code, answer.error),
            )
        if verdict.failure is DeliveryFailure.GONE:
            await conn.execute(
                "INSERT INTO webhook_disabled (tenant, url, disabled_at) VALUES (%s, %s, now()) ON CONFLICT DO NOTHING",
                (tenant, url),
            )
        await conn.execute(
            _FOLLOWERS,
            {
                "entity": entity,
                "tenant": tenant,
                "url": url,
                "version": version,
                "id": claimed.id,
                "due_at": due_at,
                "ahead": self._ahead(),
            },
        )
        return True

    async def _keys(self, conn: Connection, tenants: Sequence[str]) -> dict[str, list[str]]:
        keys: dict[str, list[str]] = {}
        if tenants:
            cursor = await conn.execute(_KEYS, (list(tenants), self._ahead()))
            for tenant, key in await cursor.fetchall():
                keys.setdefault(tenant, []).append(key)
        for tenant in tenants:
            if tenant not in keys:
                keys[tenant] = [(await self._present(conn, tenant)).key]
        return keys

    async def _present(self, conn: Connection, tenant: str) -> Secret:
        # Of two calls that make the first secret at once, the second waits and returns the first one's.
        await conn.execute(
            "INSERT INTO webhook_secrets (tenant, key, created_at) SELECT %s, %s, now() + %s WHERE NOT EXISTS "
            "(SELECT FROM webhook_secrets WHERE tenant = %s AND expires_at IS NULL) ON CONFLICT DO NOTHING",
            (tenant, new_secret(), self._ahead(), tenant),
        )
        cursor = await conn.execute(
            "SELECT key, created_at FROM webhook_secrets WHERE tenant = %s AND expires_at IS NULL", (tenant,)
        )
        [row] = await cursor.fetchall()
        return Secret(*row)
