"""Ends of attempts: completed, failed, expired, handed back, cancelled.

Before: the task is EXECUTING, and its row names the session and the number of the attempt. Both guard the UPDATE; a row
that does not match is left as it is, and the caller is told that the attempt was not the session's any more.

After, in the same transaction: the task is PENDING or terminal and names no session; the attempt has a row with an
outcome, which never changes again; the change is in the outbox; the counters tell how many tasks wait; objects that a
lost attempt may still write are noted for a sweep.

Lock order, the same for every transaction here: the session (whoever ends one has locked it), then tasks in the order
of their ids, or with SKIP LOCKED in any order, then the rows of `counters`, once and last. So `counters.apply` is
called once in a transaction, for all tasks together.

What follows a lost attempt is decided by `domain.after_loss`; this module only writes it. `lose`, `lose_many` and
`cancel` are for callers that hold the task's row lock or take it here; `_lose` and `_end_attempt` leave the counters to
their caller, who must apply the returned changes.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from uuid import UUID

from meshkit.db import Connection
from meshkit.logging import get_logger
from meshkit.pipeline import Pipeline
from services.tasks.catalog import LOCAL, prefix_of
from services.tasks.domain import (
    MAX_ERRORS,
    AttemptLoss,
    AttemptOutcome,
    AttemptRef,
    ErrorCategory,
    FallBack,
    JobKind,
    Requeue,
    RetryPolicy,
    TaskRecord,
    TaskStatus,
    after_loss,
    clip_error,
)
from services.tasks.fallbacks import taken_over
from services.tasks.postgres import announcements, columns, counters, service_requests
from services.tasks.scheduling.fairness import correction, weight_of
from services.tasks.store import AttemptEnd, CompletedAttempt
from services.tasks.usage.domain import DeviceUse

_log = get_logger(__name__)

# An attempt gets its row when it ends; until then its task's row tells of it. A row that exists already was written by
# an earlier release, at the lease.
_ATTEMPT = (
    "task_id, attempt, session, executor_instance, started_at, ended_at, outcome, device_seconds, "
    "provider_type, device, model"
)
_KEEP_ATTEMPT = """
ON CONFLICT (task_id, attempt) DO UPDATE SET
    ended_at = excluded.ended_at, outcome = excluded.outcome, error = excluded.error,
    error_category = excluded.error_category, device_seconds = excluded.device_seconds,
    provider_type = excluded.provider_type, device = excluded.device, model = excluded.model
"""

# Rows are locked one at a time, in the order of the arrays, which is that of their ids as in every transaction: rows
# unnested in a list of columns keep their order, and the lock keeps the subquery from being joined in another way. Rows
# are changed where they were found, so that no plan can read more of the table. IS NOT DISTINCT serves the same: it
# keeps the planner from the index by session, which holds everything that the session has ended.
_COMPLETE = f"""
WITH reported AS (
    SELECT r.*, t.place
    FROM (SELECT unnest(%b::uuid[]) AS id, unnest(%b::integer[]) AS attempt, unnest(%b::uuid[]) AS session,
        unnest(%b::bytea[]) AS result, unnest(%b::text[]) AS objects, unnest(%b::text[]) AS errors,
        unnest(%b::float8[]) AS seconds, unnest(%b::text[]) AS device, unnest(%b::text[]) AS model) r
    CROSS JOIN LATERAL (SELECT t.ctid AS place FROM tasks t WHERE t.id = r.id FOR UPDATE) t
), done AS (
    UPDATE tasks t SET
        status = 'COMPLETED', version = t.version + 1, progress = 100,
        completed_at = {columns.ENDED_AT}, updated_at = {columns.ENDED_AT},
        lease_session = NULL, lease_sequence = NULL, missing_since = NULL, error_category = NULL, result = r.result,
        result_objects = r.objects::text[],
        errors = (t.errors || r.errors::text[])
            [greatest(1, cardinality(t.errors) + cardinality(r.errors::text[]) + 1 - {MAX_ERRORS}):]
    FROM reported r
    WHERE t.ctid = r.place AND t.status = 'EXECUTING' AND t.attempt = r.attempt
        AND t.lease_session IS NOT DISTINCT FROM r.session
    RETURNING {columns.SELECT_T}, r.session, r.seconds, r.device, r.model
), noted AS (
    INSERT INTO attempts ({_ATTEMPT})
    SELECT id, attempt, session, coalesce(executor_instance, ''), leased_at, completed_at, status,
        seconds, provider_type, device, model FROM done
    {_KEEP_ATTEMPT}
)
SELECT {columns.SELECT}, seconds FROM done
"""  # noqa: S608 -- fixed names

_REQUEUE = f"""
UPDATE tasks t SET
    status = 'PENDING', version = t.version + 1, updated_at = statement_timestamp(),
    lease_session = NULL, lease_sequence = NULL, leased_at = NULL, missing_since = NULL,
    executor_type = NULL, executor_instance = NULL,
    not_before = CASE WHEN %(delay)s > 0 THEN statement_timestamp() + %(delay)s * interval '1 second' END,
    retry_count = %(retries)s, released = t.released + %(releases)s,
    progress_at_retry = CASE WHEN %(releases)s = 0 THEN t.progress ELSE t.progress_at_retry END,
    is_resumed = t.is_resumed OR %(resumed)s,
    resume_attempt_count = t.resume_attempt_count + %(resumed)s::integer,
    last_resume_attempt = CASE WHEN %(resumed)s THEN statement_timestamp() ELSE t.last_resume_attempt END,
    errors = (t.errors || %(errors)s::text[])[greatest(1, cardinality(t.errors) + 2 - {MAX_ERRORS}):]
WHERE t.id = %(id)s AND t.status = 'EXECUTING' AND t.attempt = %(attempt)s AND t.lease_session = %(session)s
RETURNING {columns.SELECT_T}
"""  # noqa: S608 -- fixed names

# What the fallback costs is charged where it waits.
_FALL_BACK = f"""
UPDATE tasks t SET
    status = 'PENDING', version = t.version + 1, updated_at = statement_timestamp(), fallback = 'TAKEN',
    provider_type = %(provider_type)s, lane = %(lane)s, queue_name = %(queue_name)s, spec = %(spec)s, body = %(body)s,
    lease_session = NULL, lease_sequence = NULL, leased_at = NULL, missing_since = NULL,
    executor_type = NULL, executor_instance = NULL, not_before = NULL, retry_count = 0, released = 0, charged = 0,
    errors = (t.errors || %(errors)s::text[])[greatest(1, cardinality(t.errors) + 2 - {MAX_ERRORS}):]
WHERE t.id = %(id)s AND t.fallback = 'AVAILABLE' AND t.status = %(status)s AND t.attempt = %(attempt)s
    AND t.lease_session IS NOT DISTINCT FROM %(session)s
RETURNING {columns.SELECT_T}
"""  # noqa: S608 -- fixed names

_FAIL = f"""
UPDATE tasks t SET
    status = 'FAILED', version = t.version + 1,
    completed_at = {columns.ENDED_AT}, updated_at = {columns.ENDED_AT},
    lease_session = NULL, lease_sequence = NULL, missing_since = NULL, error_category = %(category)s,
    errors = (t.errors || %(errors)s::text[])[greatest(1, cardinality(t.errors) + 2 - {MAX_ERRORS}):]
WHERE t.id = %(id)s AND t.status = 'EXECUTING' AND t.attempt = %(attempt)s AND t.lease_session = %(session)s
RETURNING {columns.SELECT_T}
"""  # noqa: S608 -- fixed names

_END_ATTEMPT = f"""
INSERT INTO attempts ({_ATTEMPT}, error, error_category)
VALUES (%(id)s, %(attempt)s, %(session)s, coalesce(%(executor)s, ''), %(started_at)s,
    greatest(statement_timestamp(), %(started_at)s::timestamptz), %(outcome)s, %(seconds)s,
    %(provider)s, %(device)s, %(model)s, %(error)s, %(category)s)
{_KEEP_ATTEMPT} WHERE attempts.outcome IS NULL
"""  # noqa: S608 -- fixed names

_CANCEL = f"""
UPDATE tasks t SET
    status = 'CANCELLED', version = t.version + 1,
    completed_at = {columns.ENDED_AT}, updated_at = {columns.ENDED_AT}, not_before = NULL,
    lease_session = NULL, lease_sequence = NULL, missing_since = NULL, error_category = 'CANCELLED'
WHERE t.id = %s AND t.status IN ('PENDING', 'EXECUTING')
RETURNING {columns.SELECT_T}
"""  # noqa: S608 -- fixed names


# A replica of an earlier release may have ended an attempt that this one leased, and left no row of it: then the task's
# row tells. The number of an attempt belongs to one session alone.
_REPORTED = """
SELECT FROM attempts
WHERE task_id = %(id)s AND attempt = %(attempt)s AND session = %(session)s AND outcome = %(outcome)s
UNION ALL
SELECT FROM tasks t WHERE t.id = %(id)s AND t.attempt = %(attempt)s AND t.status = %(outcome)s
    AND NOT EXISTS (SELECT FROM attempts a WHERE a.task_id = t.id AND a.attempt = t.attempt)
"""


_NOTE_LATE_USE = """
UPDATE attempts SET device_seconds = %s, device = %s, model = %s
WHERE task_id = %s AND attempt = %s AND session = %s AND outcome IN ('CANCELLED', 'EXPIRED') AND device_seconds = 0
"""


async def complete(
    conn: Pipeline, completions: Sequence[CompletedAttempt], weights: Mapping[str, float]
) -> list[AttemptEnd]:
    """End attempts with their results; see `store.TaskStore.complete_many`."""
    done = await _complete(conn, completions)
    late = [item for item in completions if item.ref.job_id not in done]
    if late:
        # A row that another transaction changed while this one waited for its lock has moved: look it up again.
        done |= await _complete(conn, late)
    await announcements.changed(conn, [record for record, _ in done.values()])
    for record, _ in done.values():
        if record.attempt > 1:
            await note_sweep(conn, record)
    await counters.apply(conn, [_settle(record, seconds, weights) for record, seconds in done.values()])
    ended: list[AttemptEnd] = []
    taken: set[UUID] = set()
    for item in completions:
        found = done.get(item.ref.job_id)
        if found is not None and found[0].attempt == item.ref.attempt and item.ref.job_id not in taken:
            taken.add(item.ref.job_id)
            ended.append(AttemptEnd(found[0]))
            continue
        async with conn.server_settings():
            repeated = await was_reported(conn, item.ref, item.session, AttemptOutcome.COMPLETED)
        ended.append(AttemptEnd(None, repeated=repeated))
    return ended


async def _complete(conn: Connection, completions: Sequence[CompletedAttempt]) -> dict[UUID, tuple[TaskRecord, float]]:
    """Return the tasks that were completed, each with its device seconds."""
    reported = sorted(
        (
            item.ref.job_id,
            item.ref.attempt,
            item.session,
            item.result,
            columns.array(item.objects),
            columns.array(item.errors),
            *item.used,
        )
        for item in completions
    )
    cursor = await conn.execute(_COMPLETE, [list(column) for column in zip(*reported, strict=True)], binary=True)
    return {row[0]: (columns.record(row[:-1]), row[-1]) for row in await cursor.fetchall()}


async def lose(
    conn: Connection,
    record: TaskRecord,
    loss: AttemptLoss,
    policy: RetryPolicy,
    weights: Mapping[str, float] | None = None,
) -> TaskRecord | None:
    """End an attempt without a result: the task waits again, or has failed.

    Args:
        conn: A connection in a transaction that ends no other attempt; `lose_many` is for several.
        record: The task, executing, its row locked; its attempt and session guard the change.
        loss: Why the attempt ended.
        policy: How often it may be tried.
        weights: Shares of tenants, where the attempt's cost is known now.

    Returns:
        The task after the change, or None where the attempt was not the session's any more.
    """
    after, changes = await _lose(conn, record, loss, policy, weights)
    await counters.apply(conn, changes)
    return after


async def lose_many(
    conn: Connection, losses: Iterable[tuple[TaskRecord, AttemptLoss]], policy: RetryPolicy
) -> list[TaskRecord]:
    """End attempts without results, as `lose` does one; those that are not the session's any more are skipped."""
    ended: list[TaskRecord] = []
    changes: list[counters.CounterChange] = []
    for record, loss in losses:
        after, changed = await _lose(conn, record, loss, policy)
        changes.extend(changed)
        if after is not None:
            ended.append(after)
    # Once for all of them: the tenants' rows are locked in their order only within one statement.
    await counters.apply(conn, changes)
    return ended


async def _lose(
    conn: Connection,
    record: TaskRecord,
    loss: AttemptLoss,
    policy: RetryPolicy,
    weights: Mapping[str, float] | None = None,
) -> tuple[TaskRecord | None, list[counters.CounterChange]]:
    """End one attempt; the caller applies the returned changes of counters, once in its transaction."""
    # A device asks nobody, and whoever reports a failure has noted the end of what it asked.
    asked = record.provider_type != LOCAL and loss.outcome is AttemptOutcome.EXPIRED
    accepted = asked and await service_requests.has_accepted(conn, record)
    following = after_loss(record, loss, policy, accepted=accepted, spread=random.random())  # noqa: S311 -- jitter
    loss = following.loss
    guarded = {
        "id": record.id,
        "attempt": record.attempt,
        "session": record.lease_session,
        "errors": [clip_error(loss.message)] if loss.message else [],
    }
    after: TaskRecord | None
    if isinstance(following, FallBack):
        after = await _taken_over(conn, record, {**guarded, "status": TaskStatus.EXECUTING.value})
    elif isinstance(following, Requeue):
        more = {
            "delay": following.delay.total_seconds(),
            "retries": following.retries,
            "releases": 1 if following.free else 0,
            "resumed": following.resumed,
        }
        after = await _changed(conn, _REQUEUE, {**guarded, **more})
    else:
        after = await _changed(conn, _FAIL, {**guarded, "category": following.category.value})
        if after is not None and record.provider_type != LOCAL:
            await service_requests.close(conn, record.id)
    if after is None:
        return None, []
    await _end_attempt(conn, record, loss)
    await announcements.changed(conn, [after])
    if after.status == TaskStatus.FAILED:
        await note_sweep(conn, after)
    changes = [counters.entering(after)] if counters.waits(after) else []
    if weights is not None and after.status == TaskStatus.FAILED:
        changes.append(_settle(after, loss.used.seconds, weights))
    return after, changes


async def fall_back(conn: Connection, record: TaskRecord, message: str) -> TaskRecord | None:
    """Have a waiting task's fallback take over; the caller counts who waits.

    Args:
        conn: A connection in a transaction.
        record: The task, waiting, its row locked.
        message: Why, for the task's errors.

    Returns:
        The task after the change, or None where it has none that could.
    """
    guarded = {"id": record.id, "attempt": record.attempt, "session": None, "errors": [clip_error(message)]}
    after = await _taken_over(conn, record, {**guarded, "status": TaskStatus.PENDING.value})
    if after is not None:
        await announcements.changed(conn, [after])
    return after


async def _changed(conn: Connection, statement: str, values: Mapping[str, Any]) -> TaskRecord | None:
    row = await (await conn.execute(statement, values)).fetchone()
    return None if row is None else columns.record(row)


async def _taken_over(conn: Connection, record: TaskRecord, guarded: Mapping[str, Any]) -> TaskRecord | None:
    after = await _changed(conn, _FALL_BACK, {**guarded, **taken_over(record)._asdict()})
    if after is None:
        return None
    await service_requests.close(conn, record.id)
    _log.info("task_fell_back", task_id=str(after.id), former=record.provider_type, provider=after.provider_type)
    return after


async def cancel(conn: Connection, task_id: UUID) -> tuple[TaskRecord, TaskRecord] | None:
    """Cancel a task unless it ended.

    Returns:
        The task before and after, the same where it had ended; None where there is none.
    """
    before = await lock(conn, task_id)
    if before is None:
        return None
    cursor = await conn.execute(_CANCEL, (task_id,))
    row = await cursor.fetchone()
    if row is None:
        return before, before
    after = columns.record(row)
    if before.status == TaskStatus.EXECUTING:
        await _end_attempt(conn, before, AttemptLoss(AttemptOutcome.CANCELLED, "", ErrorCategory.CANCELLED))
    if before.attempt:
        await note_sweep(conn, after)
    await announcements.changed(conn, [after])
    await counters.apply(conn, [counters.leaving(before)] if counters.waits(before) else [])
    return before, after


async def lock(conn: Connection, task_id: UUID) -> TaskRecord | None:
    """Return a task, its row locked."""
    cursor = await conn.execute(f"SELECT {columns.SELECT} FROM tasks WHERE id = %s FOR UPDATE", (task_id,))  # noqa: S608 -- constants
    row = await cursor.fetchone()
    return None if row is None else columns.record(row)


async def lock_leases(conn: Connection, session_id: UUID, ids: Sequence[UUID] | None = None) -> list[TaskRecord]:
    """Lock the tasks that a session holds, all or some, in the order of their ids."""
    chosen = "AND id = ANY(%b)" if ids is not None else ""
    cursor = await conn.execute(
        f"SELECT {columns.SELECT} FROM tasks WHERE lease_session = %s {chosen} ORDER BY id FOR UPDATE",  # noqa: S608 -- constants
        (session_id, list(ids)) if ids is not None else (session_id,),
    )
    return [columns.record(row) for row in await cursor.fetchall()]


async def was_reported(conn: Connection, ref: AttemptRef, session: UUID, outcome: AttemptOutcome) -> bool:
    """Whether this session already ended this attempt so: the answer was lost, and the worker repeats its report."""
    cursor = await conn.execute(
        _REPORTED, {"id": ref.job_id, "attempt": ref.attempt, "session": session, "outcome": outcome.value}
    )
    return await cursor.fetchone() is not None


async def note_late_use(conn: Connection, ref: AttemptRef, session: UUID, used: DeviceUse) -> None:
    """Note what an attempt has used that was cancelled or lost before its worker could tell."""
    if used.seconds > 0:
        await conn.execute(_NOTE_LATE_USE, (*used, ref.job_id, ref.attempt, session))


async def note_sweep(conn: Connection, record: TaskRecord) -> None:
    """Note that the task's objects are to be swept later, when its lost attempts have stopped writing.

    Those of a job of another kind are its own service's.
    """
    if record.kind != JobKind.TASK:
        return
    await conn.execute(
        "INSERT INTO object_sweeps (task_id, tenant, prefix, due_at) VALUES (%s, %s, %s, now()) ON CONFLICT DO NOTHING",
        (record.id, record.tenant, prefix_of(record.task_type, record.id)),
    )


async def _end_attempt(conn: Connection, record: TaskRecord, loss: AttemptLoss) -> None:
    """Write the attempt's row; the task's own row was changed before, in this transaction, under its lock."""
    await conn.execute(
        _END_ATTEMPT,
        {
            "id": record.id,
            "attempt": record.attempt,
            "session": record.lease_session,
            "executor": record.executor_instance,
            "started_at": record.leased_at,
            "outcome": loss.outcome.value,
            "error": clip_error(loss.message) if loss.message else None,
            "category": loss.category.value if loss.category else None,
            "provider": record.provider_type,
            "seconds": loss.used.seconds,
            "device": loss.used.device,
            "model": loss.used.model,
        },
    )


def _settle(record: TaskRecord, seconds: float, weights: Mapping[str, float]) -> counters.CounterChange:
    # A worker that reports no device time leaves the estimate as it was.
    charge = correction(seconds, record.charged, weight_of(record.tenant, weights)) if seconds > 0 else 0.0
    return counters.CounterChange(record.queue_name, record.tenant, record.lane, charge=charge)
