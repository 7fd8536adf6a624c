"""Writing a training and what comes with its change, on the connection of one transaction."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from meshkit import outbox
from meshkit.db import Connection
from meshkit.outbox import OutboxEvent
from services.training import events
from services.training.domain import TrainingRecord
from services.training.postgres import columns
from services.training.store import TrainingChange

# What goes when the objects of a training go; its losses stay.
KEPT = ("saves", "samples", "datasets")
_INSERT = f"INSERT INTO trainings ({columns.SELECT}) VALUES ({', '.join(['%s'] * len(columns.NAMES))})"  # noqa: S608 -- fixed names
_UPDATE = (
    f"UPDATE trainings SET {', '.join(f'{name} = %s' for name in columns.MUTABLE)}, version = version + 1, "  # noqa: S608 -- fixed names
    f"updated_at = now() WHERE id = %s AND version = %s RETURNING {columns.SELECT}"
)
_DATASET = """
INSERT INTO datasets (training_id, dataset) VALUES (%s, %s)
ON CONFLICT (training_id) DO UPDATE SET dataset = excluded.dataset
"""
_LOSSES = """
INSERT INTO losses (training_id, step, loss) SELECT %s, l.step, l.loss
FROM unnest(%s::integer[], %s::float8[]) AS l (step, loss)
ON CONFLICT (training_id, step) DO UPDATE SET loss = excluded.loss
"""
_VALIDATION = """
INSERT INTO validation_losses (training_id, step, bucket, loss) SELECT %s, l.step, l.bucket, l.loss
FROM unnest(%s::integer[], %s::text[], %s::float8[]) AS l (step, bucket, loss)
ON CONFLICT (training_id, step, bucket) DO UPDATE SET loss = excluded.loss
"""
_SAVE = """
INSERT INTO saves (training_id, step, path, size, sha256) VALUES (%s, %s, %s, %s, %s)
ON CONFLICT (training_id, step) DO UPDATE SET path = excluded.path, size = excluded.size, sha256 = excluded.sha256
"""
_PRUNE = """
DELETE FROM saves WHERE training_id = %s AND step NOT IN (
    SELECT step FROM saves WHERE training_id = %s ORDER BY step DESC LIMIT %s)
RETURNING path
"""
_SAMPLE = """
INSERT INTO samples (training_id, step, index, prompt, seed, path) VALUES (%s, %s, %s, %s, %s, %s)
ON CONFLICT (training_id, step, index) DO UPDATE SET
    prompt = excluded.prompt, seed = excluded.seed, path = excluded.path
"""
_SWEEP = """
INSERT INTO object_sweeps (training_id, tenant, path, due_at)
SELECT %s, %s, p.path, now() + p.delay * interval '1 second' FROM unnest(%s::text[], %s::float8[]) AS p (path, delay)
ON CONFLICT DO NOTHING
"""
_HANDOVER = """
INSERT INTO webhook_handovers (event_id, training_id, tenant, version, url, event_name, event)
VALUES (%s, %s, %s, %s, %s, %s, %s)
"""


async def insert(conn: Connection, record: TrainingRecord) -> None:
    """Write a new training and tell of it."""
    await conn.execute(_INSERT, columns.values(record))
    await tell(conn, record, [("TrainingStatusEvent", events.training_changed(record))])


async def change(
    conn: Connection, before: TrainingRecord, wanted: TrainingChange, late_seconds: float
) -> TrainingRecord:
    """Write a change of a training whose row is locked.

    Args:
        conn: A connection in a transaction.
        before: The training as it is.
        wanted: What is to be written.
        late_seconds: How long a late trainer may still write.
    """
    cursor = await conn.execute(_UPDATE, (*columns.mutable_values(wanted.record), before.id, before.version))
    after = columns.record(await cursor.fetchone() or ())
    if wanted.forgets:
        for table in KEPT:
            await conn.execute(f"DELETE FROM {table} WHERE training_id = %s", (before.id,))  # noqa: S608 -- fixed names
    await _keep_points(conn, before.id, wanted)
    sweeps = [(path, 0.0) for path in (*wanted.sweeps, *wanted.late_sweeps)]
    sweeps += [(path, late_seconds) for path in wanted.late_sweeps]
    sweeps += [(path, 0.0) for path in await _keep_files(conn, before.id, wanted)]
    if sweeps:
        paths, delays = [path for path, _ in sweeps], [delay for _, delay in sweeps]
        await conn.execute(_SWEEP, (before.id, before.tenant, paths, delays))
    told = []
    if wanted.tells_preprocessing:
        told.append(("PreprocessingStatusEvent", events.preprocessing_changed(after)))
    if wanted.tells_training:
        told.append(("TrainingStatusEvent", events.training_changed(after)))
    await tell(conn, after, told)
    return after


async def _keep_points(conn: Connection, training_id: UUID, wanted: TrainingChange) -> None:
    if wanted.losses:
        # Of a step that is told twice, the last word counts.
        found = {one.step: one.loss for one in wanted.losses}
        await conn.execute(_LOSSES, (training_id, list(found), list(found.values())))
    if wanted.validation:
        points = {(one.step, one.bucket): one.loss for one in wanted.validation}
        steps, buckets = [step for step, _ in points], [bucket for _, bucket in points]
        await conn.execute(_VALIDATION, (training_id, steps, buckets, list(points.values())))


async def _keep_files(conn: Connection, training_id: UUID, wanted: TrainingChange) -> list[str]:
    """Write what is kept of objects; return the paths of those that go for it."""
    if wanted.dataset is not None:
        await conn.execute(_DATASET, (training_id, wanted.dataset))
    if wanted.sample is not None:
        one = wanted.sample
        await conn.execute(_SAMPLE, (training_id, one.step, one.index, one.prompt, one.seed, one.path))
    if wanted.save is None:
        return []
    save = wanted.save
    await conn.execute(_SAVE, (training_id, save.step, save.path, save.size, save.sha256))
    pruned = await conn.execute(_PRUNE, (training_id, training_id, wanted.saves_to_keep))
    return [row[0] for row in await pruned.fetchall()]


async def tell(conn: Connection, record: TrainingRecord, told: Sequence[tuple[str, OutboxEvent]]) -> None:
    """Write events for the mesh, and for the webhook of the training."""
    await outbox.insert(conn, [event for _, event in told])
    if record.webhook_url is None:
        return
    for name, event in told:
        await conn.execute(
            _HANDOVER,
            (event.event_id, record.id, record.tenant, record.version, record.webhook_url, name, event.payload),
        )
