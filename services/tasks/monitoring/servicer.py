"""TaskMonitoringService over gRPC: decode, call, encode."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import grpc
from atelier.tasks.v1 import monitoring_service_pb2 as pb
from atelier.tasks.v1.monitoring_service_pb2_grpc import TaskMonitoringServiceServicer

from meshkit.access import Caller
from meshkit.estimates import ESTIMATED
from meshkit.media_urls import MediaLinks
from services.tasks.catalog import QUEUES
from services.tasks.monitoring import convert
from services.tasks.monitoring.requeues import TaskRequeues
from services.tasks.monitoring.service import TaskMonitor

Context = grpc.aio.ServicerContext[Any, Any]


class TaskMonitoringServicer(TaskMonitoringServiceServicer):
    """Answers operators.

    Args:
        monitor: The use cases.
        requeues: Makes failed tasks again.
        links: Makes addresses of pictures.
    """

    def __init__(self, monitor: TaskMonitor, requeues: TaskRequeues, links: MediaLinks) -> None:
        self._monitor = monitor
        self._requeues = requeues
        self._links = links

    async def ListMonitoredTasks(
        self, request: pb.ListMonitoredTasksRequest, context: Context
    ) -> pb.ListMonitoredTasksResponse:
        query = convert.to_query(request)
        response = pb.ListMonitoredTasksResponse(page=request.page, page_size=request.page_size)
        caller = Caller.of_call()
        if query is None:
            return response
        tasks, total, exact = await self._monitor.list_tasks(query, caller)
        if not exact:
            context.set_trailing_metadata(ESTIMATED)
        response.items.extend(convert.to_item(task) for task in tasks)
        response.total = total
        response.pages = -(-total // request.page_size)
        return response

    async def ListTaskRows(self, request: pb.ListTaskRowsRequest, context: Context) -> pb.ListTaskRowsResponse:
        del context
        rows = await self._monitor.list_rows(convert.to_rows_query(request), Caller.of_call())
        return convert.to_rows(rows, request.page_size)

    async def GetMonitoredTask(
        self, request: pb.GetMonitoredTaskRequest, context: Context
    ) -> pb.GetMonitoredTaskResponse:
        del context
        task_id, caller = UUID(request.task_id), Caller.of_call()
        record = await self._monitor.get(task_id, caller)
        return convert.to_detail(record, await self._monitor.service_requests(task_id, caller))

    async def RequeueTasks(self, request: pb.RequeueTasksRequest, context: Context) -> pb.RequeueTasksResponse:
        del context
        caller, dry_run = Caller.of_call(), request.dry_run
        if request.task_ids:
            named = [UUID(one) for one in request.task_ids]
            return convert.to_requeues(await self._requeues.named(named, caller, dry_run=dry_run))
        query, category = convert.to_requeue_query(request)
        report = await self._requeues.matching(query, category, caller, request.limit, dry_run=dry_run)
        return convert.to_requeues(report)

    async def GetTaskMedia(self, request: pb.GetTaskMediaRequest, context: Context) -> pb.GetTaskMediaResponse:
        del context
        return convert.to_media(await self._monitor.get(UUID(request.task_id), Caller.of_call()), self._links)

    async def GetTaskStats(self, request: pb.GetTaskStatsRequest, context: Context) -> pb.GetTaskStatsResponse:
        del context
        counts = await self._monitor.counts(
            request.origin_instance or None, request.origin_zone or None, Caller.of_call()
        )
        return convert.to_stats(counts)

    async def GetQueueStats(self, request: pb.GetQueueStatsRequest, context: Context) -> pb.GetQueueStatsResponse:
        del request, context
        return convert.to_queues(*await self._monitor.queues(Caller.of_call()))

    async def GetWorkerStats(self, request: pb.GetWorkerStatsRequest, context: Context) -> pb.GetWorkerStatsResponse:
        del request, context
        return convert.to_workers(await self._monitor.fleet())

    async def GetWorkersHealth(
        self, request: pb.GetWorkersHealthRequest, context: Context
    ) -> pb.GetWorkersHealthResponse:
        del request, context
        return convert.to_health(await self._monitor.fleet(), sorted(QUEUES))

    async def GetWorkFigures(self, request: pb.GetWorkFiguresRequest, context: Context) -> pb.GetWorkFiguresResponse:
        del request, context
        return convert.to_work_figures(await self._monitor.work_figures())

    async def GetCeleryStats(self, request: pb.GetCeleryStatsRequest, context: Context) -> pb.GetCeleryStatsResponse:
        del request, context
        return convert.to_celery_stats(await self._monitor.celery_stats())
