"""SystemService over gRPC: decode, call, encode."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import grpc
from atelier.monitoring.v1 import system_service_pb2 as pb
from atelier.monitoring.v1.system_service_pb2_grpc import SystemServiceServicer

from services.monitoring import convert
from services.monitoring.domain import LoopOrder
from services.monitoring.supervisor import Supervisor

Context = grpc.aio.ServicerContext[Any, Any]
_DONE = {LoopOrder.START: "started", LoopOrder.STOP: "stopped", LoopOrder.RESTART: "restarted"}


class SystemServicer(SystemServiceServicer):
    """Answers operators.

    Args:
        supervisor: Knows every loop.
    """

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    async def GetSupervisor(self, request: pb.GetSupervisorRequest, context: Context) -> pb.GetSupervisorResponse:
        del request, context
        return pb.GetSupervisorResponse(supervisor=await self._overview())

    async def GetSupervisorStatus(
        self, request: pb.GetSupervisorStatusRequest, context: Context
    ) -> pb.GetSupervisorStatusResponse:
        del request, context
        return pb.GetSupervisorStatusResponse(supervisor=await self._overview())

    async def ListRestarts(self, request: pb.ListRestartsRequest, context: Context) -> pb.ListRestartsResponse:
        del context
        name = request.worker_name if request.HasField("worker_name") else None
        lines, total = await self._supervisor.history(name, request.limit, request.offset)
        return convert.to_history(lines, total, request.limit, request.offset)

    async def StartWorker(self, request: pb.StartWorkerRequest, context: Context) -> pb.StartWorkerResponse:
        del context
        return pb.StartWorkerResponse(worker=await self._order(request.worker_name, LoopOrder.START))

    async def StopWorker(self, request: pb.StopWorkerRequest, context: Context) -> pb.StopWorkerResponse:
        del context
        return pb.StopWorkerResponse(worker=await self._order(request.worker_name, LoopOrder.STOP))

    async def RestartWorker(self, request: pb.RestartWorkerRequest, context: Context) -> pb.RestartWorkerResponse:
        del context
        return pb.RestartWorkerResponse(worker=await self._order(request.worker_name, LoopOrder.RESTART))

    async def ResetWorker(self, request: pb.ResetWorkerRequest, context: Context) -> pb.ResetWorkerResponse:
        del context
        name = request.worker_name
        done = await self._supervisor.order(name, LoopOrder.RESET)
        return pb.ResetWorkerResponse(
            success=done, message=f"Worker '{name}' restart count reset" if done else _told(name)
        )

    async def _overview(self) -> pb.SupervisorOverview:
        loops = await self._supervisor.overview()
        return convert.to_supervisor(self._supervisor.running, loops, datetime.now(UTC))

    async def _order(self, name: str, order: LoopOrder) -> pb.WorkerControl:
        done = await self._supervisor.order(name, order)
        message = f"Worker '{name}' {_DONE[order]} successfully" if done else _told(name)
        return pb.WorkerControl(success=done, message=message, worker_name=name)


def _told(name: str) -> str:
    return f"Worker '{name}' will follow: not every process that has it has answered yet"
