"""Failed tasks made again by an operator: a new task of the same request follows each, and no second one.

A task that has failed stays so, because its end was told; so the follower has an identifier of its own, which is always
the same for the same failed task.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple
from uuid import UUID, uuid5

from atelier.tasks.v1 import task_pb2, tasks_service_pb2

from meshkit.access import Caller
from meshkit.errors import ErrorKind, MeshError
from meshkit.logging import get_logger
from meshkit.task_files import named_tasks
from services.tasks.api.service import TasksService
from services.tasks.domain import ErrorCategory, JobKind, TaskRecord, TaskStatus
from services.tasks.monitoring.domain import Cursor, ListedRow, TaskQuery
from services.tasks.monitoring.store import MonitoringStore
from services.tasks.retention.store import RetentionStore

_log = get_logger(__name__)

_PAGE = 200
# No more failed tasks are looked at in one call, of which most may have a follower already: it is to end within the
# time that callers wait.
_MOST_LOOKED_AT = 2000
# The follower names the inputs of the task that failed: so long they stay, however old that is.
HELD_DAYS = 7
# What says something about this task, and not about the service.
_OF_THE_TASK = frozenset({ErrorKind.INVALID, ErrorKind.NOT_FOUND, ErrorKind.CONFLICT, ErrorKind.FORBIDDEN})


class Requeued(NamedTuple):
    """A failed task, and the one that follows it."""

    task_id: UUID
    new_task_id: UUID


class Refused(NamedTuple):
    """A task that was left as it is, and why."""

    task_id: UUID
    reason: str


@dataclass(slots=True)
class RequeueReport:
    """What became of failed tasks.

    Attributes:
        matched: How many had no follower before.
        requeued: Those that have one now.
        refused: Those that could not be made again.
        next: The last that was looked at, where others may follow.
    """

    matched: int = 0
    requeued: list[Requeued] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    next: Cursor | None = None


def follower_of(task_id: UUID) -> UUID:
    """Return the identifier of the task that follows a failed one."""
    return uuid5(task_id, "requeue")


class TaskRequeues:
    """Makes failed tasks again.

    Args:
        store: Finds them.
        tasks: Reads and makes tasks.
        retention: Keeps tasks whose files are named.
    """

    def __init__(self, store: MonitoringStore, tasks: TasksService, retention: RetentionStore) -> None:
        self._store = store
        self._tasks = tasks
        self._retention = retention

    async def named(self, task_ids: Sequence[UUID], caller: Caller, *, dry_run: bool) -> RequeueReport:
        """Make these tasks again."""
        report = RequeueReport()
        for task_id in dict.fromkeys(task_ids):
            record = await self._find(task_id, caller)
            if record is None:
                report.refused.append(Refused(task_id, "There is no such task"))
            elif (reason := _hindrance(record)) is not None:
                report.refused.append(Refused(task_id, reason))
            elif await self._find(follower_of(task_id), caller) is None:
                await self._make(record, caller, report, dry_run=dry_run)
        return report

    async def matching(
        self, query: TaskQuery, category: ErrorCategory | None, caller: Caller, limit: int, *, dry_run: bool
    ) -> RequeueReport:
        """Make failed tasks again, the newest first, until enough were looked at.

        Args:
            query: Which ones, and after which; their state is not looked at.
            category: Only those that failed for this.
            caller: Who asks.
            limit: No more than these.
            dry_run: Only count.
        """
        report, looked_at = RequeueReport(), 0
        async for row in self._failed(query, caller):
            if report.matched >= limit or looked_at >= _MOST_LOOKED_AT:
                return report
            looked_at += 1
            report.next = Cursor(row.created_at, row.id)
            record = await self._find(row.id, caller)
            if record is None or category not in (None, record.error_category) or _hindrance(record) is not None:
                continue
            if await self._find(follower_of(record.id), caller) is None:
                await self._make(record, caller, report, dry_run=dry_run)
        report.next = None
        return report

    async def _failed(self, query: TaskQuery, caller: Caller) -> AsyncIterator[ListedRow]:
        asked = replace(
            query, tenant=caller.listed_tenant(query.tenant), status=TaskStatus.FAILED.value, limit=_PAGE, skip=0
        )
        while True:
            rows = await self._store.list_rows(asked)
            for row in rows:
                yield row
            if len(rows) < _PAGE:
                return
            asked = replace(asked, after=Cursor(rows[-1].created_at, rows[-1].id))

    async def _make(self, record: TaskRecord, caller: Caller, report: RequeueReport, *, dry_run: bool) -> None:
        report.matched += 1
        if dry_run:
            return
        if named := named_tasks(record.spec):
            await self._retention.hold(record.tenant, sorted(named), HELD_DAYS)
        follower = follower_of(record.id)
        request = tasks_service_pb2.CreateTaskRequest(
            task=task_pb2.CreateTask.FromString(record.spec), task_id=str(follower)
        )
        try:
            await self._tasks.create(request, Caller(caller.subject, record.tenant, is_service=True), None)
        except MeshError as error:
            if error.kind not in _OF_THE_TASK:
                raise
            why = "; ".join(f"{one.path} {one.message}" for one in error.violations) or error.message
            report.refused.append(Refused(record.id, why))
            return
        _log.info("task_requeued", task_id=str(record.id), follower=str(follower))
        report.requeued.append(Requeued(record.id, follower))

    async def _find(self, task_id: UUID, caller: Caller) -> TaskRecord | None:
        try:
            return await self._tasks.get(task_id, caller)
        except MeshError as error:
            if error.kind is ErrorKind.NOT_FOUND:
                return None
            raise


def _hindrance(record: TaskRecord) -> str | None:
    if record.kind != JobKind.TASK:
        return "It is a job of another service"
    if record.state is not TaskStatus.FAILED:
        return f"It is {record.status}"
    if record.workflow_id is not None:
        return "It is the step of a workflow: resume that"
    if record.is_deleted:
        return "Its files were cleaned up"
    return None
