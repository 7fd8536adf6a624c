"""Cameras as messages."""

from __future__ import annotations

from atelier.monitoring.v1 import capture_camera_service_pb2 as pb

from meshkit.moments import assign
from services.monitoring.capture.cameras.domain import CameraRecord, CameraStatus

_STATUS = {status: pb.CameraStatus.Value(f"CAMERA_STATUS_{status.name}") for status in CameraStatus}


def to_camera(record: CameraRecord) -> pb.Camera:
    """Return a camera for the wire."""
    camera = pb.Camera(
        camera_id=record.id,
        enabled=record.enabled,
        status=_STATUS[record.status],
        previous_status=_STATUS[record.previous_status],
        message=record.message,
    )
    if record.last_file_at is not None:
        assign(camera.last_file_at, record.last_file_at)
    assign(camera.created_at, record.created_at)
    return camera
