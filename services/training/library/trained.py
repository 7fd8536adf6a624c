"""Put what trainings end with into the library."""

from __future__ import annotations

from atelier.training.v1 import training_pb2

from services.training.adapters import TrainedFile, path_of_trained
from services.training.domain import TrainingRecord
from services.training.library.service import LoraLibrary, TrainedLora


class TrainedAdapters:
    """Implements `services.training.adapters.AdapterLibrary`.

    Args:
        library: The library.
    """

    def __init__(self, library: LoraLibrary) -> None:
        self._library = library

    async def register(self, record: TrainingRecord, trained: TrainedFile) -> str:
        """Put the adapter of a training into the library, once however often it is asked for."""
        wanted = training_pb2.CreateTraining.FromString(record.request)
        stored = await self._library.register(
            TrainedLora(
                tenant=record.tenant,
                source=trained.path,
                path=path_of_trained(record),
                training_id=record.id,
                base_model=wanted.base_model_path,
                trigger_word=wanted.trigger_word,
                thumbnail=trained.thumbnail,
            )
        )
        return stored.path

    async def owner(self, tenant: str, path: str) -> str | None:
        """Return the tenant that an adapter belongs to, which a tenant may use; None where there is none."""
        return await self._library.owner(tenant, path)
