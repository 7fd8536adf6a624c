"""A client that asks an external scaler as KEDA does: it polls in KEDA's order, and opens its stream again."""

import asyncio
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import grpc
from atelier.keda import externalscaler_pb2 as pb
from atelier.keda.externalscaler_pb2_grpc import ExternalScalerStub


@dataclass(frozen=True)
class Poll:
    """What a poll has learned: of each metric the target and the value, and whether the trigger is active."""

    metrics: Mapping[str, tuple[float, float]]
    active: bool

    def replicas(self) -> int:
        """Replicas that the horizontal autoscaler wants for average values."""
        return max(math.ceil(value / target) for target, value in self.metrics.values())


def _wins(floating: float, whole: int) -> float:
    return floating if floating > 0 else float(max(whole, 0))


class KedaClient:
    """One trigger of type `external-push`.

    It sends no token, keeps no connection alive, and asks for the specification, then for each metric's value, then
    whether it is active. Its stream is opened again after a pause that doubles from `pause` to 30 times as much.
    """

    def __init__(
        self,
        address: str,
        metadata: Mapping[str, str],
        *,
        credentials: grpc.ChannelCredentials | None = None,
        options: Any = (),
        pause: float = 0.02,
    ) -> None:
        self._channel = (
            grpc.aio.insecure_channel(address, options=options)
            if credentials is None
            else grpc.aio.secure_channel(address, credentials, options=options)
        )
        self._stub: Any = ExternalScalerStub(self._channel)
        self._ref = pb.ScaledObjectRef(name="inference", namespace="atelier", scalerMetadata=metadata)
        self._pause = pause
        self._watcher: asyncio.Task[None] | None = None
        self.told: list[bool] = []
        self.ends: list[str] = []
        self.news = asyncio.Event()

    async def poll(self) -> Poll:
        specs = await self._stub.GetMetricSpec(self._ref, timeout=30)
        metrics: dict[str, tuple[float, float]] = {}
        active = False
        for spec in specs.metricSpecs:
            request = pb.GetMetricsRequest(scaledObjectRef=self._ref, metricName=spec.metricName)
            [value] = (await self._stub.GetMetrics(request, timeout=30)).metricValues
            active = (await self._stub.IsActive(self._ref, timeout=30)).result
            metrics[spec.metricName] = (
                _wins(spec.targetSizeFloat, spec.targetSize),
                _wins(value.metricValueFloat, value.metricValue),
            )
        return Poll(metrics, active)

    def watch(self) -> None:
        self._watcher = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        pause = self._pause
        while True:
            try:
                async for answer in self._stub.StreamIsActive(self._ref):
                    self.told.append(answer.result)
                    self.news.set()
                    pause = self._pause
                self.ends.append("EOF")
            except grpc.aio.AioRpcError as error:
                self.ends.append(error.code().name)
            self.news.set()
            await asyncio.sleep(pause)
            pause = min(2 * pause, 30 * self._pause)

    async def close(self) -> None:
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
        await self._channel.close()
