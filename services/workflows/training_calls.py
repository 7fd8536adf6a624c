"""The training service as this one needs it, for steps that train."""

from __future__ import annotations

from uuid import UUID

from atelier.training.v1 import training_pb2, training_service_pb2
from atelier.training.v1.training_service_pb2_grpc import TrainingServiceStub

from meshkit.channel import DEFAULT_DEADLINE_SECONDS, MeshChannel, call_metadata
from meshkit.repeating import repeated


class TrainingCalls:
    """Calls the training service with a token of the mesh, in the name of a workflow's tenant.

    Args:
        channel: Channel to it.
    """

    def __init__(self, channel: MeshChannel) -> None:
        self._stub = channel.stub(TrainingServiceStub)

    async def create(self, training: training_pb2.CreateTraining, training_id: UUID, tenant: str) -> None:
        """Make a training of this identifier, or find that it exists."""
        request = training_service_pb2.CreateTrainingRequest(training=training, training_id=str(training_id))
        metadata = call_metadata(tenant=tenant)
        await repeated(
            lambda left: self._stub.CreateTraining(request, timeout=left, metadata=metadata), DEFAULT_DEADLINE_SECONDS
        )

    async def get(self, training_id: UUID, tenant: str) -> training_pb2.TrainingTask:
        """Return a training as it stands."""
        request = training_service_pb2.GetTrainingRequest(task_id=str(training_id))
        return (await self._stub.GetTraining(request, metadata=call_metadata(tenant=tenant))).training

    async def cancel(self, training_id: UUID, tenant: str) -> None:
        """Cancel a training."""
        request = training_service_pb2.CancelTrainingRequest(task_id=str(training_id))
        await self._stub.CancelTraining(request, metadata=call_metadata(tenant=tenant))
