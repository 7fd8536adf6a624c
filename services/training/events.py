"""What the service tells the mesh: the documented events, as rows for the outbox."""

from __future__ import annotations

from typing import Any

from atelier.events.v1 import events_pb2
from atelier.training.v1 import training_pb2

from meshkit.moments import assign
from meshkit.outbox import OutboxEvent, event_headers
from services.training.domain import TERMINAL, PreparationStage, TrainingRecord, TrainingStatus

TRAINING_SUBJECT = "atelier.training.v1.training"
PREPROCESSING_SUBJECT = "atelier.training.v1.preprocessing"
JOB_ENDED = "atelier.tasks.v1.job.ended"
JOB_REQUEUED = "atelier.tasks.v1.job.requeued"
# On core NATS, for whoever watches: something of a training has changed.
NOTICE_SUBJECT = "atelier.changed.training"
# Likewise, for those who listen to events live.
PROGRESS_SUBJECT = "atelier.progress"


def training_status(record: TrainingRecord) -> events_pb2.TrainingStatusEvent:
    """Return the documented event of a training as it stands."""
    event = events_pb2.TrainingStatusEvent(
        event_type=events_pb2.EVENT_TYPE_TRAINING_STATUS_UPDATE,
        task_id=str(record.id),
        status=record.status.value,
        progress=record.progress,
        current_step=record.current_step,
        total_steps=record.total_steps,
        eta_seconds=record.eta_seconds,
        local_model_path=record.local_model_path,
        error_message=record.error_message if record.status is TrainingStatus.FAILED else None,
    )
    if record.completed_at is not None:
        assign(event.completed_at, record.completed_at)
    _describe(event, record)
    return event


def preprocessing_status(record: TrainingRecord) -> events_pb2.PreprocessingStatusEvent:
    """Return the documented event of the preparation of a training's images."""
    event = events_pb2.PreprocessingStatusEvent(
        event_type=events_pb2.EVENT_TYPE_PREPROCESSING_STATUS_UPDATE,
        task_id=str(record.id),
        status=record.status.value,
        progress=record.progress,
        processed_files_count=record.processed_files_count or 0,
        total_files_count=record.total_files_count or 0,
        current_stage=record.preprocessing_stage,
        processed_dataset_path=dataset_folder(record),
        error_message=record.error_message if record.status is TrainingStatus.FAILED else None,
    )
    if record.preprocessing_completed_at is not None:
        assign(event.completed_at, record.preprocessing_completed_at)
    _describe(event, record)
    return event


def training_progressed(record: TrainingRecord) -> events_pb2.TaskProgressEvent:
    """Return how far a training is, in steps once it takes some."""
    event = events_pb2.TaskProgressEvent(
        task_id=str(record.id), tenant=record.tenant, attempt=record.attempt, progress=record.progress
    )
    if record.status is TrainingStatus.TRAINING:
        event.step, event.total_steps = record.current_step, record.total_steps
    return event


def dataset_folder(record: TrainingRecord) -> str | None:
    """Folder of a training's dataset, once that is whole."""
    return record.manifest_path.rpartition("/")[0] if record.manifest_path else None


def training_changed(record: TrainingRecord) -> OutboxEvent:
    """Return that a training changed its state."""
    return _outbox(
        f"{TRAINING_SUBJECT}.{record.status.value.lower()}", record, training_status(record), "training_status_update"
    )


def preprocessing_changed(record: TrainingRecord) -> OutboxEvent:
    """Return that the preparation of a training's images began, got further, or ended."""
    if record.status in TERMINAL:
        what = "ended"
    else:
        what = "completed" if record.preprocessing_stage == PreparationStage.COMPLETED else "running"
    return _outbox(
        f"{PREPROCESSING_SUBJECT}.{what}", record, preprocessing_status(record), "preprocessing_status_update"
    )


def _describe(event: Any, record: TrainingRecord) -> None:
    wanted = training_pb2.CreateTraining.FromString(record.request)
    assign(event.timestamp, record.updated_at)
    event.origin_instance = wanted.origin_instance
    for name in ("entity_id", "origin_version", "origin_zone"):
        if wanted.HasField(name):
            setattr(event, name, getattr(wanted, name))


def _outbox(subject: str, record: TrainingRecord, event: Any, event_type: str) -> OutboxEvent:
    headers = event_headers(
        version=record.version, tenant=record.tenant, event_type=event_type, traceparent=record.traceparent
    )
    return OutboxEvent(subject, event.SerializeToString(), headers)
