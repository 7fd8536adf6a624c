"""The services over gRPC: decode, call, encode."""

from __future__ import annotations

from datetime import UTC
from typing import Any
from uuid import UUID

import grpc
from atelier.workflows.v1 import monitoring_service_pb2 as monitoring
from atelier.workflows.v1 import workflow_pb2
from atelier.workflows.v1 import workflows_service_pb2 as api
from atelier.workflows.v1.monitoring_service_pb2_grpc import WorkflowMonitoringServiceServicer
from atelier.workflows.v1.workflows_service_pb2_grpc import WorkflowsServiceServicer

from meshkit.access import Caller
from meshkit.estimates import ESTIMATED
from meshkit.idempotency import REPLAYED, IdempotencyKey
from meshkit.retention import Pruning
from meshkit.retention_calls import to_lines
from services.workflows.convert import STATUS_NAME, to_detail, to_item, to_workflow
from services.workflows.domain import WorkflowStatus
from services.workflows.service import CleanupReport, WorkflowsService
from services.workflows.store import Page, WorkflowFilter

Context = grpc.aio.ServicerContext[Any, Any]


class WorkflowsServicer(WorkflowsServiceServicer):
    """Answers callers.

    Args:
        workflows: The use cases.
    """

    def __init__(self, workflows: WorkflowsService) -> None:
        self._workflows = workflows

    async def CreateWorkflow(self, request: api.CreateWorkflowRequest, context: Context) -> api.CreateWorkflowResponse:
        key = IdempotencyKey.of_call("CreateWorkflow", request)
        answer, replayed = await self._workflows.create(request, Caller.of_call(), key)
        if replayed:
            context.set_trailing_metadata(REPLAYED)
        if isinstance(answer, bytes):
            return api.CreateWorkflowResponse.FromString(answer)
        return api.CreateWorkflowResponse(workflow=to_workflow(answer))

    async def ListWorkflows(self, request: api.ListWorkflowsRequest, context: Context) -> api.ListWorkflowsResponse:
        del context
        which = WorkflowFilter(
            tenant=_text(request, "origin_tenant_id"),
            status=_status(request),
            origin_instance=_text(request, "origin_instance"),
            include_deleted=request.include_deleted,
        )
        found, total = await self._workflows.list_workflows(which, Caller.of_call(), Page(request.skip, request.limit))
        workflows = [to_workflow(whole) for whole in found]
        return api.ListWorkflowsResponse(workflows=workflows, total=total, skip=request.skip, limit=request.limit)

    async def GetWorkflow(self, request: api.GetWorkflowRequest, context: Context) -> api.GetWorkflowResponse:
        del context
        whole = await self._workflows.get(UUID(request.workflow_id), Caller.of_call())
        return api.GetWorkflowResponse(workflow=to_workflow(whole))

    async def UpdateWorkflow(self, request: api.UpdateWorkflowRequest, context: Context) -> api.UpdateWorkflowResponse:
        del context
        mask = list(request.update_mask.paths)
        whole = await self._workflows.update(UUID(request.workflow_id), request.update, mask, Caller.of_call())
        return api.UpdateWorkflowResponse(workflow=to_workflow(whole))

    async def CancelWorkflow(self, request: api.CancelWorkflowRequest, context: Context) -> api.CancelWorkflowResponse:
        del context
        whole = await self._workflows.cancel(UUID(request.workflow_id), Caller.of_call())
        return api.CancelWorkflowResponse(workflow=to_workflow(whole))

    async def StartWorkflow(self, request: api.StartWorkflowRequest, context: Context) -> api.StartWorkflowResponse:
        del context
        whole = await self._workflows.start(UUID(request.workflow_id), Caller.of_call())
        return api.StartWorkflowResponse(workflow=to_workflow(whole))

    async def PauseWorkflow(self, request: api.PauseWorkflowRequest, context: Context) -> api.PauseWorkflowResponse:
        del context
        whole = await self._workflows.pause(UUID(request.workflow_id), Caller.of_call())
        return api.PauseWorkflowResponse(workflow=to_workflow(whole))

    async def ResumeWorkflow(self, request: api.ResumeWorkflowRequest, context: Context) -> api.ResumeWorkflowResponse:
        del context
        whole = await self._workflows.resume(UUID(request.workflow_id), Caller.of_call())
        return api.ResumeWorkflowResponse(workflow=to_workflow(whole))

    async def CleanupWorkflow(
        self, request: api.CleanupWorkflowRequest, context: Context
    ) -> api.CleanupWorkflowResponse:
        del context
        whole, report = await self._workflows.cleanup(
            UUID(request.workflow_id), Caller.of_call(), tasks=request.cleanup_tasks
        )
        return api.CleanupWorkflowResponse(workflow=to_workflow(whole), cleanup=_report(report))


class WorkflowMonitoringServicer(WorkflowMonitoringServiceServicer):
    """Answers operators.

    Args:
        workflows: The use cases.
        retention: Knows what is old.
    """

    def __init__(self, workflows: WorkflowsService, retention: Pruning) -> None:
        self._workflows = workflows
        self._retention = retention

    async def PreviewWorkflowRetention(
        self, request: monitoring.PreviewWorkflowRetentionRequest, context: Context
    ) -> monitoring.PreviewWorkflowRetentionResponse:
        del context
        days = request.days if request.HasField("days") else None
        lines = await self._retention.preview(_text(request, "tenant"), days)
        return monitoring.PreviewWorkflowRetentionResponse(lines=to_lines(lines))

    async def ListMonitoredWorkflows(
        self, request: monitoring.ListMonitoredWorkflowsRequest, context: Context
    ) -> monitoring.ListMonitoredWorkflowsResponse:
        def moment(name: str) -> Any:
            return getattr(request, name).ToDatetime(tzinfo=UTC) if request.HasField(name) else None  # type: ignore[arg-type]  # names of the message

        which = WorkflowFilter(
            tenant=_text(request, "origin_tenant_id"),
            status=_status(request),
            origin_instance=_text(request, "origin_instance"),
            origin_zone=_text(request, "origin_zone"),
            created_after=moment("created_after"),
            created_before=moment("created_before"),
            search=_text(request, "search"),
        )
        size = request.page_size
        page = Page((request.page - 1) * size, size, request.sort_by, descending=request.sort_order == "desc")
        found, total, exact = await self._workflows.list_items(which, Caller.of_call(), page)
        if not exact:
            context.set_trailing_metadata(ESTIMATED)
        return monitoring.ListMonitoredWorkflowsResponse(
            items=[to_item(one) for one in found],
            total=total,
            page=request.page,
            page_size=size,
            pages=-(-total // size),
        )

    async def GetWorkflowStats(
        self, request: monitoring.GetWorkflowStatsRequest, context: Context
    ) -> monitoring.GetWorkflowStatsResponse:
        del context
        which = WorkflowFilter(
            origin_instance=_text(request, "origin_instance"), origin_zone=_text(request, "origin_zone")
        )
        stats = await self._workflows.stats(which, Caller.of_call())
        return monitoring.GetWorkflowStatsResponse(
            total_workflows=sum(stats.by_status.values()),
            by_status={status.value: stats.by_status.get(status.value, 0) for status in WorkflowStatus},
            workflows_last_hour=stats.last_hour,
            workflows_last_24h=stats.last_day,
            avg_steps_per_workflow=stats.average_steps,
        )

    async def GetMonitoredWorkflow(
        self, request: monitoring.GetMonitoredWorkflowRequest, context: Context
    ) -> monitoring.GetMonitoredWorkflowResponse:
        del context
        return to_detail(await self._workflows.get(UUID(request.workflow_id), Caller.of_call()))


def _text(request: Any, name: str) -> str | None:
    return getattr(request, name) if request.HasField(name) else None


def _status(request: Any) -> WorkflowStatus | None:
    name = STATUS_NAME.get(request.status) if request.HasField("status") else None
    return WorkflowStatus(name) if name is not None else None


def _report(report: CleanupReport) -> workflow_pb2.WorkflowCleanupDetail:
    return workflow_pb2.WorkflowCleanupDetail(
        tasks_processed=report.processed,
        tasks_cleaned=report.cleaned,
        deleted_paths=report.deleted,
        errors=[
            workflow_pb2.WorkflowCleanupError(
                task_id=str(task_id), step_id=step.step_id, task_type=step.task_type, error=error
            )
            for task_id, step, error in report.errors
        ],
    )
