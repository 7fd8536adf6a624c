"""KEDA's ExternalScaler over gRPC: decode, call, encode."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, NoReturn

import grpc
from atelier.keda import externalscaler_pb2 as pb
from atelier.keda.externalscaler_pb2_grpc import ExternalScalerServicer

from meshkit.errors import ErrorKind, MeshError
from services.monitoring.scaler.answers import Trigger, active, target, value, whole
from services.monitoring.scaler.service import ScalerDesk

Context = grpc.aio.ServicerContext[Any, Any]


class ScalerServicer(ExternalScalerServicer):
    """Answers KEDA.

    Args:
        desk: The use cases.
    """

    def __init__(self, desk: ScalerDesk) -> None:
        self._desk = desk

    async def IsActive(self, request: pb.ScaledObjectRef, context: Context) -> pb.IsActiveResponse:
        try:
            return pb.IsActiveResponse(result=active(*await self._desk.ask(request.scalerMetadata)))
        except MeshError as error:
            await _refuse(context, error)

    async def StreamIsActive(self, request: pb.ScaledObjectRef, context: Context) -> AsyncIterator[pb.IsActiveResponse]:
        try:
            async for told in self._desk.watch(request.scalerMetadata):
                yield pb.IsActiveResponse(result=told)
        except MeshError as error:
            await _refuse(context, error)

    async def GetMetricSpec(self, request: pb.ScaledObjectRef, context: Context) -> pb.GetMetricSpecResponse:
        try:
            trigger, state = await self._desk.ask(request.scalerMetadata)
        except MeshError as error:
            await _refuse(context, error)
        size = target(trigger, state)
        return pb.GetMetricSpecResponse(
            metricSpecs=[pb.MetricSpec(metricName=trigger.metric, targetSize=whole(size), targetSizeFloat=size)]
        )

    async def GetMetrics(self, request: pb.GetMetricsRequest, context: Context) -> pb.GetMetricsResponse:
        try:
            trigger, state = await self._desk.ask(request.scaledObjectRef.scalerMetadata)
        except MeshError as error:
            await _refuse(context, error)
        if not _names(request.metricName, trigger):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"Unknown metric {request.metricName!r}")
        number = value(trigger, state)
        return pb.GetMetricsResponse(
            metricValues=[pb.MetricValue(metricName=trigger.metric, metricValue=whole(number), metricValueFloat=number)]
        )


def _names(name: str, trigger: Trigger) -> bool:
    # Clients that are not KEDA may leave the name out: there is one metric.
    return name in ("", trigger.metric)


async def _refuse(context: Context, error: MeshError) -> NoReturn:
    code = grpc.StatusCode.INVALID_ARGUMENT if error.kind is ErrorKind.INVALID else grpc.StatusCode.UNAVAILABLE
    await context.abort(code, f"{error.reason}: {_text(error)}")
    raise AssertionError("abort raises")


def _text(error: MeshError) -> str:
    return "; ".join(f"{one.path}: {one.message}" for one in error.violations) or error.message
