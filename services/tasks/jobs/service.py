"""Use cases of services that have jobs on the scheduler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from uuid import UUID

from meshkit import metrics
from meshkit.auth import valid_tenant
from meshkit.errors import invalid
from services.tasks.catalog import JOB_QUEUES, LOCAL
from services.tasks.domain import AttemptRef, JobKind, TaskRecord, TaskStatus, new_task
from services.tasks.errors import job_not_found
from services.tasks.jobs.store import JobStore
from services.tasks.notifier import Notifier

_ENDED = metrics.counter("tasks_ended", "Tasks that ended", ("task_type", "outcome"))


class JobsService:
    """Jobs, as the services that own them know them.

    Args:
        store: The database.
        notifier: Tells other replicas and workers what happened.
        clock: Gives the present, in UTC.
    """

    def __init__(self, store: JobStore, notifier: Notifier, clock: Callable[[], datetime]) -> None:
        self._store = store
        self._notifier = notifier
        self._clock = clock

    async def create(
        self,
        job_id: UUID,
        kind: JobKind,
        *,
        tenant: str,
        priority: int,
        queue_name: str,
        timeout_seconds: float,
        expected_seconds: float,
        traceparent: str,
    ) -> TaskRecord:
        """Queue a job, or return the one that has the identifier.

        Raises:
            MeshError: `INVALID` for a queue of other work or a malformed tenant, `CONFLICT` where the identifier is in
                use for something else.
        """
        if queue_name != JOB_QUEUES[kind]:
            raise invalid("queue_name", f"Jobs of kind {kind} wait in the queue {JOB_QUEUES[kind]!r}", "unknown_queue")
        if not valid_tenant(tenant):
            raise invalid("tenant", "is not a tenant's name", "tenant")
        record = new_task(
            task_id=job_id,
            tenant=tenant,
            task_type=kind.value,
            priority=priority,
            queue_name=queue_name,
            provider_type=LOCAL,
            now=self._clock(),
            origin_instance="",
            origin_zone=None,
            origin_reference=None,
            workflow_id=None,
            webhook_url=None,
            timeout_seconds=timeout_seconds,
            warm_keys=(),
            traceparent=traceparent,
            spec=b"",
            body=b"",
            kind=kind,
        )
        written, is_new = await self._store.create(record, expected_seconds)
        if is_new:
            self._notifier.waiting(written.queue_name)
        return written

    async def cancel(self, job_id: UUID) -> TaskRecord:
        """Cancel a job; one that has ended stays as it is.

        Raises:
            MeshError: `NOT_FOUND`.
        """
        found = await self._store.cancel(job_id)
        if found is None:
            raise job_not_found(job_id)
        before, after = found
        if before.version != after.version:
            _ENDED.labels(after.task_type, TaskStatus.CANCELLED.value).inc()
            self._notifier.committed()
        if before.lease_session is not None:
            self._notifier.cancelled(before.lease_session, AttemptRef(before.id, before.attempt))
        return after

    async def set_priority(self, job_id: UUID, priority: int) -> TaskRecord:
        """Change the order of a job among those of its tenant; one that has ended stays as it is.

        Raises:
            MeshError: `NOT_FOUND`.
        """
        record = await self._store.set_priority(job_id, priority)
        if record is None:
            raise job_not_found(job_id)
        if record.status == TaskStatus.PENDING:
            self._notifier.waiting(record.queue_name)
        return record

    async def find(self, job_ids: Sequence[UUID]) -> list[TaskRecord]:
        """Return those of these jobs that exist."""
        return await self._store.find(job_ids)
