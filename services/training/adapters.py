"""Adapters of the library, as trainings use them: one to start from, and the one that a training ends with."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Protocol

from atelier.training.v1 import training_pb2

from meshkit.errors import ErrorKind, MeshError, invalid
from meshkit.loras import library_path
from meshkit.spelling import value_names
from services.training.domain import TrainingRecord

FOLDERS = {"PRODUCT": "product", "SUBJECT": "identities", "STYLE": "styles"}
_ENTITY_NAMES = value_names(training_pb2.EntityType.DESCRIPTOR)
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_-]+")
_MAX_NAME = 60


@dataclass(frozen=True, slots=True)
class TrainedFile:
    """What a training ends with.

    Attributes:
        path: Where it lies, among the training's objects.
        size: Bytes.
        sha256: Of the file, in hex.
        metadata: What the file says of itself.
        thumbnail: Picture that shows it, if there is one.
    """

    path: str
    size: int
    sha256: str
    metadata: dict[str, str]
    thumbnail: str | None


class AdapterLibrary(Protocol):
    """Where adapters are kept for generation."""

    async def register(self, record: TrainingRecord, trained: TrainedFile) -> str:
        """Put the adapter of a training into the library, once however often it is asked for.

        Returns:
            Its path, as tasks name it.
        """
        ...

    async def owner(self, tenant: str, path: str) -> str | None:
        """Return the tenant that an adapter belongs to, which a tenant may use; None where there is none."""
        ...


def path_of_trained(record: TrainingRecord) -> str:
    """Return where the adapter of a training goes: the same each time, and another for each training."""
    wanted = training_pb2.CreateTraining.FromString(record.request)
    name = _NOT_IN_NAMES.sub("_", wanted.trigger_word).strip("_")[:_MAX_NAME] or "adapter"
    return f"{FOLDERS[_ENTITY_NAMES[wanted.entity_type]]}/{name}-{str(record.id)[:8]}.safetensors"


def adapter_path(text: str, path: str) -> str:
    """Return the path of an adapter in its one form.

    Args:
        text: What the caller named.
        path: Path of the member, for the error.

    Raises:
        MeshError: `INVALID` for one that leads elsewhere.
    """
    try:
        return library_path(text)
    except MeshError as error:
        if error.kind is ErrorKind.INVALID and error.violations:
            raise invalid(path, error.violations[0].message, error.violations[0].type) from None
        raise
