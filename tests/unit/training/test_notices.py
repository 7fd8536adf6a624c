"""What is told of trainings by core NATS."""

from dataclasses import fields, replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

from atelier.events.v1 import events_pb2

from meshkit.bus import Bus
from services.training.domain import TrainingRecord, TrainingStatus
from services.training.notices import TrainingNotices


class Notified(Bus):
    """A bus that keeps what it was given."""

    def __init__(self) -> None:
        super().__init__("")
        self.told: list[tuple[str, events_pb2.TaskProgressEvent]] = []

    def notify(self, subject: str, payload: bytes = b"") -> None:
        self.told.append((subject, events_pb2.TaskProgressEvent.FromString(payload)))


def training(training_id: UUID, **members: Any) -> TrainingRecord:
    now = datetime.now(UTC)
    told: dict[str, Any] = dict.fromkeys(one.name for one in fields(TrainingRecord))
    told |= {"id": training_id, "tenant": "acme", "status": TrainingStatus.TRAINING, "created_at": now, "attempt": 1}
    return TrainingRecord(**told | {"progress": 19.0, "current_step": 1, "total_steps": 10} | members)


def test_how_far_a_training_is_is_told_once_a_second_for_each() -> None:
    moment = 100.0
    bus = Notified()
    notices = TrainingNotices(bus, lambda: None, lambda: moment)
    one, other = training(uuid4()), training(uuid4())
    notices.progressed(one)
    moment += 0.5
    notices.progressed(replace(one, current_step=2))
    notices.progressed(other)
    moment += 0.5
    notices.progressed(replace(one, current_step=3))
    assert [(subject, event.step) for subject, event in bus.told] == [
        (f"atelier.progress.{one.id}", 1),
        (f"atelier.progress.{other.id}", 1),
        (f"atelier.progress.{one.id}", 3),
    ]
    told = bus.told[0][1]
    assert (told.task_id, told.tenant, told.attempt, told.progress) == (str(one.id), "acme", 1, 19.0)
    assert told.total_steps == 10


def test_a_training_whose_images_are_prepared_has_taken_no_steps() -> None:
    bus = Notified()
    notices = TrainingNotices(bus, lambda: None)
    notices.progressed(training(uuid4(), status=TrainingStatus.PREPROCESSING, progress=4.0))
    [(_, told)] = bus.told
    assert (told.progress, told.HasField("step"), told.HasField("total_steps")) == (4.0, False, False)
