"""What callers and other services do with webhooks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID

from atelier.events.v1 import events_pb2
from google.protobuf import any_pb2, message_factory
from google.protobuf.message import DecodeError

from meshkit.access import Caller
from meshkit.errors import invalid
from meshkit.fetcher import Fetcher
from meshkit.spelling import enum_names
from services.tasks.errors import delivery_not_found
from services.tasks.events import to_delivery
from services.tasks.webhooks.domain import DeliveryAttempt, DeliveryRecord, DeliveryStatus, Secret
from services.tasks.webhooks.store import WebhookStore

_FILE = events_pb2.DESCRIPTOR
_TYPE_NAMES = enum_names(events_pb2.EventType.DESCRIPTOR).by_number


class WebhooksService:
    """Hands deliveries in, shows their log, sends again, keeps secrets.

    Args:
        store: The database.
        fetcher: Judges addresses.
    """

    def __init__(self, store: WebhookStore, fetcher: Fetcher) -> None:
        self._store = store
        self._fetcher = fetcher

    async def enqueue(
        self,
        caller: Caller,
        event: any_pb2.Any,
        *,
        event_id: UUID,
        entity_id: UUID,
        version: int,
        url: str,
        traceparent: str,
    ) -> None:
        """Take an event of another service; the same event again changes nothing.

        Raises:
            MeshError: `INVALID` for an address that nothing may be sent to or something that is no event.
        """
        tenant = caller.require_tenant()
        self._fetcher.check(url, path="url")
        delivery = to_delivery(
            _unpacked(event), event_id=event_id, tenant=tenant, entity_id=entity_id, version=version, url=url
        )
        await self._store.enqueue(replace(delivery, traceparent=traceparent))

    async def list_deliveries(
        self, caller: Caller, status: DeliveryStatus | None, entity_id: UUID | None, skip: int, limit: int
    ) -> list[DeliveryRecord]:
        """Deliveries that exist for the caller, newest first."""
        tenant = None if caller.reads_across else caller.require_tenant()
        return await self._store.list_deliveries(tenant, status, entity_id, skip, limit)

    async def get(self, caller: Caller, delivery_id: UUID) -> tuple[DeliveryRecord, Sequence[DeliveryAttempt]]:
        """Return a delivery with the attempts at it.

        Raises:
            MeshError: `NOT_FOUND`.
        """
        record = await self._seen(caller, delivery_id)
        return record, await self._store.attempts(delivery_id)

    async def redeliver(self, caller: Caller, delivery_id: UUID) -> DeliveryRecord:
        """Have a delivery sent again at once.

        Raises:
            MeshError: `NOT_FOUND`.
        """
        await self._seen(caller, delivery_id, write=True)
        await self._store.redeliver(delivery_id)
        return await self._seen(caller, delivery_id, write=True)

    async def secret(self, caller: Caller) -> Secret:
        """Return what signs the tenant's webhooks now."""
        return await self._store.secret(caller.require_tenant())

    async def rotate(self, caller: Caller, overlap: timedelta) -> Secret:
        """Make a new secret; the former one signs beside it for the overlap."""
        return await self._store.rotate(caller.require_tenant(), overlap)

    async def _seen(self, caller: Caller, delivery_id: UUID, *, write: bool = False) -> DeliveryRecord:
        return caller.seen(await self._store.get(delivery_id), delivery_id, delivery_not_found, write=write)


def _unpacked(event: any_pb2.Any) -> Any:
    package, _, name = event.type_url.rpartition("/")[2].rpartition(".")
    descriptor = _FILE.message_types_by_name.get(name) if package == _FILE.package else None
    if descriptor is None or "event_type" not in descriptor.fields_by_name:
        raise invalid("event", f"must be an event of {_FILE.package}", "event_type")
    try:
        message: Any = message_factory.GetMessageClass(descriptor).FromString(event.value)
    except DecodeError:
        raise invalid("event", "is malformed", "event_parsing") from None
    if message.event_type not in _TYPE_NAMES:
        raise invalid("event", "names no event type", "event_type")
    return message
