"""The store of the tasks service on PostgreSQL: one method, one transaction."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from datetime import datetime
from typing import TypeVar
from uuid import UUID

from meshkit import idempotency
from meshkit.db import Connection, Database
from meshkit.idempotency import IdempotencyKey
from services.tasks.domain import (
    HANDED_BACK,
    AttemptLoss,
    AttemptOutcome,
    AttemptRecord,
    AttemptRef,
    ErrorCategory,
    RetryPolicy,
    SessionRecord,
    TaskRecord,
    WorkerLoad,
)
from services.tasks.errors import task_not_found
from services.tasks.owners import JobOwner
from services.tasks.postgres import (
    counters,
    creates,
    endings,
    fallbacks,
    gates,
    queries,
    service_requests,
    sessions,
    sweeps,
)
from services.tasks.postgres.gates import GateTable
from services.tasks.postgres.planning import HOT
from services.tasks.postgres.rounds import PostgresRound
from services.tasks.providers.domain import Gate, GateName, ProviderLimits
from services.tasks.providers.gates import GateView
from services.tasks.service_requests import NoteVerdict, ServiceRequestNote
from services.tasks.store import (
    AttemptEnd,
    CompletedAttempt,
    Created,
    Creation,
    LeaseState,
    ProgressNote,
    TaskFilter,
)
from services.tasks.usage.domain import DeviceUse

_T = TypeVar("_T")

# An answer carries so many: a task whose parts are tried again and again has more.
_MAX_SERVICE_REQUESTS = 1000


class PostgresTaskStore:
    """Implements `services.tasks.store.TaskStore`.

    Args:
        db: The service's database, migrated.
        page_bytes: Bytes of rows that one page of a list holds.
        limits: What the gates of providers are held to.
        settle_seconds: How long a new worker gets no lease: it may have been chosen to go while it started.
    """

    def __init__(
        self,
        db: Database,
        *,
        page_bytes: int = 16 * 1024 * 1024,
        limits: ProviderLimits | None = None,
        settle_seconds: float | None = None,
    ) -> None:
        self._db = db
        self._settle = settle_seconds
        self._page_bytes = page_bytes
        self._limits = limits or ProviderLimits()
        self._called: Counter[GateName] = Counter()  # by rounds that held no gate's row

    async def create_many(self, creations: Sequence[Creation]) -> list[Created | None]:
        """Write new tasks together; None for those whose idempotency key or identifier was taken."""
        async with self._db.pipeline(settings=HOT) as conn:
            taken = await creates.insert_many(conn, creations)
        return [None if index in taken else Created(creation.record) for index, creation in enumerate(creations)]

    async def create_one(self, creation: Creation) -> Created:
        """Write one task, or find the one that exists, or the answer given before."""

        async def body() -> Created:
            async with self._db.transaction() as conn:
                existing, replay = await creates.insert_one(conn, creation)
            if replay is not None:
                return Created(None, replay=replay)
            return Created(existing or creation.record, existed=existing is not None)

        return await self._db.retrying(body)

    async def find_replay(self, tenant: str, key: IdempotencyKey) -> bytes | None:
        """Return the answer stored under a key, if it is committed; CONFLICT where the key had another request."""
        async with self._db.connection() as conn:
            return await idempotency.find(conn, tenant, key)

    async def note_intent(self, record: TaskRecord, prefix: str) -> None:
        """Note that objects are about to be written for a task to come."""
        async with self._db.transaction() as conn:
            await creates.note_intent(conn, record, prefix)

    async def get(self, task_id: UUID) -> TaskRecord | None:
        """Return a task."""
        async with self._db.connection() as conn:
            return await queries.get(conn, task_id)

    async def list_tasks(self, which: TaskFilter, skip: int, limit: int) -> list[TaskRecord]:
        """Tasks, newest first; fewer where they are large."""
        async with self._db.connection() as conn:
            return await queries.list_tasks(conn, which, skip, limit, self._page_bytes)

    async def ahead(self, record: TaskRecord) -> int:
        """Tasks of its tenant, of its kind, that are served before a waiting task; 100 at most."""
        async with self._db.connection() as conn:
            return await queries.ahead(conn, record)

    async def attempts(self, task_id: UUID) -> list[AttemptRecord]:
        """Return a task's attempts, oldest first."""
        async with self._db.connection() as conn:
            return await queries.attempts(conn, task_id)

    async def modify(self, task_id: UUID, body: Callable[[TaskRecord], TaskRecord]) -> tuple[TaskRecord, TaskRecord]:
        """Change a task under its lock: the task before and after."""
        async with self._db.transaction() as conn:
            return await queries.modify(conn, task_id, body)

    async def cancel(self, task_id: UUID) -> tuple[TaskRecord, TaskRecord]:
        """Cancel a task unless it ended: the task before and after."""

        async def body() -> tuple[TaskRecord, TaskRecord]:
            async with self._db.transaction() as conn:
                result = await endings.cancel(conn, task_id)
            if result is None:
                raise task_not_found(task_id)
            return result

        return await self._db.retrying(body)

    async def remove(self, task_id: UUID) -> bool:
        """Remove the row of a task that ended, keeping its identifier from being used again."""
        async with self._db.transaction() as conn:
            return await queries.remove(conn, task_id)

    async def open_session(self, session: SessionRecord, ttl_seconds: float) -> None:
        """Open a worker's session."""
        async with self._db.transaction() as conn:
            await sessions.opened(conn, session, ttl_seconds, self._settle)

    async def session(self, session_id: UUID) -> SessionRecord | None:
        """Return an open session."""
        async with self._db.connection() as conn:
            return await sessions.find(conn, session_id)

    async def heartbeat(
        self,
        session_id: UUID,
        subject: str,
        held: Sequence[AttemptRef],
        *,
        draining: bool,
        load: WorkerLoad | None = None,
        ttl_seconds: float,
    ) -> list[LeaseState] | None:
        """Extend a session and acknowledge what it holds; the leases it has, or None without such a session."""
        async with self._db.transaction() as conn:
            return await sessions.heartbeat(
                conn, session_id, subject, held, draining=draining, load=load, ttl_seconds=ttl_seconds
            )

    async def note_missing(self, session_id: UUID, missing: Sequence[AttemptRef], found: Sequence[AttemptRef]) -> None:
        """Note which leases a heartbeat did not name, and which it named again."""
        async with self._db.transaction() as conn:
            await sessions.note_missing(conn, session_id, missing, found)

    async def give_back_missing(
        self, session_id: UUID, unseen_seconds: float, lost_seconds: float, policy: RetryPolicy
    ) -> list[TaskRecord]:
        """Queue again what a living worker has not named for too long."""
        async with self._db.transaction() as conn:
            return await sweeps.give_back_missing(conn, session_id, unseen_seconds, lost_seconds, policy)

    async def close_session(self, session_id: UUID, subject: str, policy: RetryPolicy) -> list[TaskRecord] | None:
        """End a session; what it held goes back. None without such a session."""
        async with self._db.transaction() as conn:
            if not await sweeps.close(conn, session_id, subject):
                return None
            return await sweeps.give_back_all(conn, session_id, policy)

    async def valid(self, session_id: UUID, refs: Sequence[AttemptRef]) -> Mapping[AttemptRef, JobOwner]:
        """Which attempts are the session's, each with whose job it is."""
        async with self._db.connection() as conn:
            return await sessions.valid(conn, session_id, refs)

    async def ended(self, refs: Sequence[AttemptRef]) -> Collection[AttemptRef]:
        """Which of these attempts are of tasks that have ended, or are no more."""
        async with self._db.connection() as conn:
            return await sessions.ended(conn, refs)

    async def note_service_request(self, ref: AttemptRef, session: UUID, request: ServiceRequestNote) -> NoteVerdict:
        """Write a request to a provider down as it stands."""

        async def work(conn: Connection) -> NoteVerdict:
            record = await endings.lock(conn, ref.job_id)
            return await service_requests.note(conn, record, ref, session, request, limits=self._limits)

        return await self._in_transaction(work)

    async def open_service_requests(self, task_ids: Sequence[UUID]) -> Mapping[UUID, Sequence[ServiceRequestNote]]:
        """By task, the requests to providers that have not ended."""
        async with self._db.connection() as conn:
            return await service_requests.open_of(conn, task_ids)

    async def service_requests(self, task_id: UUID) -> Sequence[ServiceRequestNote]:
        """Return the last requests of a task to providers."""
        async with self._db.connection() as conn:
            return await service_requests.all_of(conn, task_id, _MAX_SERVICE_REQUESTS)

    async def write_progress(self, notes: Sequence[ProgressNote]) -> None:
        """Write progress of attempts that are still their session's."""
        async with self._db.pipeline(durable=False, settings=HOT) as conn:
            await sessions.write_progress(conn, notes)

    async def complete_many(
        self, completions: Sequence[CompletedAttempt], weights: Mapping[str, float]
    ) -> list[AttemptEnd]:
        """End attempts with their results."""

        async def body() -> list[AttemptEnd]:
            async with self._db.pipeline(settings=HOT) as conn:
                return await endings.complete(conn, completions, weights)

        return await self._db.retrying(body)

    async def fail(
        self,
        ref: AttemptRef,
        session: UUID,
        *,
        message: str,
        category: ErrorCategory,
        retryable: bool,
        retry_after: float | None = None,
        used: DeviceUse,
        policy: RetryPolicy,
        weights: Mapping[str, float],
    ) -> AttemptEnd:
        """End an attempt with an error: queued again, by its fallback too, or FAILED."""
        loss = AttemptLoss(
            AttemptOutcome.FAILED,
            message,
            category,
            retryable=retryable,
            immediate=False,
            used=used,
            retry_after=retry_after,
        )

        async def work(conn: Connection) -> AttemptEnd:
            record = await endings.lock(conn, ref.job_id)
            if record is not None and record.attempt == ref.attempt and record.lease_session == session:
                return AttemptEnd(await endings.lose(conn, record, loss, policy, weights))
            await endings.note_late_use(conn, ref, session, used)
            repeated = await endings.was_reported(conn, ref, session, AttemptOutcome.FAILED)
            return AttemptEnd(record if repeated else None, repeated=repeated)

        return await self._in_transaction(work)

    async def release(self, session_id: UUID, refs: Sequence[AttemptRef], policy: RetryPolicy) -> list[TaskRecord]:
        """Take attempts back that did not begin; those that are not the session's any more are skipped."""

        async def work(conn: Connection) -> list[TaskRecord]:
            attempts = {ref.job_id: ref.attempt for ref in refs}
            held = await endings.lock_leases(conn, session_id, sorted(attempts))
            losses = [(record, HANDED_BACK) for record in held if attempts[record.id] == record.attempt]
            return await endings.lose_many(conn, losses, policy)

        return await self._in_transaction(work)

    async def expire_sessions(self, policy: RetryPolicy) -> list[TaskRecord]:
        """End the attempts of sessions whose heartbeat is overdue."""
        ended: list[TaskRecord] = []
        while True:
            async with self._db.transaction() as conn:
                expired = await sweeps.take_expired_session(conn)
                if expired is None:
                    return ended
                ended.extend(await sweeps.lose_all(conn, *expired, policy))

    async def expire_overdue(self, grace_seconds: float, policy: RetryPolicy) -> list[TaskRecord]:
        """End attempts that ran longer than they may."""
        async with self._db.transaction() as conn:
            return await sweeps.expire_overdue(conn, grace_seconds, policy)

    async def fall_back_waiting(self, policy: RetryPolicy) -> list[TaskRecord]:
        """Have fallbacks take over what waits too long for a provider that takes no requests."""

        async def work(conn: Connection) -> list[TaskRecord]:
            return await fallbacks.fall_back_waiting(conn, policy)

        return await self._in_transaction(work)

    async def gates(self) -> GateView:
        """All gates of providers, with the attempts under way at each."""
        await self.count_calls()
        async with self._db.connection() as conn:
            return await GateTable(conn, self._limits).all()

    async def forget_gates(self, age_seconds: float) -> None:
        """Delete gates that were not used for so long, and lanes of providers' keys in which nothing waits."""
        async with self._db.transaction() as conn:
            await gates.forget_idle(conn, age_seconds)

    async def calls_of(self, tenant: str) -> Mapping[str, int]:
        """Return the attempts of a tenant that are under way, by provider."""
        async with self._db.connection() as conn:
            return await gates.calls_of(conn, tenant)

    async def reset_gate(self, name: GateName) -> tuple[Gate, Gate] | None:
        """Close a gate's breaker: the gate before and after, or None where nothing has passed such a gate."""
        await self.count_calls()
        async with self._db.transaction() as conn:
            table = GateTable(conn, self._limits)
            return await table.reset(name) if await table.known(name) else None

    async def promote_delayed(self) -> list[str]:
        """Let retries whose delay has passed wait in their queues; return the queues."""
        async with self._db.transaction() as conn:
            return await sweeps.promote_delayed(conn)

    async def due_sweeps(self, limit: int, delay_seconds: float) -> Sequence[tuple[UUID, str, str, datetime]]:
        """Prefixes of objects to compare with their task: (task, tenant, prefix, due)."""
        async with self._db.connection() as conn:
            return await sweeps.due_sweeps(conn, limit, delay_seconds)

    async def forget_sweep(self, task_id: UUID, due_at: datetime) -> None:
        """Forget a prefix that was swept."""
        async with self._db.transaction() as conn:
            await conn.execute("DELETE FROM object_sweeps WHERE task_id = %s AND due_at = %s", (task_id, due_at))

    async def forget_sessions(self, age_seconds: float) -> None:
        """Delete sessions that ended long ago."""
        async with self._db.transaction() as conn:
            await conn.execute(
                "DELETE FROM sessions WHERE closed_at < now() - %s * interval '1 second'", (age_seconds,)
            )

    async def slots(self) -> list[tuple[str, int]]:
        """By queue, the slots of the workers that take work."""
        async with self._db.connection() as conn:
            return await sessions.slots(conn)

    async def lost_workers(self) -> list[str]:
        """Names of workers whose last session expired some minutes ago at most."""
        async with self._db.connection() as conn:
            return await sessions.lost(conn)

    async def waiting_of(self, tenant: str) -> int:
        """Return how many tasks of a tenant wait."""
        async with self._db.connection() as conn:
            return await counters.waiting_of(conn, tenant)

    async def depths(self) -> list[tuple[str, str, int]]:
        """Return waiting tasks by queue and pair."""
        async with self._db.connection() as conn:
            cursor = await conn.execute(
                "SELECT queue, split_part(lane, '/', 1) || '/' || split_part(lane, '/', 2), sum(pending)::bigint "
                "FROM queue_lanes GROUP BY 1, 2"
            )
            return await cursor.fetchall()

    async def run_round(self, queue: str, body: Callable[[PostgresRound], Awaitable[None]]) -> None:
        """Run the body of a dispatch round within a transaction."""
        # If a crash of PostgreSQL undoes a lease, the task does not name the worker's session: its reports are refused,
        # and the task is leased again. Rounds hold tenants' rows that creates wait for, so they do not wait for the
        # disk.
        async with self._db.pipeline(durable=False, settings=HOT) as conn:
            work = PostgresRound(conn, queue, self._limits)
            await body(work)
        self._called.update(work.called)

    async def count_calls(self) -> None:
        """Write how many calls were admitted without their gates' rows since the last time."""
        called, self._called = self._called, Counter()
        if not called:
            return
        try:
            async with self._db.transaction() as conn:
                await GateTable(conn, self._limits).count(called)
        except BaseException:
            self._called.update(called)
            raise

    async def purge_keys(self) -> int:
        """Forget idempotency keys after their time."""
        return await idempotency.purge(self._db)

    async def _in_transaction(self, work: Callable[[Connection], Awaitable[_T]]) -> _T:
        async def body() -> _T:
            async with self._db.transaction() as conn:
                return await work(conn)

        return await self._db.retrying(body)
