"""AlertService over gRPC: decode, call, encode."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import grpc
from atelier.monitoring.v1 import capture_alert_service_pb2 as pb
from atelier.monitoring.v1.capture_alert_service_pb2_grpc import AlertServiceServicer

from services.monitoring.capture.alerts.convert import to_alert, to_alerts_wanted
from services.monitoring.capture.alerts.service import AlertDesk
from services.monitoring.capture.pages import PageWanted, write_page

Context = grpc.aio.ServicerContext[Any, Any]


class AlertServicer(AlertServiceServicer):
    """Answers callers.

    Args:
        alerts: The use cases.
    """

    def __init__(self, alerts: AlertDesk) -> None:
        self._alerts = alerts

    async def ListAlerts(self, request: pb.ListAlertsRequest, context: Context) -> pb.ListAlertsResponse:
        del context
        page = PageWanted(request.limit, request.offset)
        found = await self._alerts.list_page(to_alerts_wanted(request), page)
        response = pb.ListAlertsResponse(items=[to_alert(one) for one in found.items])
        write_page(response.pagination, page, found)
        return response

    async def GetAlert(self, request: pb.GetAlertRequest, context: Context) -> pb.GetAlertResponse:
        del context
        return pb.GetAlertResponse(alert=to_alert(await self._alerts.get(UUID(request.alert_id))))

    async def AcknowledgeAlert(
        self, request: pb.AcknowledgeAlertRequest, context: Context
    ) -> pb.AcknowledgeAlertResponse:
        del context
        alert = await self._alerts.acknowledge(UUID(request.alert_id))
        return pb.AcknowledgeAlertResponse(alert=to_alert(alert))

    async def DismissAlert(self, request: pb.DismissAlertRequest, context: Context) -> pb.DismissAlertResponse:
        del context
        return pb.DismissAlertResponse(alert=to_alert(await self._alerts.dismiss(UUID(request.alert_id))))
