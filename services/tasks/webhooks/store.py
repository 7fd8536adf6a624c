"""What webhooks need of a database; every method is one transaction."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Protocol
from uuid import UUID

from services.tasks.webhooks.domain import (
    ClaimedDelivery,
    ClaimRoom,
    DeliveryAttempt,
    DeliveryRecord,
    DeliveryStatus,
    DeliveryVerdict,
    NewDelivery,
    ReceiverAnswer,
    Secret,
)


class WebhookStore(Protocol):
    """Deliveries, their log, and signing secrets."""

    async def enqueue(self, delivery: NewDelivery) -> None:
        """Write a delivery unless it exists."""
        ...

    async def claim(self, room: ClaimRoom) -> list[ClaimedDelivery]:
        """Take deliveries that are due: those of tenants with the fewest under way first."""
        ...

    async def extend(self, leases: Mapping[UUID, UUID]) -> set[UUID]:
        """Keep deliveries that are under way, given with their leases; which of them are still the caller's."""
        ...

    async def finish(self, claimed: ClaimedDelivery, answer: ReceiverAnswer | None, verdict: DeliveryVerdict) -> bool:
        """Write what came of a delivery; whether it was still the caller's."""
        ...

    async def redeliver(self, delivery_id: UUID) -> None:
        """Have a delivery sent again, and its address enabled."""
        ...

    async def get(self, delivery_id: UUID) -> DeliveryRecord | None:
        """Return a delivery."""
        ...

    async def attempts(self, delivery_id: UUID) -> list[DeliveryAttempt]:
        """Return attempts at a delivery, oldest first."""
        ...

    async def list_deliveries(
        self, tenant: str | None, status: DeliveryStatus | None, entity_id: UUID | None, skip: int, limit: int
    ) -> list[DeliveryRecord]:
        """Deliveries, newest first."""
        ...

    async def secret(self, tenant: str) -> Secret:
        """Return the secret that signs a tenant's webhooks now; made where there is none."""
        ...

    async def rotate(self, tenant: str, overlap: timedelta) -> Secret:
        """Make a new secret; the former one signs beside it for the overlap."""
        ...

    async def forget_secrets(self) -> None:
        """Delete secrets that sign no more."""
        ...
