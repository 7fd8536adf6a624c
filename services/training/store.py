"""What the use cases need of a database, in domain types; every method is one transaction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple, Protocol
from uuid import UUID

from meshkit.idempotency import IdempotencyKey
from services.training.domain import LossRecord, SampleRecord, SaveRecord, TrainingRecord, ValidationRecord


@dataclass(frozen=True, slots=True)
class TrainingChange:
    """What is to be written of a training.

    Attributes:
        record: The training as it shall be; its version and the time of its change are the store's.
        tells_training: Whether its state is told to the mesh and to its webhook.
        tells_preprocessing: The same of the preparation of its images.
        dataset: What it learns from, serialized.
        losses: Losses of steps; those of steps that are taken again replace what was there.
        validation: The same on the validation set.
        save: An adapter as it is now.
        saves_to_keep: How many of those stay, where one comes.
        sample: A sample picture.
        sweeps: Paths of objects that nothing names any more, folders with a `/` at the end.
        late_sweeps: The same, where a late trainer may still write some.
        forgets: Whether what is kept of its objects is forgotten: dataset, saves, sample pictures.
    """

    record: TrainingRecord
    tells_training: bool = False
    tells_preprocessing: bool = False
    dataset: bytes | None = None
    losses: Sequence[LossRecord] = ()
    validation: Sequence[ValidationRecord] = ()
    save: SaveRecord | None = None
    saves_to_keep: int = 0
    sample: SampleRecord | None = None
    sweeps: Sequence[str] = field(default_factory=tuple)
    late_sweeps: Sequence[str] = field(default_factory=tuple)
    forgets: bool = False


# Decides under the lock of the row; None where nothing is to be written.
ChangeTraining = Callable[[TrainingRecord], TrainingChange | None]


class ObjectSweep(NamedTuple):
    """Objects to delete.

    Attributes:
        path: One object, or a folder with `/` at its end.
        is_intent: Whether they are deleted only where the training does not exist.
    """

    training_id: UUID
    tenant: str
    path: str
    due_at: datetime
    is_intent: bool


class WebhookHandover(NamedTuple):
    """An event on its way to the webhook of its training.

    Attributes:
        event_name: Name of its message.
        event: The serialized message.
    """

    event_id: UUID
    training_id: UUID
    tenant: str
    version: int
    url: str
    event_name: str
    event: bytes


class TrainingStore(Protocol):
    """Trainings and what trainers told of them."""

    async def create(self, record: TrainingRecord, key: IdempotencyKey | None, response: bytes) -> bytes | None:
        """Write a new training; the answer given before where the key was used for the same request.

        Raises:
            MeshError: `NOT_FOUND` where the training that it goes on from was deleted meanwhile, `CONFLICT` where that
                one's state was.
        """
        ...

    async def find_replay(self, tenant: str, key: IdempotencyKey) -> bytes | None:
        """Return the answer given before under a key, without claiming it."""
        ...

    async def note_intent(self, training_id: UUID, tenant: str) -> None:
        """Have the objects of a training swept, should it never come to be."""
        ...

    async def get(self, training_id: UUID) -> TrainingRecord | None:
        """Return a training."""
        ...

    async def list_trainings(self, tenant: str | None, skip: int, limit: int) -> list[TrainingRecord]:
        """Trainings of a tenant, or of all, newest first."""
        ...

    async def open_of(self, tenant: str) -> int:
        """Return how many trainings of a tenant have not ended."""
        ...

    async def change(self, training_id: UUID, body: ChangeTraining) -> tuple[TrainingRecord, TrainingRecord] | None:
        """Change a training under its lock: the training before and after; None without such a one."""
        ...

    async def dataset(self, training_id: UUID) -> bytes | None:
        """Return what a training learns from."""
        ...

    async def losses(self, training_id: UUID, after_step: int, points: int) -> list[LossRecord]:
        """Losses after a step, in their order; where they are more than `points`, means of neighbours."""
        ...

    async def validation(self, training_id: UUID, after_step: int) -> list[ValidationRecord]:
        """Losses on the validation set after a step, in their order."""
        ...

    async def saves(self, training_id: UUID) -> list[SaveRecord]:
        """Return the adapters that are kept, oldest first."""
        ...

    async def samples(self, training_id: UUID) -> list[SampleRecord]:
        """Return the sample pictures, oldest first."""
        ...

    async def unmade(self, limit: int) -> list[TrainingRecord]:
        """Return trainings whose job the tasks service may not have."""
        ...

    async def open_jobs(self, after: UUID | None, limit: int) -> list[UUID]:
        """Return trainings that have a job and have not ended, by their identifiers, after one of them."""
        ...

    async def due_sweeps(self, limit: int) -> list[ObjectSweep]:
        """Return objects that are to be deleted now."""
        ...

    async def forget_sweep(self, sweep: ObjectSweep) -> None:
        """Forget what was deleted."""
        ...

    async def age_out(self, age_seconds: float, limit: int) -> int:
        """Have the folders of trainings swept that ended so long ago and that none goes on from; return how many."""
        ...

    async def handovers(self, limit: int) -> list[WebhookHandover]:
        """Return events that are to be handed in, oldest first."""
        ...

    async def forget_handover(self, event_id: UUID) -> None:
        """Forget an event that was handed in."""
        ...

    async def purge_keys(self) -> int:
        """Delete idempotency keys after their time; return how many."""
        ...
