"""SystemService over gRPC: decode, call, encode."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import grpc
from atelier.monitoring.v1 import system_service_pb2 as pb
from atelier.monitoring.v1.system_service_pb2_grpc import SystemServiceServicer

from meshkit.access import Caller
from meshkit.answers import OTHER_STATUS
from services.monitoring.capture_calls import CaptureFigures
from services.monitoring.errors import bad_breaker_name, no_such_breaker
from services.monitoring.health import convert as health_convert
from services.monitoring.health.domain import (
    CRITICAL_LOOPS,
    FILE_WATCHER,
    WholeState,
    is_breaker_name,
    verdict,
    with_watcher,
)
from services.monitoring.health.probes import Probes
from services.monitoring.health.watch import DegradationWatch
from services.monitoring.performance import convert as performance_convert
from services.monitoring.performance.watch import PerformanceWatch
from services.monitoring.prometheus import PrometheusStack
from services.monitoring.supervision import convert as loop_convert
from services.monitoring.supervision.domain import LoopOrder
from services.monitoring.supervision.service import Supervisor
from services.monitoring.task_calls import TaskFigures, named

Context = grpc.aio.ServicerContext[Any, Any]
# A part that hangs must not hold the answer of the others up.
_PROBE_SECONDS = 2.0
_CALL_SECONDS = 5.0
_DONE = {LoopOrder.START: "started", LoopOrder.STOP: "stopped", LoopOrder.RESTART: "restarted"}


class SystemServicer(SystemServiceServicer):
    """Answers operators.

    Args:
        supervisor: Knows every loop.
        probes: Asks every part.
        watch: Has asked every part for some time.
        tasks: The tasks service, which has the breakers.
        prometheus: Asks Prometheus.
        performance: Keeps the snapshots of the last hour.
        capture: Capture, where the mesh has cameras.
        version: Version of the mesh.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        probes: Probes,
        watch: DegradationWatch,
        tasks: TaskFigures,
        prometheus: PrometheusStack,
        *,
        performance: PerformanceWatch,
        capture: CaptureFigures | None,
        version: str,
    ) -> None:
        self._supervisor = supervisor
        self._probes = probes
        self._watch = watch
        self._tasks = tasks
        self._prometheus = prometheus
        self._performance = performance
        self._capture = capture
        self._version = version

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
        return loop_convert.to_history(lines, total, request.limit, request.offset)

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

    async def GetFullHealth(self, request: pb.GetFullHealthRequest, context: Context) -> pb.GetFullHealthResponse:
        del request
        survey = await self._probes.ask(_PROBE_SECONDS)
        loops = await self._supervisor.overview()
        critical = CRITICAL_LOOPS
        if self._capture is not None:
            critical |= {FILE_WATCHER}
            loops = with_watcher(loops) if self._supervisor.running else loops
        judged, away = verdict(survey, loops, critical)
        if judged is WholeState.UNHEALTHY:
            context.set_trailing_metadata(OTHER_STATUS)
        return pb.GetFullHealthResponse(
            health=health_convert.to_health(survey, loops, judged, away, critical=critical, version=self._version)
        )

    async def GetMonitoringHealth(
        self, request: pb.GetMonitoringHealthRequest, context: Context
    ) -> pb.GetMonitoringHealthResponse:
        del request, context
        return pb.GetMonitoringHealthResponse(stack=await self._prometheus.health(datetime.now(UTC)))

    async def ListTargets(self, request: pb.ListTargetsRequest, context: Context) -> pb.ListTargetsResponse:
        del request, context
        return await self._prometheus.targets(datetime.now(UTC))

    async def GetPipeline(self, request: pb.GetPipelineRequest, context: Context) -> pb.GetPipelineResponse:
        del request, context
        pipeline = health_convert.to_pipeline(self._watch, datetime.now(UTC))
        if self._capture is not None:
            await self._capture.write(pipeline, Caller.of_call(), _PROBE_SECONDS)
        return pb.GetPipelineResponse(pipeline=pipeline)

    async def GetPerformance(self, request: pb.GetPerformanceRequest, context: Context) -> pb.GetPerformanceResponse:
        del request, context
        return pb.GetPerformanceResponse(
            performance=performance_convert.to_performance(await self._performance.present())
        )

    async def ListPerformanceHistory(
        self, request: pb.ListPerformanceHistoryRequest, context: Context
    ) -> pb.ListPerformanceHistoryResponse:
        del context
        return performance_convert.to_history(self._performance.history(request.time_range), request.time_range)

    async def ListCircuitBreakers(
        self, request: pb.ListCircuitBreakersRequest, context: Context
    ) -> pb.ListCircuitBreakersResponse:
        del request, context
        breakers, _ = await self._tasks.breakers(_CALL_SECONDS)
        return health_convert.to_breakers(breakers, datetime.now(UTC))

    async def ResetCircuitBreaker(
        self, request: pb.ResetCircuitBreakerRequest, context: Context
    ) -> pb.ResetCircuitBreakerResponse:
        del context
        name = request.name
        if not is_breaker_name(name):
            raise bad_breaker_name()
        breakers, _ = await self._tasks.breakers(_CALL_SECONDS)
        breaker = named(breakers, name)
        if breaker is None:
            raise no_such_breaker(name, [one.name for one in breakers])
        before, now = await self._tasks.reset(breaker)
        return pb.ResetCircuitBreakerResponse(
            name=name,
            previous_state=health_convert.to_state(before),
            new_state=health_convert.to_state(now),
            message=f"Circuit breaker '{name}' reset successfully",
        )

    async def _overview(self) -> pb.SupervisorOverview:
        loops = await self._supervisor.overview()
        return loop_convert.to_supervisor(self._supervisor.running, loops, datetime.now(UTC))

    async def _order(self, name: str, order: LoopOrder) -> pb.WorkerControl:
        done = await self._supervisor.order(name, order)
        message = f"Worker '{name}' {_DONE[order]} successfully" if done else _told(name)
        return pb.WorkerControl(success=done, message=message, worker_name=name)


def _told(name: str) -> str:
    return f"Worker '{name}' will follow: not every process that has it has answered yet"
