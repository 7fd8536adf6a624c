"""Tasks, their states and what may follow what. Pure: no clock, no database, no wire.

Spellings of states, categories and outcomes are those of the contract's enums without their prefix; the database's
CHECK constraints are made of the same enums, and a test asserts both.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import NamedTuple
from uuid import UUID

from services.tasks.devices import GpuReading, WarmModel
from services.tasks.usage.domain import NOTHING_USED, DeviceUse

MAX_ERRORS = 50
MAX_ERROR_LENGTH = 4096
# Attempts handed back for free before one counts after all: a task that kills its worker before the worker could
# acknowledge it would otherwise be leased again without end.
MAX_FREE_RELEASES = 10


class TaskStatus(enum.StrEnum):
    """Where a task stands."""

    PENDING = "PENDING"
    EXECUTING = "EXECUTING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


class JobKind(enum.StrEnum):
    """Kind of a job on the scheduler; only tasks show in lists of tasks."""

    TASK = "TASK"
    TRAINING = "TRAINING"


class ErrorCategory(enum.StrEnum):
    """Why an attempt failed."""

    VALIDATION = "VALIDATION"
    PROVIDER = "PROVIDER"
    RATE_LIMIT = "RATE_LIMIT"
    TIMEOUT = "TIMEOUT"
    RESOURCE = "RESOURCE"
    CONTENT_POLICY = "CONTENT_POLICY"
    CANCELLED = "CANCELLED"
    INTERNAL = "INTERNAL"


class Fallback(enum.StrEnum):
    """Whether a task's second provider can take over, or has; null where there is none."""

    AVAILABLE = "AVAILABLE"
    TAKEN = "TAKEN"


class AttemptOutcome(enum.StrEnum):
    """How an attempt ended."""

    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    EXPIRED = "EXPIRED"
    CANCELLED = "CANCELLED"
    RELEASED = "RELEASED"


# Another attempt would fail alike.
NEVER_RETRIED = frozenset({ErrorCategory.VALIDATION, ErrorCategory.CONTENT_POLICY, ErrorCategory.CANCELLED})
# No other provider could do better.
CALLERS_OWN = frozenset({ErrorCategory.VALIDATION, ErrorCategory.CANCELLED})
# A rate limit is waited for so much longer than other errors, where the provider does not say how long.
RATE_LIMIT_FACTOR = 8

TERMINAL = frozenset({TaskStatus.COMPLETED, TaskStatus.FAILED, TaskStatus.CANCELLED})

# Every legal change of state, and nothing else. Leasing starts a task; a lost, failed or handed back attempt queues it
# again; an operator may fail a waiting task. A terminal state never changes.
TRANSITIONS: Mapping[TaskStatus, frozenset[TaskStatus]] = MappingProxyType(
    {
        TaskStatus.PENDING: frozenset({TaskStatus.EXECUTING, TaskStatus.CANCELLED, TaskStatus.FAILED}),
        TaskStatus.EXECUTING: frozenset(
            {TaskStatus.PENDING, TaskStatus.COMPLETED, TaskStatus.FAILED, TaskStatus.CANCELLED}
        ),
        TaskStatus.COMPLETED: frozenset(),
        TaskStatus.FAILED: frozenset(),
        TaskStatus.CANCELLED: frozenset(),
    }
)


def may(current: TaskStatus, following: TaskStatus) -> bool:
    """Whether a task in `current` may go to `following`."""
    return following in TRANSITIONS[current]


class TaskRecord(NamedTuple):
    """A task as the database holds it. The order of the fields is the order of the columns in every query.

    Attributes:
        lane: The pair that a worker must run to be given it, with what its provider counts by; see `lane_of`.
        not_before: Waiting for a retry until then; null where it is ready.
        released: Times it went back without costing a retry.
        progress_at_retry: Progress that it had when an attempt last cost a retry.
        charged: Cost already charged to its tenant, in expected device seconds; never charged twice.
        warm_keys: Adapters that a worker had better hold already.
        timeout_seconds: How long one attempt may run.
        fallback: See `Fallback`.
        spec: The serialized CreateTask as accepted.
        body: A serialized Task with the members that no query asks for, among them the type's own.
        result: A serialized TaskResult of the winning attempt.
    """

    id: UUID
    kind: str
    tenant: str
    task_type: str
    status: str
    priority: int
    queue_name: str
    provider_type: str
    lane: str
    created_at: datetime
    updated_at: datetime
    started_at: datetime | None
    completed_at: datetime | None
    not_before: datetime | None
    attempt: int
    retry_count: int
    released: int
    progress_at_retry: float
    is_resumed: bool
    resume_attempt_count: int
    last_resume_attempt: datetime | None
    version: int
    progress: float
    executor_type: str | None
    executor_instance: str | None
    lease_session: UUID | None
    lease_sequence: int | None
    leased_at: datetime | None
    error_category: str | None
    errors: Sequence[str]
    origin_instance: str
    origin_zone: str | None
    origin_reference: str | None
    workflow_id: UUID | None
    webhook_url: str | None
    is_deleted: bool
    deleted_at: datetime | None
    charged: float
    timeout_seconds: float
    warm_keys: Sequence[str]
    traceparent: str
    spec: bytes
    body: bytes
    result: bytes | None
    result_objects: Sequence[str]
    fallback: str | None

    @property
    def state(self) -> TaskStatus:
        """The status as a value of the enum."""
        return TaskStatus(self.status)

    @property
    def bytes(self) -> int:
        """What its lease takes in an answer, about: `spec` and `body` hold all that may be large."""
        return len(self.spec) + len(self.body) + len(self.result or b"")


def new_task(
    *,
    task_id: UUID,
    tenant: str,
    task_type: str,
    priority: int,
    queue_name: str,
    provider_type: str,
    now: datetime,
    origin_instance: str,
    origin_zone: str | None,
    origin_reference: str | None,
    workflow_id: UUID | None,
    webhook_url: str | None,
    timeout_seconds: float,
    warm_keys: Sequence[str],
    traceparent: str,
    spec: bytes,
    body: bytes,
    kind: JobKind = JobKind.TASK,
    fallback: Fallback | None = None,
    gate_key: str = "",
) -> TaskRecord:
    """Return a task as it is first written: PENDING, version 1, without an attempt."""
    return TaskRecord(
        id=task_id,
        kind=kind.value,
        tenant=tenant,
        task_type=task_type,
        status=TaskStatus.PENDING.value,
        priority=priority,
        queue_name=queue_name,
        provider_type=provider_type,
        lane=lane_of(task_type, provider_type, kind, gate_key),
        created_at=now,
        updated_at=now,
        started_at=None,
        completed_at=None,
        not_before=None,
        attempt=0,
        retry_count=0,
        released=0,
        progress_at_retry=0.0,
        is_resumed=False,
        resume_attempt_count=0,
        last_resume_attempt=None,
        version=1,
        progress=0.0,
        executor_type=None,
        executor_instance=None,
        lease_session=None,
        lease_sequence=None,
        leased_at=None,
        error_category=None,
        errors=[],
        origin_instance=origin_instance,
        origin_zone=origin_zone,
        origin_reference=origin_reference,
        workflow_id=workflow_id,
        webhook_url=webhook_url,
        is_deleted=False,
        deleted_at=None,
        charged=0.0,
        timeout_seconds=timeout_seconds,
        warm_keys=list(warm_keys),
        traceparent=traceparent,
        spec=spec,
        body=body,
        result=None,
        result_objects=[],
        fallback=fallback.value if fallback is not None else None,
    )


def lane_of(task_type: str, provider_type: str, kind: JobKind = JobKind.TASK, key: str = "") -> str:
    """Name a lane: the pair that a worker must run to be given the job, and what its provider counts by.

    Training jobs have no task type: all of one provider share a lane.

    Args:
        task_type: The type.
        provider_type: The provider.
        kind: Kind of the job.
        key: Application, model or the like, where the provider counts its calls by one.
    """
    pair = f"{task_type if kind is JobKind.TASK else kind.value}/{provider_type}"
    return f"{pair}/{key}" if key else pair


def parts_of(lane: str) -> tuple[str, str, str]:
    """Return a lane's pair, its provider, and the key that the provider counts by; empty where there is none."""
    task_type, provider, *rest = lane.split("/", 2)
    return f"{task_type}/{provider}", provider, rest[0] if rest else ""


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """A worker's session. A lease of it is valid as long as the session is: one row keeps all of them alive.

    Attributes:
        pairs: The pairs that its worker runs, named by `lane_of`; no other work is leased to it.
    """

    id: UUID
    subject: str
    name: str
    kind: str
    queues: Sequence[str]
    slots: int
    pairs: Sequence[str]

    @property
    def lanes(self) -> frozenset[str]:
        """The pairs, in no order."""
        return frozenset(self.pairs)


@dataclass(frozen=True, slots=True)
class WorkerLoad:
    """How a worker does, as it tells itself.

    Attributes:
        memory_bytes: Memory of its process and its children.
        completed: Jobs that it has completed since its process began, by type.
        pid: Process that takes leases.
        child_pids: Processes that compute.
        started: When its process began, in seconds since the epoch.
        rusage: What its process has used, by the names of getrusage(2).
        models: What it holds in memory.
        gpus: GPUs of its machine.
        fault: Why it takes no work; empty where it does.
    """

    memory_bytes: int = 0
    completed: Mapping[str, int] = field(default_factory=dict)
    pid: int = 0
    child_pids: Sequence[int] = ()
    started: float = 0.0
    rusage: Mapping[str, float] = field(default_factory=dict)
    models: Sequence[WarmModel] = ()
    gpus: Sequence[GpuReading] = ()
    fault: str = ""


class AttemptRef(NamedTuple):
    """An attempt: the fencing token of every report."""

    job_id: UUID
    attempt: int


@dataclass(frozen=True, slots=True)
class AttemptRecord:
    """One lease of a task, as told to callers."""

    attempt: int
    executor_instance: str
    started_at: datetime
    ended_at: datetime | None
    outcome: str | None
    error: str | None
    error_category: str | None


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """When a failed or lost attempt is followed by another.

    Attributes:
        max_retries: Attempts beyond the first.
        base_seconds: Longest wait before the first retry of a failed attempt; it doubles with each.
        max_seconds: The longest wait that is not asked for.
        max_retry_after_seconds: The longest wait that a provider can ask for.
        fallback_seconds: A task that has a fallback does not wait longer than this for its first provider.
    """

    max_retries: int = 3
    base_seconds: float = 0.5
    max_seconds: float = 30.0
    max_retry_after_seconds: float = 3600.0
    fallback_seconds: float = 60.0

    def allows(self, retry_count: int) -> bool:
        """Whether a task that was retried so often may be retried once more."""
        return retry_count < self.max_retries

    def delay(
        self,
        retry_count: int,
        *,
        category: ErrorCategory | None = None,
        retry_after: float | None = None,
        spread: float = 1.0,
    ) -> timedelta:
        """Wait before a retry: full jitter, on top of what the provider asks for.

        Args:
            retry_count: Number of the retry, from 1.
            category: Why the attempt failed; a rate limit is waited for longer.
            retry_after: Seconds that the provider asks to be left alone.
            spread: Where in the jitter's range, from 0 to 1.
        """
        base = self.base_seconds * (RATE_LIMIT_FACTOR if category is ErrorCategory.RATE_LIMIT else 1)
        jitter = min(self.max_seconds, base * 2 ** max(0, retry_count - 1)) * spread
        return timedelta(seconds=jitter + min(max(retry_after or 0.0, 0.0), self.max_retry_after_seconds))


@dataclass(frozen=True, slots=True)
class AttemptLoss:
    """Why an attempt ends without a result.

    Attributes:
        outcome: What the attempt's row says.
        message: A sentence for the task's errors; empty where the task gets none.
        category: Class of the error.
        retryable: Whether another attempt could succeed.
        resumed: Whether the next attempt takes over from a lost one.
        immediate: Whether the next attempt may start at once.
        used: What it used of its device.
        retry_after: Seconds that the provider asks to wait before another attempt.
    """

    outcome: AttemptOutcome
    message: str = ""
    category: ErrorCategory | None = None
    retryable: bool = True
    resumed: bool = False
    immediate: bool = True
    used: DeviceUse = NOTHING_USED
    retry_after: float | None = None


# An attempt that never began.
HANDED_BACK = AttemptLoss(AttemptOutcome.RELEASED)
_HANDED_BACK_TOO_OFTEN = AttemptLoss(
    AttemptOutcome.EXPIRED, "The task was handed back too often", ErrorCategory.RESOURCE, resumed=True
)


@dataclass(frozen=True, slots=True)
class Requeue:
    """The task waits for another attempt.

    Attributes:
        loss: How the ended attempt is recorded.
        delay: Wait before the task may be leased.
        retries: Retries that it has then cost.
        free: Whether it counts as a release instead of a retry.
        resumed: Whether the next attempt takes over from a lost one.
    """

    loss: AttemptLoss
    delay: timedelta
    retries: int
    free: bool
    resumed: bool


@dataclass(frozen=True, slots=True)
class FallBack:
    """The task waits for its second provider, which has retries of its own. It never comes back.

    Attributes:
        loss: How the ended attempt is recorded.
    """

    loss: AttemptLoss


@dataclass(frozen=True, slots=True)
class Fail:
    """The task has failed.

    Attributes:
        loss: How the ended attempt is recorded.
        category: Why the task failed.
    """

    loss: AttemptLoss
    category: ErrorCategory


def after_loss(
    record: TaskRecord, loss: AttemptLoss, policy: RetryPolicy, *, accepted: bool = False, spread: float = 1.0
) -> Requeue | FallBack | Fail:
    """Decide what follows an attempt that ended without a result.

    An attempt that was handed back costs nothing, and neither does one that was lost while its provider had accepted a
    request that the next attempt goes on with: up to `MAX_FREE_RELEASES` times; after that it counts. Any other attempt
    costs a retry while the loss is retryable and the policy allows one more; of a job's, those count that it lost since
    it last got further. A fallback takes over where no retry is left, where none can help, and where the provider asks
    for too long a wait; a mistake of the caller, or a cancel, is no reason to.

    Args:
        record: The task as it was while the attempt ran.
        loss: Why the attempt ended.
        policy: How often a task is retried, and after which wait.
        accepted: Whether its provider has accepted a request of it that has not ended.
        spread: Where in the range of the jitter the wait is, from 0 to 1.
    """
    handed_back = loss.outcome is AttemptOutcome.RELEASED
    # One that was stuck for longer than it may run is no better off for going on.
    goes_on = accepted and loss.outcome is AttemptOutcome.EXPIRED and loss.category is not ErrorCategory.TIMEOUT
    if (handed_back or goes_on) and record.released < MAX_FREE_RELEASES:
        return Requeue(loss, timedelta(), record.retry_count, free=True, resumed=loss.resumed)
    if handed_back:
        loss = _HANDED_BACK_TOO_OFTEN
    category = loss.category or ErrorCategory.INTERNAL
    spent = record.retry_count if record.kind == JobKind.TASK or record.progress <= record.progress_at_retry else 0
    falls_back = record.fallback == Fallback.AVAILABLE and category not in CALLERS_OWN
    too_long = falls_back and (loss.retry_after or 0.0) > policy.fallback_seconds
    if loss.retryable and category not in NEVER_RETRIED and policy.allows(spent) and not too_long:
        delay, retry = timedelta(), spent + 1
        if not loss.immediate:
            delay = policy.delay(retry, category=category, retry_after=loss.retry_after, spread=spread)
        return Requeue(loss, delay, retry, free=False, resumed=loss.resumed)
    return FallBack(loss) if falls_back else Fail(loss, category)


def clip_error(text: str) -> str:
    """Return an error's sentence, short enough for a row."""
    return text if len(text) <= MAX_ERROR_LENGTH else f"{text[: MAX_ERROR_LENGTH - 1]}\u2026"
