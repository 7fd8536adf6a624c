"""Trainings that ended long ago are deleted with their files; their adapters stay in the library.

The tasks service forgets their jobs first. A row goes in the statement that notes its files for the sweeper, so whoever
is killed in between leaves nothing behind. Of trainings that go on from each other the last one goes first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol
from uuid import UUID

from meshkit.access import Caller
from meshkit.objects import ObjectStore
from meshkit.retention import OldSample, PruneBatch, PruneEstimate, estimate
from services.training.errors import training_goes_on, training_is_needed, training_not_found
from services.training.job_calls import JobCalls
from services.training.store import TrainingStore


class OldTrainingStore(Protocol):
    """What deletion of old trainings needs of a database; see `PostgresOldTrainings`."""

    async def tenants(self) -> Sequence[str]:
        """Return the tenants that have trainings."""
        ...

    async def window(self, tenant: str, days: int, after: Any) -> tuple[Sequence[UUID], Any]:
        """Return old trainings out of the next ones, and where these end; None at the end of all."""
        ...

    async def remove(self, training_ids: Sequence[UUID], days: int) -> int:
        """Delete old trainings and note their files for the sweeper; return how many."""
        ...

    async def old(self, tenant: str, days: int) -> OldSample:
        """Tell what is old."""
        ...

    async def is_needed(self, training_id: UUID) -> bool:
        """Whether a training has to stay, however long ago it ended."""
        ...


class OldTrainings:
    """Trainings that have ended, with all that is theirs.

    Args:
        store: The database.
        trainings: The trainings in it.
        jobs: The tasks service, which has their jobs.
        objects: The object store.
    """

    def __init__(self, store: OldTrainingStore, trainings: TrainingStore, jobs: JobCalls, objects: ObjectStore) -> None:
        self._store = store
        self._trainings = trainings
        self._jobs = jobs
        self._objects = objects

    async def tenants(self) -> Sequence[str]:
        """Return the tenants that have trainings."""
        return await self._store.tenants()

    async def prune(self, tenant: str, days: int, after: Any) -> PruneBatch:
        """Delete a batch; a training whose webhook is still to be delivered stays."""
        found, place = await self._store.window(tenant, days, after)
        if not found:
            return PruneBatch(0, place)
        kept = set(await self._jobs.forget(found))
        return PruneBatch(await self._store.remove([one for one in found if one not in kept], days), place)

    async def delete(self, training_id: UUID, caller: Caller) -> None:
        """Delete a training that has ended, for a caller.

        Raises:
            MeshError: `NOT_FOUND`; `CONFLICT` where it has not ended, or is needed.
        """
        found = caller.seen(await self._trainings.get(training_id), training_id, training_not_found, write=True)
        if not found.has_ended:
            raise training_goes_on()
        if await self._store.is_needed(training_id) or await self._jobs.forget([training_id]):
            raise training_is_needed()
        if not await self._store.remove([training_id], 0) and await self._trainings.get(training_id) is not None:
            raise training_is_needed()

    async def estimate(self, tenant: str, days: int) -> PruneEstimate:
        """Tell what would be deleted."""
        return await estimate(await self._store.old(tenant, days), self._objects, tenant)
