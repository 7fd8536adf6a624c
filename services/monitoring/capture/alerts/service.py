"""What callers ask of alerts, and how webhooks are told of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol
from uuid import UUID

from meshkit.access import Caller
from meshkit.errors import ErrorKind, MeshError
from meshkit.logging import get_logger
from meshkit.loops import Loop
from services.monitoring.capture.access import CaptureAccess
from services.monitoring.capture.alerts.domain import AlertHandover, AlertRecord, AlertState, AlertsWanted
from services.monitoring.capture.alerts.store import AlertStore
from services.monitoring.capture.errors import alert_is_dismissed, alert_not_found
from services.monitoring.capture.pages import PageFound, PageWanted

_log = get_logger(__name__)

_BATCH = 50
# What is handed in again would be refused again.
_FINAL = (ErrorKind.INVALID, ErrorKind.FORBIDDEN, ErrorKind.CONFLICT)


class WebhookDoor(Protocol):
    """Takes what is told to webhooks (`webhook_calls.WebhookCalls`)."""

    async def hand_in(self, handover: AlertHandover) -> None:
        """Hand it in; the same again changes nothing."""
        ...


class AlertDesk:
    """What callers ask of alerts.

    Args:
        store: The rows.
        access: Judges callers.
        url_of: Returns the webhook of a rule; empty where it has none.
        on_change: Called when an alert was acknowledged or dismissed.
    """

    def __init__(
        self, store: AlertStore, access: CaptureAccess, url_of: Callable[[str], str], on_change: Callable[[], None]
    ) -> None:
        self._store = store
        self._access = access
        self._url_of = url_of
        self._on_change = on_change

    async def get(self, alert_id: UUID) -> AlertRecord:
        """Return an alert.

        Raises:
            MeshError: There is none for this caller.
        """
        found = await self._store.find_alert(alert_id) if self._access.reads() else None
        if found is None:
            raise alert_not_found(alert_id)
        return found

    async def list_page(self, wanted: AlertsWanted, page: PageWanted) -> PageFound[AlertRecord]:
        """Return a page of alerts; an empty one for who may see none."""
        return await self._store.list_alerts(wanted, page) if self._access.reads() else PageFound((), 0)

    async def acknowledge(self, alert_id: UUID) -> AlertRecord:
        """Note that the caller takes care of an alert; whoever was first stays.

        Raises:
            MeshError: There is none for this caller, or it was dismissed.
        """
        alert = await self._turn(alert_id, AlertState.ACKNOWLEDGED)
        if alert.state is AlertState.DISMISSED:
            raise alert_is_dismissed(alert_id)
        return alert

    async def dismiss(self, alert_id: UUID) -> AlertRecord:
        """Note that there is nothing to take care of; whoever was first stays.

        Raises:
            MeshError: There is none for this caller.
        """
        return await self._turn(alert_id, AlertState.DISMISSED)

    async def _turn(self, alert_id: UUID, state: AlertState) -> AlertRecord:
        known = await self._store.find_alert(alert_id) if self._access.writes() else None
        turned = known and await self._store.turn_alert(
            alert_id, state, Caller.of_call().subject, self._url_of(known.rule)
        )
        if turned is None:
            raise alert_not_found(alert_id)
        self._on_change()
        return turned


class WebhookHandovers:
    """The loop `alert_webhooks`: hands in what webhooks are to be told; the tasks service signs, sends and repeats.

    Args:
        store: The rows.
        door: Takes it.
    """

    def __init__(self, store: AlertStore, door: WebhookDoor) -> None:
        self._store = store
        self._door = door
        self.loop = Loop("alert_webhooks", self.run, 2.0)

    async def run(self) -> bool:
        """Hand in what waits.

        Returns:
            Whether more waits.

        Raises:
            MeshError: The tasks service does not answer; what waits stays.
        """
        waiting = await self._store.handovers(_BATCH)
        for one in waiting:
            try:
                await self._door.hand_in(one)
            except MeshError as error:
                if error.kind not in _FINAL:
                    raise
                _log.warning("webhook_refused", alert_id=str(one.alert_id), reason=error.reason)
            await self._store.forget_handover(one.event_id)
        return len(waiting) == _BATCH
