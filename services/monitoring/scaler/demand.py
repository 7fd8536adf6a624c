"""Asks the scheduler of tasks for its demand."""

from __future__ import annotations

from collections.abc import Mapping

from atelier.tasks.v1.scaling_service_pb2 import GetDemandRequest
from atelier.tasks.v1.scaling_service_pb2_grpc import ScalingServiceStub

from meshkit.channel import MeshChannel
from services.monitoring.scaler.answers import QueueState
from services.monitoring.scaler.service import READ_SECONDS


class SchedulersDemand:
    """Reads the demand of all queues.

    Args:
        tasks: Channel to the tasks service.
    """

    def __init__(self, tasks: MeshChannel) -> None:
        self._stub = tasks.stub(ScalingServiceStub)

    async def read(self) -> Mapping[str, QueueState]:
        """Return the state of every queue.

        Raises:
            MeshError: What the scheduler, or the way to it, says.
        """
        response = await self._stub.GetDemand(GetDemandRequest(), timeout=READ_SECONDS)
        return {
            one.name: QueueState(
                waiting=one.waiting,
                running=one.running,
                delayed=one.delayed,
                slots_reported=one.slots_reported,
                drain_seconds=response.drain_seconds,
                utilization=response.utilization,
            )
            for one in response.queues
        }
