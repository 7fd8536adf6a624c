"""Ends of trainings: the tasks service decides them, and what follows here is written once, whoever tells of it first.

A job ends for good; its training ends with it. One that was COMPLETED without an adapter in the library is a fault of
its trainer, and has failed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import TypeAlias
from uuid import UUID

from atelier.events.v1 import events_pb2
from atelier.tasks.v1 import jobs_service_pb2
from google.protobuf.message import DecodeError

from meshkit import metrics
from meshkit.bus import BusMessage
from meshkit.logging import get_logger
from services.training.convert import CATEGORY_NAME, JOB_STATUS_NAME
from services.training.domain import TrainingRecord, TrainingStatus
from services.training.notices import TrainingNotices
from services.training.store import TrainingChange, TrainingStore

_log = get_logger(__name__)

_ENDED = metrics.counter("trainings_ended", "Trainings that ended", ("outcome",))
_WITHOUT_ADAPTER = "The trainer ended without an adapter"


JobState: TypeAlias = jobs_service_pb2.Job | events_pb2.JobEvent


class TrainingEnds:
    """Ends trainings whose jobs have ended.

    Args:
        store: The database.
        notices: Tells watchers and the relay.
    """

    def __init__(self, store: TrainingStore, notices: TrainingNotices) -> None:
        self._store = store
        self._notices = notices

    async def batch(self, messages: Sequence[BusMessage]) -> None:
        """Process events of jobs from JetStream."""
        for message in messages:
            try:
                event = events_pb2.JobEvent.FromString(message.data)
                training_id = UUID(event.job_id)
            except (DecodeError, ValueError):
                _log.warning("event_unreadable", subject=message.subject)
                continue
            await self.follow(training_id, event)

    async def follow(self, training_id: UUID, job: JobState) -> TrainingRecord | None:
        """Bring a training up to where its job stands.

        Returns:
            The training as it stands; None without such a one.
        """
        status = JOB_STATUS_NAME.get(job.status, "")
        if status not in ("COMPLETED", "FAILED", "CANCELLED"):
            found = await self._store.change(training_id, _interrupted) if status == "PENDING" else None
            return found[1] if found is not None else await self._store.get(training_id)
        ended_at = job.completed_at.ToDatetime(tzinfo=UTC) if job.HasField("completed_at") else datetime.now(UTC)

        def body(current: TrainingRecord) -> TrainingChange | None:
            return None if current.has_ended else _ended(current, job, status, ended_at)

        found = await self._store.change(training_id, body)
        if found is None:
            return None
        before, after = found
        if before.version != after.version:
            _ENDED.labels(after.status.value).inc()
            self._notices.changed(after.id)
        return after


def _interrupted(current: TrainingRecord) -> TrainingChange | None:
    """Return what becomes of a training whose job waits for another attempt: what it has is kept."""
    if current.has_ended or current.eta_seconds is None:
        return None
    return TrainingChange(replace(current, eta_seconds=None))


def _ended(current: TrainingRecord, job: JobState, status: str, ended_at: datetime) -> TrainingChange:
    told = job.error_message if job.HasField("error_message") else None
    category = CATEGORY_NAME.get(job.error_category) if job.HasField("error_category") else None
    # The beginning is timed by the clock of a replica, the end by that of the tasks service.
    ended_at = max(ended_at, current.started_at or ended_at, current.preprocessing_completed_at or ended_at)
    ended = replace(current, completed_at=ended_at, eta_seconds=None, wanted_samples=[], job_made=True)
    preparing = current.status in (TrainingStatus.PENDING, TrainingStatus.PREPROCESSING)
    if status == "COMPLETED" and current.local_model_path is not None:
        ended = replace(ended, status=TrainingStatus.COMPLETED, progress=100.0, current_step=current.total_steps)
        return TrainingChange(ended, tells_training=True, late_sweeps=[f"{current.folder}inputs/"])
    if status == "CANCELLED":
        ended = replace(
            ended,
            status=TrainingStatus.CANCELLED,
            resume_step=None,
            resume_objects=[],
            manifest_path=None,
            error_category="CANCELLED",
        )
        return TrainingChange(
            ended,
            tells_training=True,
            tells_preprocessing=preparing,
            late_sweeps=[current.folder],
            forgets=True,
        )
    ended = replace(
        ended,
        status=TrainingStatus.FAILED,
        error_message=_WITHOUT_ADAPTER if status == "COMPLETED" else told or "The training failed",
        error_category="INTERNAL" if status == "COMPLETED" else category or "INTERNAL",
        current_step=current.current_step,
    )
    return TrainingChange(
        ended, tells_training=True, tells_preprocessing=preparing, late_sweeps=[f"{current.folder}inputs/"]
    )
