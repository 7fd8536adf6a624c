"""UsageService over gRPC: decode, call, encode."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc
from atelier.tasks.v1 import usage_service_pb2 as pb
from atelier.tasks.v1.usage_service_pb2_grpc import UsageServiceServicer

from meshkit.access import Caller
from services.tasks.usage import convert
from services.tasks.usage.domain import UsageFigures, UsageQuery
from services.tasks.usage.service import TenantUsage

Context = grpc.aio.ServicerContext[Any, Any]


class UsageServicer(UsageServiceServicer):
    """Answers what was used.

    Args:
        usage: The use cases.
    """

    def __init__(self, usage: TenantUsage) -> None:
        self._usage = usage

    async def GetUsage(self, request: pb.GetUsageRequest, context: Context) -> pb.GetUsageResponse:
        del context
        return convert.to_usage(*await self._used(request))

    async def ExportUsage(self, request: pb.ExportUsageRequest, context: Context) -> pb.ExportUsageResponse:
        del context
        query, rows, _ = await self._used(request)
        return pb.ExportUsageResponse(table=convert.to_table(query, rows))

    async def _used(
        self, request: pb.GetUsageRequest | pb.ExportUsageRequest
    ) -> tuple[UsageQuery, Sequence[UsageFigures], UsageFigures]:
        return await self._usage.used(
            Caller.of_call(),
            first=request.first_day if request.HasField("first_day") else None,
            last=request.last_day if request.HasField("last_day") else None,
            by=request.group_by,
            tenant=request.origin_tenant_id or None,
            task_type=request.task_type or None,
            provider_type=request.provider_type or None,
            model=request.model if request.HasField("model") else None,
        )
