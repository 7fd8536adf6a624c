"""What an event of the mesh means to a listener: the life of a job, be it a task, a workflow or a training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from atelier.events.v1 import events_pb2, live_pb2
from google.protobuf.message import Message

# What is read of the stream of events.
SUBJECTS = (
    "atelier.tasks.v1.task.*",
    "atelier.tasks.v1.step.*",
    "atelier.workflows.v1.workflow.*",
    "atelier.training.v1.training.*",
    "atelier.training.v1.preprocessing.*",
)
# Core NATS, from tasks: a few a second for each task that runs.
PROGRESS_SUBJECT = "atelier.progress.*"

WORKFLOW, TRAINING = "WORKFLOW", "TRAINING"
CANCELLED = "cancelled"
_FAILED = "failed"
_MOST_ERROR_CHARS = 2000


def read(subject: str, payload: bytes) -> Message | None:
    """Return what an event tells a listener; None where it tells nothing.

    Args:
        subject: Subject of the event.
        payload: The event.

    Raises:
        google.protobuf.message.DecodeError: The payload is no event.
    """
    entity, _, what = subject.removeprefix("atelier.").rpartition(".")
    reader = _READERS.get(entity)
    return reader(what, payload) if reader is not None else None


def read_progress(event: events_pb2.TaskProgressEvent) -> Message:
    """Return what the progress of a task tells a listener."""
    message = f"step {event.step} of {event.total_steps}" if event.HasField("total_steps") else None
    return live_pb2.JobProgressEvent(job_id=event.task_id, progress=event.progress, message=message)


def _task(what: str, payload: bytes) -> Message | None:
    if what == "created":
        made = events_pb2.TaskCreatedEvent.FromString(payload)
        return live_pb2.JobCreatedEvent(job_id=made.task_id, job_type=made.task_type, created_at=made.created_at)
    event = events_pb2.TaskStatusEvent.FromString(payload)
    return _changed(what, event, event.task_type)


def _workflow(what: str, payload: bytes) -> Message | None:
    event = events_pb2.BaseEvent.FromString(payload)
    told = event.metadata.fields
    done, of = int(told["completed_steps"].number_value), int(told["total_steps"].number_value)
    if what == "running" and done:
        return _progress(event, WORKFLOW, told["progress"].number_value, f"step {done} of {of}")
    if what == "paused":
        return _progress(event, WORKFLOW, told["progress"].number_value, "paused")
    return _changed({"pending": "created", "running": "started"}.get(what, what), event, WORKFLOW)


def _training(what: str, payload: bytes) -> Message | None:
    event = events_pb2.TrainingStatusEvent.FromString(payload)
    if what == "training":
        return _progress(event, TRAINING, event.progress, f"step {event.current_step} of {event.total_steps}")
    return _changed({"pending": "created", "preprocessing": "started"}.get(what, what), event, TRAINING)


def _preprocessing(what: str, payload: bytes) -> Message | None:
    if what == "ended":  # the training's own event tells of its end
        return None
    event = events_pb2.PreprocessingStatusEvent.FromString(payload)
    done, of = event.processed_files_count, event.total_files_count
    return _progress(event, TRAINING, event.progress, f"image {done} of {of} prepared")


def _progress(event: Any, job_type: str, progress: float, message: str) -> Message:
    return live_pb2.JobProgressEvent(job_id=event.task_id, job_type=job_type, progress=progress, message=message)


def _changed(what: str, event: Any, job_type: str) -> Message | None:
    job = {"job_id": event.task_id, "job_type": job_type}
    if what == "created":
        return live_pb2.JobCreatedEvent(**job, created_at=event.timestamp)
    if what == "started":
        return live_pb2.JobStartedEvent(**job, started_at=event.timestamp)
    if what == "requeued":
        return live_pb2.JobRequeuedEvent(**job, requeued_at=event.timestamp, error=_error(event) or None)
    if what == "completed":
        ended = live_pb2.JobCompletedEvent(**job, completed_at=event.timestamp)
        if getattr(event, "local_model_path", ""):
            ended.result.update({"local_model_path": event.local_model_path})
        return ended
    if what in {_FAILED, CANCELLED}:
        error = CANCELLED if what == CANCELLED else _error(event) or _FAILED
        return live_pb2.JobFailedEvent(**job, failed_at=event.timestamp, error=error)
    return None


def _error(event: Any) -> str:
    if hasattr(event, "error_message"):
        text = str(event.error_message)
    else:
        text = event.metadata.fields["error_message"].string_value
    return text[:_MOST_ERROR_CHARS]


_READERS: Mapping[str, Callable[[str, bytes], Message | None]] = {
    "tasks.v1.task": _task,
    "tasks.v1.step": _task,
    "workflows.v1.workflow": _workflow,
    "training.v1.training": _training,
    "training.v1.preprocessing": _preprocessing,
}
