"""The tasks service as alerts need it: it delivers webhooks."""

from __future__ import annotations

from atelier.events.v1 import events_pb2
from atelier.tasks.v1 import webhooks_service_pb2
from atelier.tasks.v1.webhooks_service_pb2_grpc import WebhookServiceStub

from meshkit.channel import MeshChannel, call_metadata
from services.monitoring.capture.alerts.domain import AlertHandover

_SECONDS = 10.0


class WebhookCalls:
    """Hands in what webhooks are told, in the name of capture's tenant.

    Args:
        channel: Channel to the tasks service.
        tenant: The tenant, whose secret signs.
    """

    def __init__(self, channel: MeshChannel, tenant: str) -> None:
        self._webhooks = channel.stub(WebhookServiceStub)
        self._metadata = call_metadata(tenant=tenant)

    async def hand_in(self, handover: AlertHandover) -> None:
        """Hand it in; the service delivers it and accepts each once.

        Raises:
            MeshError: The service does not answer, or takes no such address.
        """
        request = webhooks_service_pb2.EnqueueRequest(
            event_id=str(handover.event_id),
            entity_id=str(handover.alert_id),
            entity_version=handover.version,
            url=handover.url,
        )
        request.event.Pack(events_pb2.AlertStatusEvent.FromString(handover.event))
        await self._webhooks.Enqueue(request, timeout=_SECONDS, metadata=self._metadata)
