"""Trainings, their states and what may follow what. Pure: no clock, no database, no wire.

Spellings of states are those of the contract's enums without their prefix; the database's CHECK constraints are made of
the same values, and a test asserts both.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from uuid import UUID

FOLDER = "trainings"
# What trainers say is kept to its last lines.
MAX_LOG_LENGTH = 64 * 1024
_CUT = "[earlier lines are left out]\n"
PREPROCESSING_SHARE = 10.0

# What is set for every training, and shown.
SAVE_EVERY = 2000
MAX_STEP_SAVES_TO_KEEP = 4
BATCH_SIZE = 1
GRADIENT_ACCUMULATION = 1
OPTIMIZER = "adamw8bit"
SAMPLE_EVERY = 250
SAMPLE_STEPS = 25

# A lease is charged by what a training may take, until its device seconds are known.
_EXPECTED_SECONDS_A_STEP = 0.5
_EXPECTED_SECONDS_OF_PREPARATION = 60.0


class TrainingStatus(enum.StrEnum):
    """Where a training stands."""

    PENDING = "PENDING"
    PREPROCESSING = "PREPROCESSING"
    TRAINING = "TRAINING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


TERMINAL = frozenset({TrainingStatus.COMPLETED, TrainingStatus.FAILED, TrainingStatus.CANCELLED})

# Every legal change of state, and nothing else. One whose dataset is there needs no preparation.
TRANSITIONS: Mapping[TrainingStatus, frozenset[TrainingStatus]] = MappingProxyType(
    {
        TrainingStatus.PENDING: frozenset(
            {
                TrainingStatus.PREPROCESSING,
                TrainingStatus.TRAINING,
                TrainingStatus.FAILED,
                TrainingStatus.CANCELLED,
            }
        ),
        TrainingStatus.PREPROCESSING: frozenset(
            {TrainingStatus.TRAINING, TrainingStatus.FAILED, TrainingStatus.CANCELLED}
        ),
        TrainingStatus.TRAINING: frozenset({TrainingStatus.COMPLETED, TrainingStatus.FAILED, TrainingStatus.CANCELLED}),
        TrainingStatus.COMPLETED: frozenset(),
        TrainingStatus.FAILED: frozenset(),
        TrainingStatus.CANCELLED: frozenset(),
    }
)


class PreparationStage(enum.StrEnum):
    """What the preparation of images is at, in this order."""

    DOWNLOADING = "downloading"
    VALIDATING = "validating"
    TRANSFORMING = "transforming"
    CAPTIONING = "captioning"
    CACHING = "caching"
    COMPLETED = "completed"


_STAGES = tuple(one for one in PreparationStage if one is not PreparationStage.COMPLETED)


@dataclass(frozen=True, slots=True)
class TrainingRecord:
    """A training as the database holds it. The order of the fields is the order of the columns in every query.

    Attributes:
        request: The serialized CreateTraining as accepted: with defaults, its images as paths and addresses.
        total_steps: Steps in all; more than the request's where it goes on from another training.
        attempt: Newest attempt that the tasks service has confirmed; 0 before the first.
        version: Rises with every change.
        seed: Seed of all that is drawn.
        start_from: Adapter of the library to start from.
        start_from_tenant: Tenant that this adapter belongs to.
        continues: Training that it goes on from.
        job_made: Whether the tasks service has its job.
        resume_step: Steps that the newest state holds.
        resume_objects: Paths of that state.
        manifest_path: Path of the file that describes the dataset, once it is whole.
        local_model_path: Path of the adapter in the library, once it is there.
        wanted_samples: Prompts that the next report is answered with.
    """

    id: UUID
    tenant: str
    status: TrainingStatus
    priority: int
    priority_changed_at: datetime | None
    created_at: datetime
    updated_at: datetime
    started_at: datetime | None
    completed_at: datetime | None
    attempt: int
    version: int
    progress: float
    current_step: int
    total_steps: int
    eta_seconds: int | None
    request: bytes
    webhook_url: str | None
    seed: int
    masked_loss: bool
    start_from: str | None
    start_from_tenant: str
    continues: UUID | None
    job_made: bool
    resume_step: int | None
    resume_objects: Sequence[str]
    manifest_path: str | None
    local_model_path: str | None
    wanted_samples: Sequence[str]
    logs: str
    error_message: str | None
    error_category: str | None
    preprocessing_stage: str | None
    processed_files_count: int | None
    total_files_count: int | None
    preprocessing_started_at: datetime | None
    preprocessing_completed_at: datetime | None
    traceparent: str

    @property
    def has_ended(self) -> bool:
        """Whether it has ended."""
        return self.status in TERMINAL

    @property
    def folder(self) -> str:
        """Folder of its objects, ending in `/`."""
        return folder_of(self.id)

    @property
    def expected_seconds(self) -> float:
        """Device seconds that it is taken for."""
        return _EXPECTED_SECONDS_OF_PREPARATION + _EXPECTED_SECONDS_A_STEP * self.total_steps


@dataclass(frozen=True, slots=True)
class LossRecord:
    """The loss of one step."""

    step: int
    loss: float


@dataclass(frozen=True, slots=True)
class ValidationRecord:
    """The loss on the validation set at one step, for one group of noise levels."""

    step: int
    bucket: str
    loss: float


@dataclass(frozen=True, slots=True)
class SaveRecord:
    """An adapter as it was at a step."""

    step: int
    path: str
    size: int
    sha256: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class SampleRecord:
    """A picture that shows how far a training has come."""

    step: int
    index: int
    prompt: str
    seed: int
    path: str


def folder_of(training_id: object) -> str:
    """Folder of a training's objects, ending in `/`."""
    return f"{FOLDER}/{training_id}/"


def may(current: TrainingStatus, following: TrainingStatus) -> bool:
    """Whether a training in `current` may go to `following`."""
    return following in TRANSITIONS[current]


def sources_of(status: TrainingStatus) -> list[str]:
    """Return the states that may go to a state."""
    return [one.value for one in TrainingStatus if may(one, status)]


def preparation_progress(stage: PreparationStage, processed: int, total: int) -> float:
    """Percent done of a training whose images are being prepared."""
    if stage is PreparationStage.COMPLETED:
        return PREPROCESSING_SHARE
    share = min(1.0, processed / total) if total else 0.0
    return PREPROCESSING_SHARE * (_STAGES.index(stage) + share) / len(_STAGES)


def training_progress(step: int, total_steps: int) -> float:
    """Percent done of a training that has taken so many steps."""
    share = min(1.0, step / total_steps) if total_steps else 0.0
    return PREPROCESSING_SHARE + (100.0 - PREPROCESSING_SHARE) * share


def with_lines(logs: str, lines: Sequence[str]) -> str:
    """Return a log with more lines at its end, and without its first where it would be too long."""
    whole = logs.removeprefix(_CUT) + "".join(f"{line.rstrip()}\n" for line in lines if line.strip())
    if len(whole) <= MAX_LOG_LENGTH and not logs.startswith(_CUT):
        return whole
    most = MAX_LOG_LENGTH - len(_CUT)
    if len(whole) > most:
        whole = whole[-most:]
        whole = whole[whole.find("\n") + 1 :]
    return _CUT + whole
