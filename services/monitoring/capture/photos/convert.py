"""Photos and batches between messages and domain."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID

from atelier.monitoring.v1 import capture_photo_service_pb2 as pb

from meshkit.moments import assign
from services.monitoring.capture.batches.domain import BatchesWanted, BatchRecord, BatchState
from services.monitoring.capture.photos.domain import DetectionRecord, PhotoRecord, PhotoState, PhotosWanted
from services.monitoring.capture.runs.domain import RunRecord

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# What a timestamp on the wire can hold.
_EARLIEST, _LATEST = datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
_PHOTO_STATES = {state: pb.PhotoState.Value(f"PHOTO_STATE_{state.name}") for state in PhotoState}
_BATCH_STATES = {state: pb.BatchState.Value(f"BATCH_STATE_{state.name}") for state in BatchState}
_PHOTO_STATES_READ = {value: state for state, value in _PHOTO_STATES.items()}
_BATCH_STATES_READ = {value: state for state, value in _BATCH_STATES.items()}


def to_photos_wanted(request: pb.ListPhotosRequest) -> PhotosWanted:
    """Return which photos are asked for."""
    return PhotosWanted(
        camera_id=request.camera_id if request.HasField("camera_id") else None,
        state=_PHOTO_STATES_READ.get(request.state),
        batch_id=UUID(request.batch_id) if request.HasField("batch_id") else None,
    )


def to_batches_wanted(request: pb.ListBatchesRequest) -> BatchesWanted:
    """Return which batches are asked for."""
    return BatchesWanted(
        camera_id=request.camera_id if request.HasField("camera_id") else None,
        state=_BATCH_STATES_READ.get(request.state),
    )


def to_photo(record: PhotoRecord, detections: Sequence[DetectionRecord] = ()) -> pb.Photo:
    """Return a photo for the wire."""
    photo = pb.Photo(
        photo_id=str(record.id),
        camera_id=record.camera_id,
        path=record.path,
        size=record.size,
        sha256=record.sha256 or None,
        state=_PHOTO_STATES[record.state],
        task_id=None if record.task_id is None else str(record.task_id),
        error=record.error,
        batch_id=None if record.batch_id is None else str(record.batch_id),
        detections=[to_detection(one) for one in detections],
    )
    assign(photo.modified_at, _moment(record.modified_ns))
    assign(photo.seen_at, record.seen_at)
    if record.detected_at is not None:
        assign(photo.detected_at, record.detected_at)
    if record.findings is not None:
        photo.findings.update(dict(record.findings))
    return photo


def to_run(record: RunRecord) -> pb.PhotoRun:
    """Return the workflow of a photo for the wire."""
    return pb.PhotoRun(
        state=pb.PhotoRunState.Value(f"PHOTO_RUN_STATE_{record.state.name}"),
        workflow_id=None if record.workflow_id is None else str(record.workflow_id),
        error=record.error,
        result_paths=record.results,
    )


def to_detection(record: DetectionRecord) -> pb.Detection:
    """Return what was found for the wire."""
    found = pb.Detection(
        detection_id=record.id,
        photo_id=str(record.photo_id),
        camera_id=record.camera_id,
        object_type=record.object_type,
        label=record.label,
        confidence=record.confidence,
    )
    if record.bbox is not None:
        found.bbox.x, found.bbox.y, found.bbox.width, found.bbox.height = record.bbox
    assign(found.detected_at, record.detected_at)
    return found


def to_batch(record: BatchRecord) -> pb.Batch:
    """Return a batch for the wire."""
    batch = pb.Batch(
        batch_id=str(record.id),
        camera_id=record.camera_id,
        state=_BATCH_STATES[record.state],
        photo_count=record.photo_count,
        detection_count=record.detection_count,
    )
    assign(batch.started_at, record.started_at)
    assign(batch.last_activity_at, record.last_activity_at)
    if record.closed_at is not None:
        assign(batch.closed_at, record.closed_at)
    return batch


def _moment(nanoseconds: int) -> datetime:
    """Return a time of change; whoever writes a file may set it to anything."""
    try:
        found = _EPOCH + timedelta(microseconds=nanoseconds // 1000)
    except OverflowError:
        return _LATEST if nanoseconds > 0 else _EARLIEST
    return found
