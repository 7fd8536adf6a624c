"""The calls of `TrainerService`, each repeated for as long as the service is away."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, Protocol, TypeVar

from atelier.training.v1.trainer_service_pb2 import (
    BeginAttemptRequest,
    FinishTrainingRequest,
    NoteDatasetRequest,
    NoteSampleRequest,
    NoteSaveRequest,
    NoteStateRequest,
    ReportStageRequest,
    ReportStepsRequest,
    ReportStepsResponse,
    TrainingSpec,
)
from atelier.training.v1.trainer_service_pb2_grpc import TrainerServiceStub

from meshkit.channel import MeshChannel
from meshkit.errors import TRANSIENT, ErrorKind, MeshError
from meshkit.logging import get_logger
from meshkit.worker.pacing import Pauses

_log = get_logger(__name__)

_SECONDS = 20.0
_LOST = frozenset({ErrorKind.CONFLICT, ErrorKind.NOT_FOUND})
_Request_contra = TypeVar("_Request_contra", contravariant=True)
_Response_co = TypeVar("_Response_co", covariant=True)
_Request = TypeVar("_Request")
_Response = TypeVar("_Response")


class AttemptLost(Exception):  # noqa: N818 -- an outcome: the training is another attempt's, or has ended
    """The training service refuses the attempt."""


class _Method(Protocol[_Request_contra, _Response_co]):
    def __call__(self, request: _Request_contra, /, *, timeout: float | None = None) -> Awaitable[_Response_co]: ...


class TrainerCalls:
    """What a trainer tells the training service.

    Args:
        channel: Channel to the service.
        pauses: Waits between tries.

    Each call raises `AttemptLost` where the attempt is not the training's any more, and `MeshError` where the service
    does not take what it is told.
    """

    def __init__(self, channel: MeshChannel, pauses: Pauses | None = None) -> None:
        self._stub: Any = channel.stub(TrainerServiceStub)
        self._pauses = pauses or Pauses()

    async def begin(self, request: BeginAttemptRequest) -> TrainingSpec:
        """Begin the attempt; return what to do."""
        spec: TrainingSpec = (await self._call(self._stub.BeginAttempt, request)).spec
        return spec

    async def stage(self, request: ReportStageRequest) -> None:
        """Tell how far the preparation is."""
        await self._call(self._stub.ReportStage, request)

    async def dataset(self, request: NoteDatasetRequest) -> None:
        """Tell that the dataset is stored."""
        await self._call(self._stub.NoteDataset, request)

    async def steps(self, request: ReportStepsRequest) -> ReportStepsResponse:
        """Tell which steps were taken; return what is wanted meanwhile."""
        response: ReportStepsResponse = await self._call(self._stub.ReportSteps, request)
        return response

    async def state(self, request: NoteStateRequest) -> None:
        """Tell that a state is stored."""
        await self._call(self._stub.NoteState, request)

    async def save(self, request: NoteSaveRequest) -> None:
        """Tell that an adapter of a step is stored."""
        await self._call(self._stub.NoteSave, request)

    async def sample(self, request: NoteSampleRequest) -> None:
        """Tell that a sample picture is stored."""
        await self._call(self._stub.NoteSample, request)

    async def finish(self, request: FinishTrainingRequest) -> str:
        """Put the adapter into the library; return its path there."""
        path: str = (await self._call(self._stub.FinishTraining, request)).library_path
        return path

    async def _call(self, method: _Method[_Request, _Response], request: _Request) -> _Response:
        failures = 0
        while True:
            try:
                return await method(request, timeout=_SECONDS)
            except MeshError as error:
                if error.kind in _LOST:
                    raise AttemptLost(error.reason) from error
                if error.kind not in TRANSIENT:
                    raise
                failures += 1
                _log.warning(
                    "training_service_away", call=type(request).__name__, kind=error.kind.value, failures=failures
                )
                await self._pauses.after(failures)
