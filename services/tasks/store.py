"""What the use cases need of a database, in terms of the domain.

Every method is one transaction: the change of state, the attempt's row, the fairness counters and the events of the
change are committed together or not at all.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple, Protocol
from uuid import UUID

from meshkit.idempotency import IdempotencyKey
from services.tasks.domain import (
    AttemptRecord,
    AttemptRef,
    ErrorCategory,
    RetryPolicy,
    SessionRecord,
    TaskRecord,
    TaskStatus,
    WorkerLoad,
)
from services.tasks.owners import JobOwner
from services.tasks.providers.domain import Gate, GateName, TokenBucket
from services.tasks.providers.gates import GateView
from services.tasks.scheduling.fairness import Candidate, Contender
from services.tasks.service_requests import NoteVerdict, ServiceRequestNote
from services.tasks.usage.domain import DeviceUse


class Creation(NamedTuple):
    """A task to write.

    Attributes:
        record: The task.
        response: The serialized answer to its caller, kept for replays where there is a key.
        encode: The same for another task, where the identifier turns out to exist.
        key: The idempotency key, if one was given.
        has_objects: Whether objects were written for it beforehand.
        named: Whether the caller chose the identifier, which may then exist already.
    """

    record: TaskRecord
    response: bytes
    encode: Callable[[TaskRecord], bytes]
    key: IdempotencyKey | None = None
    has_objects: bool = False
    named: bool = False


@dataclass(frozen=True, slots=True)
class Created:
    """What became of a create: a stored answer to replay, or the task (an older one where `existed`)."""

    record: TaskRecord | None
    replay: bytes | None = None
    existed: bool = False


@dataclass(frozen=True, slots=True)
class TaskFilter:
    """Which tasks to list; None where a member does not matter."""

    tenant: str | None = None
    status: TaskStatus | None = None
    task_type: str | None = None
    workflow_id: UUID | None = None
    origin_instance: str | None = None
    origin_zone: str | None = None
    include_deleted: bool = False


class PollEntry(NamedTuple):
    """A poll that a dispatch round serves.

    Attributes:
        session: Identifier of the worker's session.
        sequence: Number of the poll.
    """

    session: UUID
    sequence: int


class Grant(NamedTuple):
    """A task chosen for a poll.

    Attributes:
        task_id: The task.
        lane: Where it waited; one that was moved meanwhile is not for this poll.
        session: The session that gets it.
        sequence: Number of that session's poll.
        kind: Kind of the worker.
        name: Name of the worker.
        cost: Expected device seconds, charged where the task was not charged before.
        charge: The same as virtual time of the tenant.
    """

    task_id: UUID
    lane: str
    session: UUID
    sequence: int
    kind: str
    name: str
    cost: float
    charge: float


class CompletedAttempt(NamedTuple):
    """The end of an attempt with its result.

    Attributes:
        ref: The attempt.
        session: The session that reports it.
        result: A serialized TaskResult.
        objects: Paths of the objects of the result.
        used: What it used of its device.
        errors: What went wrong with parts of the task.
    """

    ref: AttemptRef
    session: UUID
    result: bytes
    objects: Sequence[str]
    used: DeviceUse
    errors: Sequence[str] = ()


class AttemptEnd(NamedTuple):
    """What a report about an attempt did.

    Attributes:
        record: The task after it, None where the report changed nothing.
        repeated: The same report was taken before.
    """

    record: TaskRecord | None
    repeated: bool = False


@dataclass(frozen=True, slots=True)
class LeaseState:
    """A lease that the database knows of a session."""

    ref: AttemptRef
    acknowledged: bool
    missing: bool


@dataclass(frozen=True, slots=True)
class ProgressNote:
    """Progress to write into a row."""

    ref: AttemptRef
    session: UUID
    progress: float


@dataclass(frozen=True, slots=True)
class RegisteredPoll:
    """A poll that was noted.

    Attributes:
        leases: Those of the same poll, where it is repeated.
        draining: Whether the worker takes no more.
    """

    leases: Sequence[TaskRecord]
    draining: bool


class RegisteredRound(NamedTuple):
    """What a round begins with.

    Attributes:
        polls: By session the polls that were noted, without those that are refused.
        contenders: Tenants with waiting work, by virtual time.
        next_lane: Where to begin among the lanes of providers the next time.
    """

    polls: Mapping[UUID, RegisteredPoll]
    contenders: list[Contender]
    next_lane: str


class HeldRound(NamedTuple):
    """What a round reads once it holds what it may change.

    Attributes:
        confirmed: Those of the polls that their sessions still wait for, and whether the worker drains and takes no
            more; the sessions stay open until the round's end.
        contenders: Tenants with waiting work, by virtual time.
        candidates: Waiting tasks of the tenants, in the order in which they are served.
        gates: The gates, locked; None where none were asked for.
        restless: Whether a gate that was taken to be at rest is not.
    """

    confirmed: Mapping[PollEntry, bool]
    contenders: list[Contender]
    candidates: list[Candidate]
    gates: GateView | None
    restless: bool


class RoundStore(Protocol):
    """One dispatch round: an open transaction that holds the queue."""

    async def gates(self, pairs: Collection[str], after: str) -> tuple[GateView, str]:
        """Read the gates of the lanes that work waits in, without a lock.

        Args:
            pairs: Pairs that the workers run; others' lanes are passed over.
            after: Where to begin among the lanes.

        Returns:
            What there is, and where to begin the next time: more lanes than a round looks at are looked at in turn.
        """
        ...

    async def register(
        self, polls: Sequence[PollEntry], lanes: Sequence[str], limit: int, after: str | None = None
    ) -> RegisteredRound:
        """Note polls, which acknowledges what earlier ones brought, and look who waits.

        Args:
            polls: New polls.
            lanes: Where to look.
            limit: Tenants a lane at most.
            after: Where given, look in all lanes of the queue besides, from this one on; more than a round looks at
                are looked at in turn.
        """
        ...

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
        """Make other replicas' rounds of this queue wait for the end of this one, and read what waits.

        Args:
            polls: Polls noted by an earlier round.
            wanted: So many tasks of each of these tenants.
            lanes: Where to look.
            limit: Tenants a lane at most.
            gates: Gates to lock too, as they were read before.
            trusted: Gates that are taken to be at rest: they are not locked, but looked at.
        """
        ...

    async def write_gates(
        self,
        changed: Sequence[Gate],
        refused: Sequence[tuple[GateName, bool]],
        buckets: Mapping[tuple[str, str], TokenBucket],
    ) -> None:
        """Write what the round did to gates.

        Args:
            changed: Those that have changed, which the round holds.
            refused: Those that passed waiting work over, and whether for their breaker: all held, or none.
            buckets: Buckets of tenants that have changed, by tenant and provider; the providers' gates are held.
        """
        ...

    async def grant(self, grants: Sequence[Grant], virtual_time: float) -> list[TaskRecord]:
        """Lease tasks; those that are not waiting any more are left out."""
        ...

    async def recount(self, tenants: Sequence[str], granted: Sequence[str]) -> None:
        """Correct the counters of tenants that have less work than they say.

        Args:
            tenants: The tenants.
            granted: Those whose tasks may be granted afterwards.
        """
        ...


ModifyBody = Callable[[TaskRecord], TaskRecord]


class TaskStore(Protocol):
    """Tasks, attempts and sessions."""

    async def create_many(self, creations: Sequence[Creation]) -> list[Created | None]:
        """Write new tasks together; None for those whose idempotency key or identifier was taken."""
        ...

    async def create_one(self, creation: Creation) -> Created:
        """Write one task, or find the one that exists, or the answer given before."""
        ...

    async def find_replay(self, tenant: str, key: IdempotencyKey) -> bytes | None:
        """Return the answer stored under a key, if it is committed; CONFLICT where the key had another request."""
        ...

    async def note_intent(self, record: TaskRecord, prefix: str) -> None:
        """Note that objects are about to be written for a task to come."""
        ...

    async def get(self, task_id: UUID) -> TaskRecord | None:
        """Return a task."""
        ...

    async def list_tasks(self, which: TaskFilter, skip: int, limit: int) -> list[TaskRecord]:
        """Tasks, newest first; fewer than `limit` also where they are too large together for one answer."""
        ...

    async def ahead(self, record: TaskRecord) -> int:
        """Tasks of its tenant, of its kind, that are served before a waiting task; 100 at most."""
        ...

    async def attempts(self, task_id: UUID) -> list[AttemptRecord]:
        """Return a task's attempts, oldest first."""
        ...

    async def modify(self, task_id: UUID, body: ModifyBody) -> tuple[TaskRecord, TaskRecord]:
        """Change a task under its lock: the task before and after."""
        ...

    async def cancel(self, task_id: UUID) -> tuple[TaskRecord, TaskRecord]:
        """Cancel a task unless it ended: the task before and after."""
        ...

    async def remove(self, task_id: UUID) -> bool:
        """Remove the row of a task that ended, keeping its identifier from being used again."""
        ...

    async def open_session(self, session: SessionRecord, ttl_seconds: float) -> None:
        """Open a worker's session."""
        ...

    async def session(self, session_id: UUID) -> SessionRecord | None:
        """Return an open session."""
        ...

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
        ...

    async def note_missing(self, session_id: UUID, missing: Sequence[AttemptRef], found: Sequence[AttemptRef]) -> None:
        """Note which leases a heartbeat did not name, and which it named again."""
        ...

    async def give_back_missing(
        self, session_id: UUID, unseen_seconds: float, lost_seconds: float, policy: RetryPolicy
    ) -> list[TaskRecord]:
        """Queue again what a living worker has not named for too long."""
        ...

    async def close_session(self, session_id: UUID, subject: str, policy: RetryPolicy) -> list[TaskRecord] | None:
        """End a session; what it held goes back. None without such a session."""
        ...

    async def valid(self, session_id: UUID, refs: Sequence[AttemptRef]) -> Mapping[AttemptRef, JobOwner]:
        """Which attempts are the session's, each with whose job it is."""
        ...

    async def ended(self, refs: Sequence[AttemptRef]) -> Collection[AttemptRef]:
        """Which of these attempts are of tasks that have ended, or are no more."""
        ...

    async def note_service_request(self, ref: AttemptRef, session: UUID, request: ServiceRequestNote) -> NoteVerdict:
        """Write a request to a provider down as it stands; it is committed when this returns.

        A request goes from SENDING to an end, over ACCEPTED, and never back: what was noted before, or is noted twice,
        changes nothing. Its name at the provider becomes the task's, in the same transaction.
        """
        ...

    async def open_service_requests(self, task_ids: Sequence[UUID]) -> Mapping[UUID, Sequence[ServiceRequestNote]]:
        """By task, the requests to providers that have not ended, oldest first."""
        ...

    async def service_requests(self, task_id: UUID) -> Sequence[ServiceRequestNote]:
        """Return the last requests of a task to providers, oldest first."""
        ...

    async def write_progress(self, notes: Sequence[ProgressNote]) -> None:
        """Write progress of attempts that are still their session's."""
        ...

    async def complete_many(
        self, completions: Sequence[CompletedAttempt], weights: Mapping[str, float]
    ) -> list[AttemptEnd]:
        """End attempts with their results."""
        ...

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
        ...

    async def release(self, session_id: UUID, refs: Sequence[AttemptRef], policy: RetryPolicy) -> list[TaskRecord]:
        """Take attempts back that did not begin, and note the slots of cancelled ones as free."""
        ...

    async def expire_sessions(self, policy: RetryPolicy) -> list[TaskRecord]:
        """End the attempts of sessions whose heartbeat is overdue."""
        ...

    async def expire_overdue(self, grace_seconds: float, policy: RetryPolicy) -> list[TaskRecord]:
        """End attempts that ran longer than they may."""
        ...

    async def fall_back_waiting(self, policy: RetryPolicy) -> list[TaskRecord]:
        """Have fallbacks take over what waits too long for a provider that takes no requests."""
        ...

    async def gates(self) -> GateView:
        """All gates of providers, with the attempts under way at each."""
        ...

    async def count_calls(self) -> None:
        """Write how many calls this replica has admitted without their gates' rows."""
        ...

    async def forget_gates(self, age_seconds: float) -> None:
        """Delete gates that were not used for so long, and lanes of providers' keys in which nothing waits."""
        ...

    async def calls_of(self, tenant: str) -> Mapping[str, int]:
        """Return the attempts of a tenant that are under way, by provider."""
        ...

    async def reset_gate(self, name: GateName) -> tuple[Gate, Gate] | None:
        """Close a gate's breaker: the gate before and after, or None where nothing has passed such a gate."""
        ...

    async def promote_delayed(self) -> list[str]:
        """Let retries whose delay has passed wait in their queues; return the queues."""
        ...

    async def due_sweeps(self, limit: int, delay_seconds: float) -> Sequence[tuple[UUID, str, str, datetime]]:
        """Prefixes of objects to compare with their task: (task, tenant, prefix, due)."""
        ...

    async def forget_sweep(self, task_id: UUID, due_at: datetime) -> None:
        """Forget a prefix that was swept."""
        ...

    async def forget_sessions(self, age_seconds: float) -> None:
        """Delete sessions that ended long ago."""
        ...

    async def run_round(self, queue: str, body: Callable[[RoundStore], Awaitable[None]]) -> None:
        """Run the body of a dispatch round within a transaction."""
        ...

    async def purge_keys(self) -> int:
        """Delete idempotency keys after their time; return how many."""
        ...

    async def slots(self) -> list[tuple[str, int]]:
        """By queue, the slots of the workers that take work."""
        ...

    async def lost_workers(self) -> list[str]:
        """Names of workers whose last session expired some minutes ago at most."""
        ...

    async def waiting_of(self, tenant: str) -> int:
        """Return how many tasks of a tenant wait."""
        ...

    async def depths(self) -> list[tuple[str, str, int]]:
        """Return waiting tasks by queue and pair."""
        ...
