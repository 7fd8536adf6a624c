"""ScalingService over gRPC: decode, call, encode."""

from __future__ import annotations

from typing import Any

import grpc
from atelier.tasks.v1 import scaling_service_pb2 as pb
from atelier.tasks.v1.scaling_service_pb2_grpc import ScalingServiceServicer

from services.tasks.scaling import convert
from services.tasks.scaling.service import Scaling

Context = grpc.aio.ServicerContext[Any, Any]


class ScalingServicer(ScalingServiceServicer):
    """Answers operators, and services that scale workers.

    Args:
        scaling: The use cases.
    """

    def __init__(self, scaling: Scaling) -> None:
        self._scaling = scaling

    async def GetDemand(self, request: pb.GetDemandRequest, context: Context) -> pb.GetDemandResponse:
        del request, context
        return convert.to_demand(await self._scaling.demand(), self._scaling.policy)

    async def ListWorkerPools(self, request: pb.ListWorkerPoolsRequest, context: Context) -> pb.ListWorkerPoolsResponse:
        del context
        pools = await self._scaling.pools(cordoned_only=request.cordoned_only)
        return pb.ListWorkerPoolsResponse(pools=convert.to_pools(pools))

    async def CordonWorker(self, request: pb.CordonWorkerRequest, context: Context) -> pb.CordonWorkerResponse:
        del context
        return pb.CordonWorkerResponse(pools=convert.to_pools(await self._scaling.cordon(request.worker)))

    async def UncordonWorker(self, request: pb.UncordonWorkerRequest, context: Context) -> pb.UncordonWorkerResponse:
        del context
        return pb.UncordonWorkerResponse(pools=convert.to_pools(await self._scaling.uncordon(request.worker)))

    async def NoteMarks(self, request: pb.NoteMarksRequest, context: Context) -> pb.NoteMarksResponse:
        del context
        accepted = await self._scaling.note_marks(list(request.announced), list(request.marked), list(request.unmarked))
        return pb.NoteMarksResponse(accepted=accepted)
