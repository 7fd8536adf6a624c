"""WebhookService over gRPC: decode, call, encode."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

import grpc
from atelier.tasks.v1 import webhooks_service_pb2 as pb
from atelier.tasks.v1 import webhooks_service_pb2_grpc

from meshkit.access import Caller
from meshkit.media_urls import MediaLinks
from meshkit.spelling import value_names
from services.tasks.convert import timestamp
from services.tasks.media import with_media
from services.tasks.webhooks.domain import DeliveryAttempt, DeliveryRecord, DeliveryStatus, Secret
from services.tasks.webhooks.service import WebhooksService

Context = grpc.aio.ServicerContext[Any, Any]


class WebhookServicer(webhooks_service_pb2_grpc.WebhookServiceServicer):
    """Answers callers and other services.

    Args:
        webhooks: The use cases.
        links: Makes the addresses of results; None where the mesh is not told its own.
    """

    def __init__(self, webhooks: WebhooksService, links: MediaLinks | None) -> None:
        self._webhooks = webhooks
        self._links = links

    async def Enqueue(self, request: pb.EnqueueRequest, context: Context) -> pb.EnqueueResponse:
        del context
        await self._webhooks.enqueue(
            Caller.of_call(),
            request.event,
            event_id=UUID(request.event_id),
            entity_id=UUID(request.entity_id),
            version=request.entity_version,
            url=request.url,
            traceparent=request.traceparent,
        )
        return pb.EnqueueResponse()

    async def ListDeliveries(self, request: pb.ListDeliveriesRequest, context: Context) -> pb.ListDeliveriesResponse:
        del context
        status = None
        if request.HasField("status") and request.status != pb.DELIVERY_STATUS_UNSPECIFIED:
            status = DeliveryStatus(value_names(pb.DeliveryStatus.DESCRIPTOR)[request.status])
        records = await self._webhooks.list_deliveries(
            Caller.of_call(),
            status,
            UUID(request.entity_id) if request.HasField("entity_id") else None,
            request.skip,
            request.limit,
        )
        return pb.ListDeliveriesResponse(deliveries=[_delivery(record) for record in records])

    async def GetDelivery(self, request: pb.GetDeliveryRequest, context: Context) -> pb.GetDeliveryResponse:
        del context
        record, attempts = await self._webhooks.get(Caller.of_call(), UUID(request.delivery_id))
        return pb.GetDeliveryResponse(delivery=self._whole(record, attempts))

    async def Redeliver(self, request: pb.RedeliverRequest, context: Context) -> pb.RedeliverResponse:
        del context
        record = await self._webhooks.redeliver(Caller.of_call(), UUID(request.delivery_id))
        return pb.RedeliverResponse(delivery=_delivery(record))

    async def GetSecret(self, request: pb.GetSecretRequest, context: Context) -> pb.GetSecretResponse:
        del request, context
        return pb.GetSecretResponse(secret=_secret(await self._webhooks.secret(Caller.of_call())))

    async def RotateSecret(self, request: pb.RotateSecretRequest, context: Context) -> pb.RotateSecretResponse:
        del context
        secret = await self._webhooks.rotate(Caller.of_call(), timedelta(seconds=request.overlap_seconds))
        return pb.RotateSecretResponse(secret=_secret(secret))

    def _whole(self, record: DeliveryRecord, attempts: Sequence[DeliveryAttempt]) -> pb.WebhookDelivery:
        message = _delivery(record)
        # As it would be sent now.
        message.body = with_media(record.body, record.tenant, record.media, self._links).decode()
        for note in attempts:
            message.attempts.append(
                pb.WebhookAttempt(
                    started_at=timestamp(note.started_at),
                    duration_seconds=note.duration_seconds,
                    status_code=note.status_code,
                    error=note.error,
                )
            )
        return message


def _delivery(record: DeliveryRecord) -> pb.WebhookDelivery:
    message = pb.WebhookDelivery(
        id=str(record.id),
        tenant_id=record.tenant,
        entity_id=str(record.entity_id),
        entity_version=record.entity_version,
        event_type=record.event_type,
        url=record.url,
        status=pb.DeliveryStatus.Value(f"DELIVERY_STATUS_{record.status}"),
        failure=None if record.failure is None else pb.DeliveryFailure.Value(f"DELIVERY_FAILURE_{record.failure}"),
        attempt_count=record.attempt_count,
        last_status_code=record.last_status_code,
        last_error=record.last_error,
        created_at=timestamp(record.created_at),
    )
    if record.due_at is not None:
        message.next_attempt_at.CopyFrom(timestamp(record.due_at))
    if record.ended_at is not None:
        message.ended_at.CopyFrom(timestamp(record.ended_at))
    return message


def _secret(secret: Secret) -> pb.WebhookSecret:
    return pb.WebhookSecret(key=secret.key, created_at=timestamp(secret.created_at))
