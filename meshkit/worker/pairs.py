"""What a worker runs: (task type or job kind, provider) pairs."""

from __future__ import annotations

from typing import NamedTuple

from atelier.tasks.v1.enums_pb2 import (
    PROVIDER_TYPE_LOCAL,
    PROVIDER_TYPE_UNSPECIFIED,
    TASK_TYPE_UNSPECIFIED,
    ProviderType,
    TaskType,
)
from atelier.tasks.v1.task_pb2 import CreateTask, Task
from atelier.tasks.v1.worker_service_pb2 import JOB_KIND_TASK, JOB_KIND_TRAINING, JobKind, ServedPair

from meshkit.catalog import type_name, type_of_detail


class Pair(NamedTuple):
    """A task type, or training, done by one provider.

    Attributes:
        task_type: The type; unspecified for training jobs.
        provider: Who does the work.
        kind: Kind of the jobs.
    """

    task_type: TaskType.ValueType
    provider: ProviderType.ValueType = PROVIDER_TYPE_LOCAL
    kind: JobKind.ValueType = JOB_KIND_TASK

    @property
    def label(self) -> str:
        """Name of the type, as metrics have it (`GENERATION`, `TRAINING`)."""
        if self.kind == JOB_KIND_TRAINING:
            return "TRAINING"
        return type_name(self.task_type) if self.task_type else "UNKNOWN"

    def to_wire(self) -> ServedPair:
        """Return the pair as a session names it."""
        return ServedPair(task_type=self.task_type, provider_type=self.provider, job_kind=self.kind)


TRAINING = Pair(TASK_TYPE_UNSPECIFIED, PROVIDER_TYPE_LOCAL, JOB_KIND_TRAINING)
"""Training on this installation's own devices."""


def pair_of(spec: CreateTask, task: Task, kind: JobKind.ValueType = JOB_KIND_TASK) -> Pair:
    """Return the pair of a job: by its task as it stands, or by its request where no task was made of it."""
    provider = task.provider_type or spec.provider_type
    if provider == PROVIDER_TYPE_UNSPECIFIED:
        provider = PROVIDER_TYPE_LOCAL
    if kind == JOB_KIND_TRAINING:
        return Pair(TASK_TYPE_UNSPECIFIED, provider, kind)
    known = type_of_detail(spec.WhichOneof("detail"))
    return Pair(TASK_TYPE_UNSPECIFIED if known is None else known.number, provider)
