"""The tasks service as this one needs it: it owns the lifecycle of a training's job, and delivers webhooks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from atelier.events.v1 import events_pb2
from atelier.tasks.v1 import jobs_service_pb2, webhooks_service_pb2, worker_service_pb2
from atelier.tasks.v1.jobs_service_pb2_grpc import JobsServiceStub
from atelier.tasks.v1.webhooks_service_pb2_grpc import WebhookServiceStub
from google.protobuf import message_factory

from meshkit.channel import MeshChannel, call_metadata
from meshkit.moments import duration_of
from services.training.domain import TrainingRecord
from services.training.store import WebhookHandover

QUEUE = "training"
_SECONDS = 10.0


class JobCalls:
    """Calls the tasks service.

    Args:
        channel: Channel to it.
        timeout_seconds: How long one attempt at a training may run.
    """

    def __init__(self, channel: MeshChannel, *, timeout_seconds: float) -> None:
        self._jobs = channel.stub(JobsServiceStub)
        self._webhooks = channel.stub(WebhookServiceStub)
        self._timeout = timeout_seconds

    async def make(self, record: TrainingRecord) -> jobs_service_pb2.Job:
        """Queue the job of a training, or return the one that is there."""
        request = jobs_service_pb2.CreateJobRequest(
            job_id=str(record.id),
            kind=worker_service_pb2.JOB_KIND_TRAINING,
            tenant=record.tenant,
            priority=record.priority,
            queue_name=QUEUE,
            timeout=duration_of(self._timeout),
            expected_seconds=record.expected_seconds,
            traceparent=record.traceparent,
        )
        return (await self._jobs.CreateJob(request, timeout=_SECONDS)).job

    async def cancel(self, training_id: UUID) -> jobs_service_pb2.Job:
        """Cancel a job unless it ended; it as it stands."""
        request = jobs_service_pb2.CancelJobRequest(job_id=str(training_id))
        return (await self._jobs.CancelJob(request, timeout=_SECONDS)).job

    async def set_priority(self, training_id: UUID, priority: int) -> jobs_service_pb2.Job:
        """Change the order of a job; it as it stands."""
        request = jobs_service_pb2.SetJobPriorityRequest(job_id=str(training_id), priority=priority)
        return (await self._jobs.SetJobPriority(request, timeout=_SECONDS)).job

    async def find(self, training_ids: Sequence[UUID]) -> dict[UUID, jobs_service_pb2.Job]:
        """Return those of these jobs that exist."""
        request = jobs_service_pb2.GetJobsRequest(job_ids=[str(one) for one in training_ids])
        return {UUID(job.job_id): job for job in (await self._jobs.GetJobs(request, timeout=_SECONDS)).jobs}

    async def forget(self, training_ids: Sequence[UUID]) -> list[UUID]:
        """Delete the jobs of trainings that have ended; those that stay, because a webhook is still to be delivered."""
        request = jobs_service_pb2.ForgetJobsRequest(job_ids=[str(one) for one in training_ids])
        return [UUID(one) for one in (await self._jobs.ForgetJobs(request, timeout=_SECONDS)).kept_ids]

    async def enqueue_webhook(self, handover: WebhookHandover) -> None:
        """Hand a webhook of a training in; the tasks service delivers it and accepts each event once."""
        message: Any = message_factory.GetMessageClass(
            events_pb2.DESCRIPTOR.message_types_by_name[handover.event_name]
        ).FromString(handover.event)
        request = webhooks_service_pb2.EnqueueRequest(
            event_id=str(handover.event_id),
            entity_id=str(handover.training_id),
            entity_version=handover.version,
            url=handover.url,
        )
        request.event.Pack(message)
        await self._webhooks.Enqueue(request, timeout=_SECONDS, metadata=call_metadata(tenant=handover.tenant))
