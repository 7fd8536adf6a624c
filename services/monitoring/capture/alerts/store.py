"""What alerts need of a database."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol
from uuid import UUID

from services.monitoring.capture.alerts.domain import AlertHandover, AlertRecord, AlertState, AlertsWanted
from services.monitoring.capture.pages import PageFound, PageWanted


class AlertStore(Protocol):
    """Alerts as rows."""

    async def find_alert(self, alert_id: UUID) -> AlertRecord | None:
        """Return an alert."""
        ...

    async def list_alerts(self, wanted: AlertsWanted, page: PageWanted) -> PageFound[AlertRecord]:
        """Return alerts, newest first."""
        ...

    async def turn_alert(self, alert_id: UUID, state: AlertState, by: str, url: str) -> AlertRecord | None:
        """Acknowledge or dismiss an alert where that is open to it, and tell of it.

        Args:
            alert_id: The alert.
            state: What becomes of it.
            by: Who says so.
            url: Webhook that is told; empty where none is.

        Returns:
            The alert as it is afterwards; None where there is no such.
        """
        ...

    async def handovers(self, limit: int) -> Sequence[AlertHandover]:
        """Return what webhooks are to be told, oldest first."""
        ...

    async def forget_handover(self, event_id: UUID) -> None:
        """Forget what was handed in."""
        ...
