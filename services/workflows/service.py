"""Use cases of callers: create, read, change, start, pause, resume, cancel, clean up, monitor."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from uuid import UUID, uuid4

from atelier.workflows.v1 import workflow_pb2, workflows_service_pb2

from meshkit import metrics, tracing
from meshkit.access import Caller
from meshkit.db import DatabaseUnavailableError
from meshkit.errors import ErrorKind, MeshError, invalid
from meshkit.fetcher import Fetcher
from meshkit.freeform import FreeFormLimits
from meshkit.idempotency import IdempotencyKey
from meshkit.logging import get_logger
from services.workflows import definition, graph
from services.workflows.convert import to_workflow
from services.workflows.domain import (
    Approval,
    StepRecord,
    StepState,
    WorkflowRecord,
    WorkflowStatus,
    step_row_id,
    task_id_of,
)
from services.workflows.engine import decide
from services.workflows.errors import cleaned_up, illegal_transition, workflow_not_found
from services.workflows.executor import WorkflowExecutor
from services.workflows.fields import TRAINING, kind_of_step
from services.workflows.files import StepFiles, holds_files, refuse_files
from services.workflows.signals import Cancel, Event, Pause, Resume, Start
from services.workflows.store import (
    ListedWorkflow,
    Page,
    WorkflowCounts,
    WorkflowFilter,
    WorkflowSnapshot,
    WorkflowStore,
)
from services.workflows.task_calls import TaskCalls

_log = get_logger(__name__)

_CREATED = metrics.counter("workflows_created", "Workflows accepted")
_USED_UP = (ErrorKind.INVALID, ErrorKind.NOT_FOUND)
_UPDATABLE = frozenset({"name", "description", "webhook_url"})


@dataclass(frozen=True, slots=True)
class CleanupReport:
    """What a cleanup did.

    Attributes:
        processed: Tasks looked at.
        cleaned: Tasks cleaned.
        deleted: Paths of the files that were deleted.
        errors: Tasks that could not be cleaned, each with its step and why.
    """

    processed: int
    cleaned: int
    deleted: Sequence[str]
    errors: Sequence[tuple[UUID, StepRecord, str]]


class WorkflowsService:
    """Workflows, as their callers know them.

    Args:
        store: The database.
        executor: Moves them.
        tasks: The tasks service.
        fetcher: Judges the addresses of webhooks.
        clock: Gives the present, in UTC.
        limits: What a free-form member of a task may hold.
        files: Takes over the files of definitions; None where there is no object store.
    """

    def __init__(
        self,
        store: WorkflowStore,
        executor: WorkflowExecutor,
        tasks: TaskCalls,
        *,
        fetcher: Fetcher,
        clock: Callable[[], datetime],
        limits: FreeFormLimits,
        files: StepFiles | None,
    ) -> None:
        self._store = store
        self._executor = executor
        self._tasks = tasks
        self._fetcher = fetcher
        self._clock = clock
        self._limits = limits
        self._files = files

    async def create(
        self, request: workflows_service_pb2.CreateWorkflowRequest, caller: Caller, key: IdempotencyKey | None
    ) -> tuple[WorkflowSnapshot | bytes, bool]:
        """Accept a workflow; start it unless asked not to.

        Returns:
            The workflow, or the serialized answer to replay; and whether it is a replay.

        Raises:
            MeshError: `INVALID` with all that does not hold, `FORBIDDEN`, `CONFLICT`, `UNAVAILABLE`.
        """
        wanted = request.workflow
        tenant = caller.tenant_of(wanted.origin_tenant_id, "workflow.origin_tenant_id")
        if wanted.HasField("webhook_url"):
            self._fetcher.check(wanted.webhook_url, path="workflow.webhook_url")
        definition.check(wanted, await self._tasks.served(), self._limits)
        if self._files is None:
            refuse_files(wanted)
        if self._files is None or not holds_files(wanted):
            return await self._accept(request, tenant, uuid4(), key)
        if key is not None and (replay := await self._store.find_replay(tenant, key)) is not None:
            return replay, True
        try:
            return await self._accept_with_files(request, tenant, key, self._files)
        except MeshError as error:
            # A duplicate at the same moment names the same upload, which is gone once the first of them is committed.
            replay = await self._store.find_replay(tenant, key) if key is not None and error.kind in _USED_UP else None
            if replay is None:
                raise
            return replay, True

    async def _accept_with_files(
        self,
        request: workflows_service_pb2.CreateWorkflowRequest,
        tenant: str,
        key: IdempotencyKey | None,
        files: StepFiles,
    ) -> tuple[WorkflowSnapshot | bytes, bool]:
        """Write the files, then the workflow; where it does not come to be, neither do they."""
        ident = uuid4()
        accepted = await files.accept(request.workflow, tenant, ident)
        if not accepted:
            return await self._accept(request, tenant, ident, key)
        await self._store.note_files(ident, tenant)
        try:
            await files.write(tenant, accepted)
            answer, replayed = await self._accept(request, tenant, ident, key)
        except (DatabaseUnavailableError, asyncio.CancelledError):
            # Whether the commit takes place is unknown, a caller that leaves does not stop it: the sweeper finds out.
            raise
        except BaseException:
            await self._discard(files, tenant, ident)
            raise
        if isinstance(answer, bytes):
            # A commit whose answer was lost is repeated and finds itself: the files are then those of the workflow.
            if workflows_service_pb2.CreateWorkflowResponse.FromString(answer).workflow.id != str(ident):
                await self._discard(files, tenant, ident)
            return answer, replayed
        try:
            await files.settle(tenant, accepted)
        except MeshError as error:
            _log.warning("uploads_left_to_sweeper", workflow_id=str(ident), reason=error.reason)
        return answer, replayed

    @staticmethod
    async def _discard(files: StepFiles, tenant: str, workflow_id: UUID) -> Sequence[str]:
        try:
            return await files.discard(tenant, workflow_id)
        except MeshError as error:
            _log.warning("files_left_to_sweeper", workflow_id=str(workflow_id), reason=error.reason)
            return ()

    async def _accept(
        self,
        request: workflows_service_pb2.CreateWorkflowRequest,
        tenant: str,
        workflow_id: UUID,
        key: IdempotencyKey | None,
    ) -> tuple[WorkflowSnapshot | bytes, bool]:
        whole = _new(workflow_id, request.workflow, tenant, self._clock())
        decision = decide(whole.workflow, whole.steps, Start(), self._clock()) if request.start else None
        if decision is not None:
            whole = WorkflowSnapshot(decision.workflow, decision.steps)
        response = b""
        if key is not None:  # else nobody can ask for it again
            response = workflows_service_pb2.CreateWorkflowResponse(workflow=to_workflow(whole)).SerializeToString()
        replay = await self._store.create(whole, key, response)
        if replay is not None:
            return replay, True
        _CREATED.inc()
        if decision is not None:
            self._executor.carry_out(decision)
        return whole, False

    async def get(self, workflow_id: UUID, caller: Caller) -> WorkflowSnapshot:
        """Return a workflow.

        Raises:
            MeshError: `NOT_FOUND`.
        """
        return caller.seen(await self._store.get(workflow_id), workflow_id, workflow_not_found)

    async def list_workflows(
        self, which: WorkflowFilter, caller: Caller, page: Page
    ) -> tuple[list[WorkflowSnapshot], int]:
        """Workflows of the caller's tenant, of all tenants for operators and support; and how many there are."""
        confined = _confined(which, caller)
        return ([], 0) if confined is None else await self._store.list_workflows(confined, page)

    async def list_items(
        self, which: WorkflowFilter, caller: Caller, page: Page
    ) -> tuple[list[ListedWorkflow], int, bool]:
        """Workflows without their steps, how many there are in all, and whether that number is exact.

        Raises:
            MeshError: `FORBIDDEN` where the caller may not see the tenant that it names.
        """
        return await self._store.list_items(replace(which, tenant=caller.listed_tenant(which.tenant)), page)

    async def stats(self, which: WorkflowFilter, caller: Caller) -> WorkflowCounts:
        """Count of what `list_items` would list."""
        confined = _confined(which, caller)
        assert confined is not None, "statistics name no tenant"
        return await self._store.stats(confined)

    async def update(
        self, workflow_id: UUID, values: workflow_pb2.WorkflowUpdate, mask: Sequence[str], caller: Caller
    ) -> WorkflowSnapshot:
        """Change name, description or webhook address.

        Args:
            workflow_id: The workflow.
            values: New values.
            mask: Members to change, the set ones where empty; a named member that is unset is cleared.
            caller: Who asks.

        Raises:
            MeshError: `NOT_FOUND`, `INVALID`.
        """
        caller.seen(await self._store.get(workflow_id), workflow_id, workflow_not_found, write=True)
        paths = set(mask) or {field.name for field, _ in values.ListFields()}
        for path in paths - _UPDATABLE:
            raise invalid(f"update.{path}", "Unknown member", "extra_forbidden")
        if "name" in paths and not values.HasField("name"):
            raise invalid("update.name", "Input should be a valid string", "string_type")
        if "webhook_url" in paths and values.HasField("webhook_url"):
            self._fetcher.check(values.webhook_url, path="update.webhook_url")

        def body(current: WorkflowRecord) -> WorkflowRecord:
            changed = current
            if "name" in paths:
                changed = replace(changed, name=values.name)
            if "description" in paths:
                changed = replace(changed, description=values.description if values.HasField("description") else None)
            if "webhook_url" in paths:
                changed = replace(changed, webhook_url=values.webhook_url if values.HasField("webhook_url") else None)
            return current if changed == current else replace(changed, updated_at=self._clock())

        whole = await self._store.edit(workflow_id, body)
        if whole is None:
            raise workflow_not_found(workflow_id)
        return whole

    async def start(self, workflow_id: UUID, caller: Caller) -> WorkflowSnapshot:
        """Start a PENDING workflow."""
        return await self._tell(workflow_id, caller, Start())

    async def pause(self, workflow_id: UUID, caller: Caller) -> WorkflowSnapshot:
        """Begin no further step of a RUNNING workflow; one that is paused stays as it is."""
        return await self._tell(workflow_id, caller, Pause())

    async def resume(self, workflow_id: UUID, caller: Caller) -> WorkflowSnapshot:
        """Go on with a FAILED or PAUSED workflow; completed steps keep their results."""
        return await self._tell(workflow_id, caller, Resume())

    async def cancel(self, workflow_id: UUID, caller: Caller) -> WorkflowSnapshot:
        """Cancel a workflow and its running tasks; one that is cancelled already stays as it is."""
        return await self._tell(workflow_id, caller, Cancel())

    async def cleanup(
        self, workflow_id: UUID, caller: Caller, *, tasks: bool
    ) -> tuple[WorkflowSnapshot, CleanupReport]:
        """Hide a workflow from lists and delete the files of its definition; one that waits is cancelled first.

        Args:
            workflow_id: The workflow.
            caller: Who asks.
            tasks: Whether to delete its tasks' files too.

        Raises:
            MeshError: `NOT_FOUND`, or `CONFLICT` while it runs.
        """
        whole = caller.seen(await self._store.get(workflow_id), workflow_id, workflow_not_found, write=True)
        if whole.workflow.status is WorkflowStatus.RUNNING:
            raise illegal_transition(whole.workflow.status, "cleaned up; cancel it first")
        if whole.workflow.status in (WorkflowStatus.PENDING, WorkflowStatus.PAUSED):
            decision = await self._store.advance(
                workflow_id, lambda workflow, steps: decide(workflow, steps, Cancel(), self._clock())
            )
            if decision is not None:
                await self._executor.cancel_now(decision)
                whole = WorkflowSnapshot(decision.workflow, decision.steps)
        report = await self._clean_tasks(whole) if tasks else CleanupReport(0, 0, (), ())

        def hide(current: WorkflowRecord) -> WorkflowRecord:
            if current.status is WorkflowStatus.RUNNING:
                raise illegal_transition(current.status, "cleaned up; cancel it first")
            return current if current.is_deleted else replace(current, is_deleted=True, deleted_at=self._clock())

        if self._files is not None:
            # Should this process end now, the sweeper deletes what a hidden workflow owns.
            await self._store.note_files(workflow_id, whole.workflow.tenant)
        hidden = await self._store.edit(workflow_id, hide)
        if hidden is None:
            raise workflow_not_found(workflow_id)
        if self._files is not None:
            deleted = await self._discard(self._files, whole.workflow.tenant, workflow_id)
            report = replace(report, deleted=[*report.deleted, *sorted(deleted)])
        return hidden, report

    async def _clean_tasks(self, whole: WorkflowSnapshot) -> CleanupReport:
        processed, cleaned = 0, 0
        deleted: list[str] = []
        errors: list[tuple[UUID, StepRecord, str]] = []
        for step in whole.steps:
            if step.task_type == TRAINING:
                continue  # the training service deletes what is old
            for attempt in range(1, step.attempt + 1):
                task_id = task_id_of(step.workflow_id, step.step_id, attempt)
                processed += 1
                try:
                    deleted += await self._tasks.cleanup(task_id, whole.workflow.tenant)
                except MeshError as error:
                    if error.kind is ErrorKind.NOT_FOUND and step.state is StepState.CANCELLED:
                        processed -= 1  # it was cancelled before its task was made
                        continue
                    errors.append((task_id, step, error.message))
                else:
                    cleaned += 1
        return CleanupReport(processed, cleaned, deleted, errors)

    async def _tell(self, workflow_id: UUID, caller: Caller, event: Event) -> WorkflowSnapshot:
        whole = caller.seen(await self._store.get(workflow_id), workflow_id, workflow_not_found, write=True)
        if whole.workflow.is_deleted and not isinstance(event, Cancel):
            raise cleaned_up()
        decision = await self._executor.tell(workflow_id, event)
        if decision is None:
            raise workflow_not_found(workflow_id)
        return WorkflowSnapshot(decision.workflow, decision.steps)


def _confined(which: WorkflowFilter, caller: Caller) -> WorkflowFilter | None:
    if caller.reads_across:
        return which
    tenant = caller.require_tenant()
    return None if which.tenant not in (None, tenant) else replace(which, tenant=tenant)


def _new(ident: UUID, wanted: workflow_pb2.CreateWorkflow, tenant: str, now: datetime) -> WorkflowSnapshot:
    """Return a checked definition as rows that wait for their start."""
    trace = tracing.current()

    def text(name: str) -> str | None:
        return getattr(wanted, name) if wanted.HasField(name) else None  # type: ignore[arg-type]  # names of the message

    workflow = WorkflowRecord(
        id=ident,
        tenant=tenant,
        name=wanted.name,
        description=text("description"),
        status=WorkflowStatus.PENDING,
        on_failure=definition.on_failure(wanted),
        config=wanted.config.SerializeToString(),
        suppress_subtask_events=wanted.suppress_subtask_events,
        origin_instance=wanted.origin_instance,
        origin_zone=text("origin_zone"),
        origin_reference=text("origin_reference"),
        webhook_url=text("webhook_url"),
        total_steps=len(wanted.steps),
        completed_steps=0,
        current_step=None,
        final_step_id=graph.topological_order(definition.graph_of(wanted))[-1],
        error_message=None,
        errors=[],
        started_at=None,
        completed_at=None,
        created_at=now,
        updated_at=now,
        is_deleted=False,
        deleted_at=None,
        version=1,
        traceparent=trace.traceparent if trace is not None else "",
    )
    steps = tuple(_new_step(ident, step, position, now) for position, step in enumerate(wanted.steps))
    return WorkflowSnapshot(workflow, steps)


def _new_step(workflow_id: UUID, step: workflow_pb2.WorkflowStepDefinition, position: int, now: datetime) -> StepRecord:
    return StepRecord(
        id=step_row_id(workflow_id, step.id),
        workflow_id=workflow_id,
        step_id=step.id,
        position=position,
        task_type=kind_of_step(step),
        definition=step.SerializeToString(),
        depends_on=list(dict.fromkeys(step.depends_on)),
        state=StepState.PENDING,
        attempt=0,
        task_id=None,
        task_version=0,
        task_open=False,
        result=None,
        error_message=None,
        retry_count=0,
        max_retries=step.max_retries,
        started_at=None,
        completed_at=None,
        created_at=now,
        updated_at=now,
        dispatched_at=None,
        checked_at=None,
        condition=step.when.SerializeToString() if step.HasField("when") else None,
        approval=Approval.NEEDED if step.requires_approval else Approval.NOT_NEEDED,
        timeout_seconds=step.timeout_seconds if step.HasField("timeout_seconds") else None,
        for_each=step.for_each.SerializeToString() if step.HasField("for_each") else None,
    )
