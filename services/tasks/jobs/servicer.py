"""JobsService over gRPC: decode, call, encode."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import grpc
from atelier.tasks.v1 import jobs_service_pb2, jobs_service_pb2_grpc

from meshkit.moments import assign, seconds_of
from services.tasks.convert import CATEGORY, KIND, KIND_NAME, STATUS
from services.tasks.domain import JobKind, TaskRecord
from services.tasks.jobs.service import JobsService
from services.tasks.retention.store import RetentionStore

Context = grpc.aio.ServicerContext[Any, Any]


class JobsServicer(jobs_service_pb2_grpc.JobsServiceServicer):
    """Answers services that have jobs.

    Args:
        jobs: The use cases.
        retention: Deletes what is of no use any more.
    """

    def __init__(self, jobs: JobsService, retention: RetentionStore) -> None:
        self._jobs = jobs
        self._retention = retention

    async def CreateJob(
        self, request: jobs_service_pb2.CreateJobRequest, context: Context
    ) -> jobs_service_pb2.CreateJobResponse:
        del context
        record = await self._jobs.create(
            UUID(request.job_id),
            JobKind(KIND_NAME[request.kind]),
            tenant=request.tenant,
            priority=request.priority,
            queue_name=request.queue_name,
            timeout_seconds=seconds_of(request.timeout),
            expected_seconds=request.expected_seconds,
            traceparent=request.traceparent,
        )
        return jobs_service_pb2.CreateJobResponse(job=to_job(record))

    async def CancelJob(
        self, request: jobs_service_pb2.CancelJobRequest, context: Context
    ) -> jobs_service_pb2.CancelJobResponse:
        del context
        return jobs_service_pb2.CancelJobResponse(job=to_job(await self._jobs.cancel(UUID(request.job_id))))

    async def SetJobPriority(
        self, request: jobs_service_pb2.SetJobPriorityRequest, context: Context
    ) -> jobs_service_pb2.SetJobPriorityResponse:
        del context
        record = await self._jobs.set_priority(UUID(request.job_id), request.priority)
        return jobs_service_pb2.SetJobPriorityResponse(job=to_job(record))

    async def GetJobs(
        self, request: jobs_service_pb2.GetJobsRequest, context: Context
    ) -> jobs_service_pb2.GetJobsResponse:
        del context
        records = await self._jobs.find([UUID(job_id) for job_id in request.job_ids])
        return jobs_service_pb2.GetJobsResponse(jobs=[to_job(record) for record in records])

    async def HoldTasks(
        self, request: jobs_service_pb2.HoldTasksRequest, context: Context
    ) -> jobs_service_pb2.HoldTasksResponse:
        del context
        await self._retention.hold(request.tenant, [UUID(task_id) for task_id in request.task_ids])
        return jobs_service_pb2.HoldTasksResponse()

    async def ForgetJobs(
        self, request: jobs_service_pb2.ForgetJobsRequest, context: Context
    ) -> jobs_service_pb2.ForgetJobsResponse:
        del context
        if request.HasField("workflow_id"):
            forgotten = await self._retention.forget_tasks_of(UUID(request.workflow_id))
        else:
            forgotten = await self._retention.forget_jobs([UUID(job_id) for job_id in request.job_ids])
        return jobs_service_pb2.ForgetJobsResponse(
            forgotten=forgotten.deleted, kept_ids=[str(one) for one in forgotten.kept]
        )


def to_job(record: TaskRecord) -> jobs_service_pb2.Job:
    """Return a job as its service sees it."""
    job = jobs_service_pb2.Job(
        job_id=str(record.id),
        kind=KIND[record.kind],
        tenant=record.tenant,
        status=STATUS[record.status],
        priority=record.priority,
        attempt=record.attempt,
        version=record.version,
    )
    if record.errors:
        job.error_message = record.errors[-1]
    if record.error_category is not None:
        job.error_category = CATEGORY[record.error_category]
    if record.started_at is not None:
        assign(job.started_at, record.started_at)
    if record.completed_at is not None:
        assign(job.completed_at, record.completed_at)
    return job
