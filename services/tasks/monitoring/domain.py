"""What monitoring tells of tasks, queues and workers. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import NamedTuple
from uuid import UUID

from meshkit.errors import invalid
from services.tasks.domain import WorkerLoad

_EPOCH = datetime.fromtimestamp(0, UTC)
# A worker's rate is the mean over so many minutes.
RATE_MINUTES = 5
# Times of completion are those of the newest tasks, as far as they completed lately.
TIMED_TASKS = 5_000
TIMED_MINUTES = 5


class ListedTask(NamedTuple):
    """A task among others. The order of the fields is the order of the columns in the query."""

    id: UUID
    task_type: str
    provider_type: str
    status: str
    progress: float
    origin_instance: str
    origin_zone: str | None
    tenant: str
    created_at: datetime
    started_at: datetime | None
    completed_at: datetime | None
    has_error: bool


class ListedRow(NamedTuple):
    """A task in short. The order of the fields is the order of the columns in the query."""

    id: UUID
    task_type: str
    status: str
    progress: float
    created_at: datetime


class Cursor(NamedTuple):
    """The last task of a page, after which the next one begins."""

    created_at: datetime
    id: UUID

    def __str__(self) -> str:
        micros = (self.created_at - _EPOCH) // timedelta(microseconds=1)
        return f"{micros:016x}-{self.id.hex}"

    @classmethod
    def parse(cls, text: str) -> Cursor:
        """Read what `str` wrote.

        Raises:
            MeshError: `INVALID`.
        """
        micros, _, identifier = text.partition("-")
        try:
            return cls(_EPOCH + timedelta(microseconds=int(micros, 16)), UUID(identifier))
        except (ValueError, OverflowError):
            raise invalid("cursor", "is none that an answer told", "cursor") from None


@dataclass(frozen=True, slots=True)
class TaskQuery:
    """Which tasks to list, in which order; None where a member does not matter.

    Attributes:
        created_after: The earliest moment that counts.
        created_before: The earliest moment that counts no more.
        ids: The first and the last id that counts.
        after: The task after which the list begins.
    """

    tenant: str | None = None
    status: str | None = None
    task_type: str | None = None
    provider_type: str | None = None
    origin_instance: str | None = None
    origin_zone: str | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None
    ids: tuple[UUID, UUID] | None = None
    after: Cursor | None = None
    sort_by: str = "created_at"
    descending: bool = True
    skip: int = 0
    limit: int = 50

    @property
    def is_counted(self) -> bool:
        """Whether the counters tell how many there are."""
        return self.created_after is None and self.created_before is None and self.ids is None


@dataclass(frozen=True, slots=True)
class TaskCounts:
    """Tasks, counted.

    Attributes:
        total: All of them.
        by_status: By state; states without tasks may be absent.
        by_provider: By provider.
        by_task_type: By type.
        last_hour: Those created in the last hour.
        last_day: Those created in the last 24 hours.
    """

    total: int = 0
    by_status: Mapping[str, int] = field(default_factory=dict)
    by_provider: Mapping[str, int] = field(default_factory=dict)
    by_task_type: Mapping[str, int] = field(default_factory=dict)
    last_hour: int = 0
    last_day: int = 0


@dataclass(frozen=True, slots=True)
class QueueFigures:
    """A queue.

    Attributes:
        name: Its name.
        pending: Tasks that wait.
        workers: Workers that serve it.
        active: Tasks that run.
        reserved: Tasks that a worker has taken and not begun.
        wait_ms: How long those waited that began in the last hour, on average; None where none did.
        completed: Tasks that completed in the last hour.
    """

    name: str
    pending: int = 0
    workers: int = 0
    active: int = 0
    reserved: int = 0
    wait_ms: float | None = None
    completed: int = 0


class WorkerFigures(NamedTuple):
    """A worker that is alive. The order of the fields is the order of the columns in the query.

    Attributes:
        cordoned: Whether it gets no lease until it is uncordoned.
        leased: Attempts that it holds.
        completed_lately: Tasks that it completed in the last `RATE_MINUTES`.
        load: How it does, as it tells itself; None until it has.
    """

    name: str
    queues: Sequence[str]
    slots: int
    draining: bool
    cordoned: bool
    leased: int
    completed_lately: int
    load: WorkerLoad | None

    @property
    def active(self) -> int:
        """Attempts that it runs: it begins what it holds as soon as a slot is free."""
        return min(self.leased, self.slots)

    @property
    def has_capacity(self) -> bool:
        """Whether it takes another task."""
        return not (self.draining or self.cordoned or self.fault) and self.leased < self.slots

    @property
    def fault(self) -> str:
        """Why it takes no work, as it tells itself; empty where it does."""
        return "" if self.load is None else self.load.fault

    @property
    def utilization_pct(self) -> float:
        """Share of its slots that is in use."""
        return 100.0 * self.active / self.slots


@dataclass(frozen=True, slots=True)
class Fleet:
    """All workers that are alive.

    Attributes:
        workers: The workers.
        at: When this was so.
    """

    workers: Sequence[WorkerFigures]
    at: datetime

    @property
    def capacity(self) -> int:
        """Attempts that they run at once; one with a fault ends what it runs and begins nothing."""
        return sum(one.active if one.fault else one.slots for one in self.workers)

    @property
    def active(self) -> int:
        """Attempts that they run."""
        return sum(one.active for one in self.workers)

    @property
    def with_capacity(self) -> int:
        """Those that take another task."""
        return sum(one.has_capacity for one in self.workers)

    def served(self, queues: Collection[str]) -> tuple[list[str], list[str]]:
        """Return those of these queues that a worker serves, and those that none does, each in order.

        One with a fault serves none.
        """
        having = {name for one in self.workers if not one.fault for name in one.queues}
        return [name for name in sorted(queues) if name in having], [n for n in sorted(queues) if n not in having]


class CompletionTimes(NamedTuple):
    """Milliseconds from creation to completion. The order of the fields is the order of the columns in the query."""

    avg_ms: float
    p95_ms: float
    p99_ms: float


@dataclass(frozen=True, slots=True)
class WorkFigures:
    """How fast tasks are done.

    Attributes:
        times: How long tasks took which completed lately; None where none did.
        waiting: Tasks that wait, by queue.
        workers: Workers that are alive, with what they tell of themselves.
    """

    times: CompletionTimes | None
    waiting: Mapping[str, int]
    workers: Sequence[tuple[str, WorkerLoad]]
