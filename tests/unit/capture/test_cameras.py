"""How a camera is, by what is known of it."""

from datetime import UTC, datetime, timedelta

import pytest
from atelier.events.v1 import live_pb2

from meshkit.live.capture import read, subject_of
from services.monitoring.capture.cameras.domain import CameraStatus, judge
from services.monitoring.capture.photos.domain import shown

NOW = datetime(2026, 11, 27, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("trouble", "ago", "status", "message"),
    [
        (None, None, CameraStatus.UNKNOWN, None),
        (None, 60, CameraStatus.ONLINE, None),
        (None, 61, CameraStatus.OFFLINE, "No photo for 60 s"),
        ("Its folder is not there", 1, CameraStatus.ERROR, "Its folder is not there"),
        ("Its folder is not there", None, CameraStatus.ERROR, "Its folder is not there"),
    ],
)
def test_a_camera_is_judged(trouble: str | None, ago: int | None, status: CameraStatus, message: str | None) -> None:
    last = None if ago is None else NOW - timedelta(seconds=ago)
    assert judge(trouble, last, NOW, 60) == (status, message)


def test_names_are_shown_without_what_a_terminal_obeys() -> None:
    assert shown("Kamera/Bücher 1.jpg".encode()) == "Kamera/Bücher 1.jpg"
    assert shown(b"left/\xff\x1b[31m\n.jpg") == r"left/\xff\x1b[31m\n.jpg"


def test_a_message_travels_on_the_subject_of_its_type() -> None:
    message = live_pb2.CameraStatusChangedEvent(camera_id="left", status="online", previous_status="unknown")
    subject, type_ = subject_of(message)
    assert (subject, type_) == ("atelier.capture.v1.camera.status_changed", "camera.status_changed")
    assert read(subject, message.SerializeToString()) == message
    assert read("atelier.tasks.v1.task.created", b"") is None
    assert read("atelier.capture.v1.camera.unheard_of", b"") is None
    with pytest.raises(ValueError, match="is no message of capture"):
        subject_of(live_pb2.JobCreatedEvent())
