"""The store of the training service on PostgreSQL: one method, one transaction."""

from __future__ import annotations

from uuid import UUID

from meshkit import idempotency
from meshkit.db import Connection, Database
from meshkit.idempotency import IdempotencyKey
from services.training.domain import LossRecord, SampleRecord, SaveRecord, TrainingRecord, ValidationRecord
from services.training.errors import state_is_gone, training_not_found
from services.training.postgres import columns, writes
from services.training.store import ChangeTraining, ObjectSweep, WebhookHandover

# Neighbouring steps share a point where there are more of them than points.
_LOSSES = """
WITH kept AS (SELECT step, loss FROM losses WHERE training_id = %(id)s AND step > %(after)s),
width AS (SELECT greatest(1, ceil(count(*) / %(points)s::float8))::integer AS steps FROM kept),
numbered AS (SELECT step, loss, (row_number() OVER (ORDER BY step) - 1) / (SELECT steps FROM width) AS place FROM kept)
SELECT max(step), avg(loss) FROM numbered GROUP BY place ORDER BY place
"""
# A training that another goes on from keeps what that one needs until it has ended. Rows are locked first: one that
# another began to go on from after a statement had begun is seen by the next statement alone.
_NOT_CONTINUED = "NOT EXISTS (SELECT FROM trainings c WHERE c.continues = t.id AND c.completed_at IS NULL)"
_LOCK_AGED = f"""
SELECT id FROM trainings t
WHERE completed_at < now() - %(age)s * interval '1 second' AND swept_at IS NULL AND {_NOT_CONTINUED}
ORDER BY completed_at LIMIT %(limit)s FOR UPDATE OF t SKIP LOCKED
"""  # noqa: S608 -- constants
_AGE_OUT = f"""
WITH aged AS (
    UPDATE trainings t SET swept_at = now(), resume_step = NULL, resume_objects = '{{}}', manifest_path = NULL
    WHERE id = ANY(%s) AND {_NOT_CONTINUED} RETURNING id, tenant
), noted AS (
    INSERT INTO object_sweeps (training_id, tenant, path, due_at)
    SELECT id, tenant, 'trainings/' || id || '/', now() FROM aged ON CONFLICT DO NOTHING
)
SELECT id FROM aged
"""  # noqa: S608 -- constants


class PostgresTrainingStore:
    """Implements `services.training.store.TrainingStore`.

    Args:
        db: The service's database, migrated.
        late_seconds: How long a late trainer may still write objects.
    """

    def __init__(self, db: Database, *, late_seconds: float = 120.0) -> None:
        self._db = db
        self._late = late_seconds

    async def create(self, record: TrainingRecord, key: IdempotencyKey | None, response: bytes) -> bytes | None:
        """Write a new training; the answer given before where the key was used for the same request."""

        async def body() -> bytes | None:
            async with self._db.transaction() as conn:
                if key is not None:
                    replay = await idempotency.claim(conn, record.tenant, key)
                    if replay is not None:
                        return replay
                if await _find(conn, record.id) is None:  # else a commit that was thought lost took place
                    await _keep_former(conn, record)
                    await writes.insert(conn, record)
                    await conn.execute("DELETE FROM object_sweeps WHERE training_id = %s AND is_intent", (record.id,))
                if key is not None:
                    await idempotency.store(conn, record.tenant, key, response)
            return None

        return await self._db.retrying(body)

    async def find_replay(self, tenant: str, key: IdempotencyKey) -> bytes | None:
        """Return the answer given before under a key, without claiming it."""
        async with self._db.connection() as conn:
            return await idempotency.find(conn, tenant, key)

    async def note_intent(self, training_id: UUID, tenant: str) -> None:
        """Have the objects of a training swept, should it never come to be."""
        async with self._db.transaction() as conn:
            await conn.execute(
                "INSERT INTO object_sweeps (training_id, tenant, path, due_at, is_intent) "
                "VALUES (%s, %s, 'trainings/' || %s || '/', now() + interval '15 minutes', true)",
                (training_id, tenant, training_id),
            )

    async def get(self, training_id: UUID) -> TrainingRecord | None:
        """Return a training."""
        async with self._db.connection() as conn:
            return await _find(conn, training_id)

    async def list_trainings(self, tenant: str | None, skip: int, limit: int) -> list[TrainingRecord]:
        """Trainings of a tenant, or of all, newest first."""
        chosen = "" if tenant is None else "WHERE tenant = %(tenant)s"
        async with self._db.connection() as conn:
            cursor = await conn.execute(
                f"SELECT {columns.SELECT} FROM trainings {chosen} "  # noqa: S608 -- fixed names
                "ORDER BY created_at DESC, id DESC OFFSET %(skip)s LIMIT %(limit)s",
                {"tenant": tenant, "skip": skip, "limit": limit},
            )
            return [columns.record(row) for row in await cursor.fetchall()]

    async def open_of(self, tenant: str) -> int:
        """Return how many trainings of a tenant have not ended."""
        async with self._db.connection() as conn:
            cursor = await conn.execute(
                "SELECT count(*) FROM trainings WHERE tenant = %s AND completed_at IS NULL", (tenant,)
            )
            [[count]] = await cursor.fetchall()
            return int(count)

    async def change(self, training_id: UUID, body: ChangeTraining) -> tuple[TrainingRecord, TrainingRecord] | None:
        """Change a training under its lock: the training before and after; None without such a one."""

        async def work() -> tuple[TrainingRecord, TrainingRecord] | None:
            async with self._db.transaction() as conn:
                before = await _find(conn, training_id, lock=True)
                wanted = None if before is None else body(before)
                if before is None or wanted is None:
                    return None if before is None else (before, before)
                return before, await writes.change(conn, before, wanted, self._late)

        return await self._db.retrying(work)

    async def dataset(self, training_id: UUID) -> bytes | None:
        """Return what a training learns from."""
        async with self._db.connection() as conn:
            cursor = await conn.execute("SELECT dataset FROM datasets WHERE training_id = %s", (training_id,))
            row = await cursor.fetchone()
            return None if row is None else bytes(row[0])

    async def losses(self, training_id: UUID, after_step: int, points: int) -> list[LossRecord]:
        """Losses after a step, in their order; where they are more than `points`, means of neighbours."""
        async with self._db.connection() as conn:
            cursor = await conn.execute(_LOSSES, {"id": training_id, "after": after_step, "points": points})
            return [LossRecord(*row) for row in await cursor.fetchall()]

    async def validation(self, training_id: UUID, after_step: int) -> list[ValidationRecord]:
        """Losses on the validation set after a step, in their order."""
        async with self._db.connection() as conn:
            cursor = await conn.execute(
                "SELECT step, bucket, loss FROM validation_losses WHERE training_id = %s AND step > %s "
                "ORDER BY step, bucket",
                (training_id, after_step),
            )
            return [ValidationRecord(*row) for row in await cursor.fetchall()]

    async def saves(self, training_id: UUID) -> list[SaveRecord]:
        """Return the adapters that are kept, oldest first."""
        async with self._db.connection() as conn:
            cursor = await conn.execute(
                "SELECT step, path, size, sha256, created_at FROM saves WHERE training_id = %s ORDER BY step",
                (training_id,),
            )
            return [SaveRecord(*row) for row in await cursor.fetchall()]

    async def samples(self, training_id: UUID) -> list[SampleRecord]:
        """Return the sample pictures, oldest first."""
        async with self._db.connection() as conn:
            cursor = await conn.execute(
                "SELECT step, index, prompt, seed, path FROM samples WHERE training_id = %s ORDER BY step, index",
                (training_id,),
            )
            return [SampleRecord(*row) for row in await cursor.fetchall()]

    async def unmade(self, limit: int) -> list[TrainingRecord]:
        """Return trainings whose job the tasks service may not have."""
        async with self._db.connection() as conn:
            cursor = await conn.execute(
                f"SELECT {columns.SELECT} FROM trainings WHERE completed_at IS NULL AND NOT job_made "  # noqa: S608 -- fixed names
                "ORDER BY created_at LIMIT %s",
                (limit,),
            )
            return [columns.record(row) for row in await cursor.fetchall()]

    async def open_jobs(self, after: UUID | None, limit: int) -> list[UUID]:
        """Return trainings that have a job and have not ended, by their identifiers, after one of them."""
        async with self._db.connection() as conn:
            cursor = await conn.execute(
                "SELECT id FROM trainings WHERE completed_at IS NULL AND job_made "
                "AND (%(after)s::uuid IS NULL OR id > %(after)s) ORDER BY id LIMIT %(limit)s",
                {"after": after, "limit": limit},
            )
            return [row[0] for row in await cursor.fetchall()]

    async def due_sweeps(self, limit: int) -> list[ObjectSweep]:
        """Return objects that are to be deleted now."""
        async with self._db.connection() as conn:
            cursor = await conn.execute(
                "SELECT training_id, tenant, path, due_at, is_intent FROM object_sweeps WHERE due_at <= now() "
                "ORDER BY due_at LIMIT %s",
                (limit,),
            )
            return [ObjectSweep(*row) for row in await cursor.fetchall()]

    async def forget_sweep(self, sweep: ObjectSweep) -> None:
        """Forget what was deleted."""
        async with self._db.transaction() as conn:
            await conn.execute(
                "DELETE FROM object_sweeps WHERE training_id = %s AND path = %s AND due_at = %s",
                (sweep.training_id, sweep.path, sweep.due_at),
            )

    async def age_out(self, age_seconds: float, limit: int) -> int:
        """Have the folders of trainings swept that ended so long ago and that none goes on from; return how many."""
        async with self._db.transaction() as conn:
            cursor = await conn.execute(_LOCK_AGED, {"age": age_seconds, "limit": limit})
            cursor = await conn.execute(_AGE_OUT, ([row[0] for row in await cursor.fetchall()],))
            ids = [row[0] for row in await cursor.fetchall()]
            for table in writes.KEPT:
                await conn.execute(f"DELETE FROM {table} WHERE training_id = ANY(%s)", (ids,))  # noqa: S608 -- fixed names
            return len(ids)

    async def handovers(self, limit: int) -> list[WebhookHandover]:
        """Return events that are to be handed in, oldest first."""
        async with self._db.connection() as conn:
            cursor = await conn.execute(
                "SELECT event_id, training_id, tenant, version, url, event_name, event FROM webhook_handovers "
                "ORDER BY position LIMIT %s",
                (limit,),
            )
            return [WebhookHandover(*row) for row in await cursor.fetchall()]

    async def forget_handover(self, event_id: UUID) -> None:
        """Forget an event that was handed in."""
        async with self._db.transaction() as conn:
            await conn.execute("DELETE FROM webhook_handovers WHERE event_id = %s", (event_id,))

    async def purge_keys(self) -> int:
        """Delete idempotency keys after their time; return how many."""
        return await idempotency.purge(self._db)


async def _keep_former(conn: Connection, record: TrainingRecord) -> None:
    """Keep the training that a new one goes on from as it was read, until the new one is there.

    Raises:
        MeshError: `NOT_FOUND` where it was deleted meanwhile, `CONFLICT` where its files were given up.
    """
    if record.continues is None:
        return
    query = "SELECT resume_step, swept_at IS NOT NULL FROM trainings WHERE id = %s FOR SHARE"
    cursor = await conn.execute(query, (record.continues,))
    row = await cursor.fetchone()
    if row is None:
        raise training_not_found(record.continues)
    step, is_swept = row
    if step != record.resume_step or (is_swept and record.manifest_path is not None):
        raise state_is_gone()


async def _find(conn: Connection, training_id: UUID, *, lock: bool = False) -> TrainingRecord | None:
    tail = " FOR UPDATE" if lock else ""
    cursor = await conn.execute(f"SELECT {columns.SELECT} FROM trainings WHERE id = %s{tail}", (training_id,))  # noqa: S608 -- constants
    row = await cursor.fetchone()
    return None if row is None else columns.record(row)
