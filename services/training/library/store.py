"""What the library needs of a database, in domain types."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol
from uuid import UUID

from services.training.library.domain import LoraRecord


class LoraStore(Protocol):
    """LoRAs by tenant, folder and name."""

    async def add(self, record: LoraRecord) -> bool:
        """Write a new one; False where its name, or that of its training, is taken."""
        ...

    async def find(self, tenant: str, folder: str, name: str) -> LoraRecord | None:
        """Return the one that is stored under a name."""
        ...

    async def find_in_bin(self, tenant: str, folder: str, bin_name: str) -> LoraRecord | None:
        """Return the one that lies in the bin under a name."""
        ...

    async def find_trained(self, training_id: UUID) -> LoraRecord | None:
        """Return the one that a training made."""
        ...

    async def list_loras(
        self, tenants: Sequence[str], folder: str | None, *, deleted: bool, skip: int, limit: int
    ) -> list[LoraRecord]:
        """Return those of some tenants, newest first."""
        ...

    async def move_to_bin(self, record: LoraRecord, bin_name: str) -> LoraRecord | None:
        """Note that a stored one was deleted; None where it is gone, or the name in the bin is taken."""
        ...

    async def move_back(self, record: LoraRecord) -> LoraRecord | None:
        """Note that one of the bin is stored again; None where it is gone, or its name is taken."""
        ...

    async def set_thumbnail(self, record: LoraRecord, path: str) -> None:
        """Note where a picture of one lies."""
        ...

    async def settle(self, record: LoraRecord) -> None:
        """Note that the object lies where its state says."""
        ...

    async def remove(self, record: LoraRecord) -> None:
        """Forget one that never came to be."""
        ...

    async def unsettled(self, age_seconds: float, limit: int) -> list[LoraRecord]:
        """Return those whose object has not arrived for so long."""
        ...
