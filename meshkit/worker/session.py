"""What a worker knows of its session and of the attempts it holds, and which calls it makes."""

from __future__ import annotations

import asyncio
import enum
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from atelier.tasks.v1.enums_pb2 import ProviderType, TaskType
from atelier.tasks.v1.worker_service_pb2 import (
    AttemptRef,
    CloseSessionRequest,
    CloseSessionResponse,
    CompleteManyRequest,
    CompleteManyResponse,
    FailRequest,
    FailResponse,
    HeartbeatRequest,
    HeartbeatResponse,
    Lease,
    LeaseRequest,
    LeaseResponse,
    OpenSessionRequest,
    OpenSessionResponse,
    ReleaseRequest,
    ReleaseResponse,
    ReportRequest,
    ReportResponse,
)

_RequestT_contra = TypeVar("_RequestT_contra", contravariant=True)
_ResponseT_co = TypeVar("_ResponseT_co", covariant=True)

Key = tuple[str, int]
"""A job and the number of its attempt."""


class UnaryMethod(Protocol[_RequestT_contra, _ResponseT_co]):
    """One unary RPC, as generated stubs have it."""

    def __call__(self, request: _RequestT_contra, /, *, timeout: float | None = None) -> Awaitable[_ResponseT_co]:
        """Send the request."""
        ...


class WorkerCalls(Protocol):
    """The RPCs of `WorkerService`; the generated stub is one."""

    @property
    def OpenSession(self) -> UnaryMethod[OpenSessionRequest, OpenSessionResponse]: ...  # noqa: D102, N802 -- an RPC's name
    @property
    def Lease(self) -> UnaryMethod[LeaseRequest, LeaseResponse]: ...  # noqa: D102, N802
    @property
    def Heartbeat(self) -> UnaryMethod[HeartbeatRequest, HeartbeatResponse]: ...  # noqa: D102, N802
    @property
    def Report(self) -> UnaryMethod[ReportRequest, ReportResponse]: ...  # noqa: D102, N802
    @property
    def CompleteMany(self) -> UnaryMethod[CompleteManyRequest, CompleteManyResponse]: ...  # noqa: D102, N802
    @property
    def Fail(self) -> UnaryMethod[FailRequest, FailResponse]: ...  # noqa: D102, N802
    @property
    def Release(self) -> UnaryMethod[ReleaseRequest, ReleaseResponse]: ...  # noqa: D102, N802
    @property
    def CloseSession(self) -> UnaryMethod[CloseSessionRequest, CloseSessionResponse]: ...  # noqa: D102, N802


@dataclass(frozen=True, slots=True)
class WorkerProfile:
    """What a worker says of itself when it opens a session.

    Attributes:
        name: Unique while it lives.
        kind: `local` or `provider`.
        queues: Queues it serves.
        slots: Attempts it runs at once.
        task_types: Types it executes.
        provider_types: Providers it calls; LOCAL where empty.
    """

    name: str
    kind: str
    queues: tuple[str, ...]
    slots: int
    task_types: tuple[TaskType.ValueType, ...]
    provider_types: tuple[ProviderType.ValueType, ...] = ()


class ReportOutcome(enum.Enum):
    """What became of a result that was reported.

    TAKEN: it is the task's. LOST: it is not, and never will be. UNKNOWN: the service did not say.
    """

    TAKEN = enum.auto()
    LOST = enum.auto()
    UNKNOWN = enum.auto()


@dataclass(frozen=True, slots=True)
class Backoff:
    """Pauses that double from `first` to `last` seconds, each shortened at random by up to a half."""

    first: float = 0.1
    last: float = 2.0

    def pause(self, failures: int) -> float:
        """Seconds to wait after so many failures in a row."""
        ceiling = min(self.last, self.first * 2.0 ** min(max(failures - 1, 0), 16))
        return ceiling * random.uniform(0.5, 1.0)  # noqa: S311 -- jitter, not a secret


@dataclass(slots=True, eq=False)
class WorkerSession:
    """One session, as the worker knows it.

    Attributes:
        id: Its identifier.
        ttl: Seconds that leases live after a heartbeat.
        interval: Seconds between heartbeats.
        alive_until: When, by the worker's clock, its leases are to be taken as lost.
        answered: Number of the last poll that was answered.
        lost: Set once it is of no more use.
    """

    id: str
    ttl: float
    interval: float
    alive_until: float
    answered: int = 0
    lost: asyncio.Event = field(default_factory=asyncio.Event)


class HeldLease:
    """One attempt that this worker holds.

    Attributes:
        lease: What was leased.
        session: Session that holds it.
        key: Job and attempt.
    """

    __slots__ = ("_on_lost", "key", "lease", "lost", "session")

    def __init__(self, lease: Lease, session: WorkerSession) -> None:
        self.key: Key = (lease.job_id, lease.attempt)
        self.lease = lease
        self.session = session
        self.lost: str | None = None
        self._on_lost: Callable[[str], None] | None = None

    @property
    def ref(self) -> AttemptRef:
        """Job and attempt, as the service names them."""
        return AttemptRef(job_id=self.lease.job_id, attempt=self.lease.attempt)

    def on_lost(self, callback: Callable[[str], None]) -> None:
        """Have `callback` called with `given_up` or `expired` when the attempt is to end; at once if it is lost."""
        self._on_lost = callback
        if self.lost is not None:
            callback(self.lost)

    def lose(self, why: str) -> None:
        """Take the attempt from its holder; the first reason stays."""
        if self.lost is None:
            self.lost = why
            if self._on_lost is not None:
                self._on_lost(why)

    def forget(self) -> None:
        """Tell nobody any more: its holder, who most likely holds this, is freed without the garbage collector."""
        self._on_lost = None
