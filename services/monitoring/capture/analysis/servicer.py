"""EventService over gRPC: decode, call, encode."""

from __future__ import annotations

from typing import Any

import grpc
from atelier.monitoring.v1 import capture_event_service_pb2 as pb
from atelier.monitoring.v1.capture_event_service_pb2_grpc import EventServiceServicer

from services.monitoring.capture.analysis.convert import to_event, to_events_wanted
from services.monitoring.capture.analysis.service import EventDesk
from services.monitoring.capture.pages import PageWanted, write_page

Context = grpc.aio.ServicerContext[Any, Any]


class EventServicer(EventServiceServicer):
    """Answers callers.

    Args:
        events: The use cases.
    """

    def __init__(self, events: EventDesk) -> None:
        self._events = events

    async def ListEvents(self, request: pb.ListEventsRequest, context: Context) -> pb.ListEventsResponse:
        del context
        page = PageWanted(request.limit, request.offset)
        found = await self._events.list_page(to_events_wanted(request), page)
        response = pb.ListEventsResponse(items=[to_event(one) for one in found.items])
        write_page(response.pagination, page, found)
        return response

    async def GetEvent(self, request: pb.GetEventRequest, context: Context) -> pb.GetEventResponse:
        del context
        return pb.GetEventResponse(event=to_event(await self._events.get(request.event_id)))

    async def AcknowledgeEvent(
        self, request: pb.AcknowledgeEventRequest, context: Context
    ) -> pb.AcknowledgeEventResponse:
        del context
        return pb.AcknowledgeEventResponse(event=to_event(await self._events.acknowledge(request.event_id)))

    async def DeleteEvent(self, request: pb.DeleteEventRequest, context: Context) -> pb.DeleteEventResponse:
        del context
        await self._events.delete(request.event_id)
        return pb.DeleteEventResponse(event_id=request.event_id)
