"""What usage needs of a database."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from typing import Protocol
from uuid import UUID

from services.tasks.usage.domain import StoredFigures, UsageFigures, UsageQuery


class UsageStore(Protocol):
    """Sums up what was used, and keeps what is stored."""

    async def today(self) -> date:
        """Return the day in UTC, by the database's clock."""
        ...

    async def used(self, query: UsageQuery, most: int) -> tuple[Sequence[UsageFigures], UsageFigures] | None:
        """Sum up what was used, by row and in all; None where there are more rows than `most`."""
        ...

    async def fold(self) -> None:
        """Add what was noted of changes to the days."""
        ...

    async def claim(self, tenant: str, age_seconds: float) -> bool:
        """Whether this replica is to measure a tenant's storage: nobody has within a time."""
        ...

    async def measured(self) -> Sequence[str]:
        """Return the tenants whose storage was ever measured."""
        ...

    async def models(self, task_ids: Sequence[UUID]) -> Mapping[UUID, str]:
        """Return the models that made what tasks have stored, where they are known."""
        ...

    async def write_stored(self, tenant: str, figures: Sequence[StoredFigures]) -> None:
        """Write what a tenant stores today, in place of what was written before."""
        ...
