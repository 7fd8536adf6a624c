"""What the use cases need of a database, in domain types."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple, Protocol
from uuid import UUID

from meshkit.idempotency import IdempotencyKey
from services.workflows.domain import StepRecord, WorkflowRecord, WorkflowStatus
from services.workflows.engine import Decision


@dataclass(frozen=True, slots=True)
class WorkflowFilter:
    """Which workflows are asked for; None matches all.

    Attributes:
        search: Part of the name or beginning of the identifier.
    """

    tenant: str | None = None
    status: WorkflowStatus | None = None
    origin_instance: str | None = None
    origin_zone: str | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None
    search: str | None = None
    include_deleted: bool = False

    @property
    def is_counted(self) -> bool:
        """Whether the counters tell how many there are."""
        return self.created_after is None and self.created_before is None and not self.search


@dataclass(frozen=True, slots=True)
class Page:
    """Which part of a list.

    Attributes:
        sort_by: Column to sort by.
    """

    skip: int
    limit: int
    sort_by: str = "created_at"
    descending: bool = True


@dataclass(frozen=True, slots=True)
class WorkflowSnapshot:
    """A workflow with its steps in the order of the definition."""

    workflow: WorkflowRecord
    steps: tuple[StepRecord, ...]

    @property
    def tenant(self) -> str:
        """Tenant that it belongs to."""
        return self.workflow.tenant


class ListedWorkflow(NamedTuple):
    """A workflow among others. The order of the fields is the order of the columns in the query."""

    id: UUID
    name: str
    description: str | None
    status: WorkflowStatus
    total_steps: int
    completed_steps: int
    current_step: str | None
    final_step_id: str
    origin_instance: str
    origin_zone: str | None
    tenant: str
    created_at: datetime
    started_at: datetime | None
    completed_at: datetime | None
    has_error: bool


@dataclass(frozen=True, slots=True)
class WorkflowCounts:
    """How many workflows there are.

    Attributes:
        by_status: By state; states without workflows are absent.
        last_hour: Those created in the last hour.
        last_day: Those created in the last 24 hours.
        average_steps: Steps of one on average.
    """

    by_status: Mapping[str, int]
    last_hour: int
    last_day: int
    average_steps: float


@dataclass(frozen=True, slots=True)
class DispatchNote:
    """What came of a note that tasks were made.

    Attributes:
        stopped: Steps that were cancelled before: their tasks are to be cancelled too.
        left: Tasks whose steps were being written by others at the moment: to be noted again.
    """

    stopped: Sequence[StepRecord]
    left: frozenset[UUID]


Decide = Callable[[WorkflowRecord, Sequence[StepRecord]], Decision]
# What became of one of several workflows: None without such a workflow, an exception where it alone failed.
Advanced = Decision | Exception | None
Edit = Callable[[WorkflowRecord], WorkflowRecord]


@dataclass(frozen=True, slots=True)
class FileSweep:
    """A workflow whose files may belong to nobody.

    Attributes:
        workflow_id: The workflow, which may never have come to be.
        tenant: Tenant of the files.
        due_at: When it was noted, by the database.
    """

    workflow_id: UUID
    tenant: str
    due_at: datetime


class WorkflowStore(Protocol):
    """Workflows and their steps."""

    async def create(self, whole: WorkflowSnapshot, key: IdempotencyKey | None, response: bytes) -> bytes | None:
        """Write a new workflow; the answer given before where the key was used for the same request."""
        ...

    async def find_replay(self, tenant: str, key: IdempotencyKey) -> bytes | None:
        """Return the answer given before under a key, without claiming it."""
        ...

    async def note_files(self, workflow_id: UUID, tenant: str) -> None:
        """Have the files of a workflow swept, should none own them."""
        ...

    async def due_files(self, age_seconds: float, limit: int) -> Sequence[FileSweep]:
        """Return what was noted so long ago, oldest first."""
        ...

    async def forget_files(self, sweep: FileSweep) -> None:
        """Forget what was noted, unless it was noted again."""
        ...

    async def get(self, workflow_id: UUID) -> WorkflowSnapshot | None:
        """Return a workflow with its steps."""
        ...

    async def list_workflows(self, which: WorkflowFilter, page: Page) -> tuple[list[WorkflowSnapshot], int]:
        """Workflows with their steps, and how many there are in all; fewer where they are large."""
        ...

    async def list_items(self, which: WorkflowFilter, page: Page) -> tuple[list[ListedWorkflow], int, bool]:
        """Workflows without their steps, how many there are in all, and whether that number is exact."""
        ...

    async def stats(self, which: WorkflowFilter) -> WorkflowCounts:
        """Count workflows by their labels; what no counter has is not told apart."""
        ...

    async def fold(self) -> None:
        """Add what was noted of changes to the counters."""
        ...

    async def advance(self, workflow_id: UUID, body: Decide, *, durable: bool = True) -> Decision | None:
        """Decide upon a workflow under its lock and write what was decided.

        Args:
            workflow_id: The workflow.
            body: Decides.
            durable: Whether to wait for the disk also where the workflow's state stays as it is; without, a crash of
                the database may undo a decision that would be made again.

        Returns:
            What was decided; None without such a workflow.
        """
        ...

    async def advance_many(self, bodies: Mapping[UUID, Decide], *, durable: bool = True) -> Mapping[UUID, Advanced]:
        """Decide upon several workflows in one transaction, which costs hardly more than for one of them.

        No workflow keeps another from being decided upon: what a body raises is the outcome of its own workflow alone,
        and where the transaction fails as a whole, each workflow gets a transaction of its own.

        Args:
            bodies: What decides upon each workflow; it may be called again.
            durable: As in `advance`; the disk is waited for where one of the workflows needs it.

        Returns:
            What became of each workflow.
        """
        ...

    async def accept(self, task_ids: Sequence[UUID]) -> DispatchNote:
        """Note that tasks of DISPATCHING steps were made; skip steps whose rows are locked."""
        ...

    async def steps_behind(self, versions: Mapping[UUID, int]) -> list[StepRecord]:
        """Return the steps of these tasks that have processed a lower version, by the tasks' identifiers."""
        ...

    async def edit(self, workflow_id: UUID, body: Edit) -> WorkflowSnapshot | None:
        """Change members of a workflow that do not move it."""
        ...

    async def due_dispatches(self, age_seconds: float, limit: int) -> list[StepRecord]:
        """Return steps that are DISPATCHING for so long, and note that they are sent again."""
        ...

    async def due_checks(self, age_seconds: float, trusted_since: datetime | None, limit: int) -> list[StepRecord]:
        """Return RUNNING steps without an event for so long, and note that they are asked for.

        Args:
            age_seconds: How long.
            trusted_since: Since when no event is lost: what was asked for since then is asked for again only once as
                much time has passed as its task had taken by then, or 15 minutes. None where any event may be lost.
            limit: How many at most.
        """
        ...

    async def due_cancels(self, age_seconds: float, limit: int) -> list[tuple[StepRecord, float]]:
        """Return ended steps whose task may still run, with the seconds since; mark them as handled."""
        ...

    async def due_timeouts(self, limit: int) -> list[StepRecord]:
        """Return steps whose task takes longer than it may."""
        ...

    async def untold_ends(self, limit: int) -> list[WorkflowRecord]:
        """Return ended workflows whose webhook is still to be told, oldest first."""
        ...

    async def note_told(self, record: WorkflowRecord) -> None:
        """Note that the webhook of this end of a workflow was handed in."""
        ...

    async def purge(self) -> None:
        """Delete old idempotency keys."""
        ...
