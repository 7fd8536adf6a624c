"""RetentionService over gRPC: decode, call, encode."""

from __future__ import annotations

from typing import Any

import grpc
from atelier.tasks.v1 import retention_service_pb2 as pb
from atelier.tasks.v1.retention_service_pb2_grpc import RetentionServiceServicer

from meshkit.retention_calls import to_lines
from services.tasks.retention.convert import KIND_OF, to_age
from services.tasks.retention.service import Retention

Context = grpc.aio.ServicerContext[Any, Any]


class RetentionServicer(RetentionServiceServicer):
    """Answers operators, and services that ask for ages.

    Args:
        retention: The use cases.
    """

    def __init__(self, retention: Retention) -> None:
        self._retention = retention

    async def ListRetention(self, request: pb.ListRetentionRequest, context: Context) -> pb.ListRetentionResponse:
        del context
        rules = await self._retention.rules(KIND_OF.get(request.kind))
        return pb.ListRetentionResponse(ages=[to_age(rule) for rule in rules])

    async def SetRetention(self, request: pb.SetRetentionRequest, context: Context) -> pb.SetRetentionResponse:
        del context
        rule = await self._retention.set_rule(KIND_OF[request.kind], request.tenant, request.days)
        return pb.SetRetentionResponse(age=to_age(rule))

    async def RemoveRetention(self, request: pb.RemoveRetentionRequest, context: Context) -> pb.RemoveRetentionResponse:
        del context
        rule = await self._retention.remove_rule(KIND_OF[request.kind], request.tenant)
        return pb.RemoveRetentionResponse(age=to_age(rule))

    async def PreviewRetention(
        self, request: pb.PreviewRetentionRequest, context: Context
    ) -> pb.PreviewRetentionResponse:
        del context
        lines = await self._retention.preview(
            KIND_OF[request.kind],
            request.tenant if request.HasField("tenant") else None,
            request.days if request.HasField("days") else None,
        )
        return pb.PreviewRetentionResponse(lines=to_lines(lines))
