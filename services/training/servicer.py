"""The services over gRPC: decode, call, encode."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import grpc
from atelier.training.v1 import trainer_service_pb2 as trainer
from atelier.training.v1 import training_service_pb2 as api
from atelier.training.v1.trainer_service_pb2_grpc import TrainerServiceServicer
from atelier.training.v1.training_service_pb2_grpc import TrainingServiceServicer
from google.api.httpbody_pb2 import HttpBody

from meshkit import auth
from meshkit.access import Caller
from meshkit.errors import forbidden
from meshkit.idempotency import REPLAYED, IdempotencyKey
from meshkit.media_urls import MediaLinks
from meshkit.retention import Pruning
from meshkit.retention_calls import to_lines
from meshkit.spelling import value_names
from services.training.convert import to_losses, to_sample, to_save, to_spec, to_training, to_validation
from services.training.curve import as_png, as_svg, smoothed
from services.training.job_calls import QUEUE
from services.training.reports import TrainerReports
from services.training.retention import OldTrainings
from services.training.service import TrainingsService
from services.training.watch import TrainingWatchers

Context = grpc.aio.ServicerContext[Any, Any]
_THEME_NAME = value_names(api.CurveTheme.DESCRIPTOR)


class TrainingServicer(TrainingServiceServicer):
    """Answers callers.

    Args:
        trainings: The use cases.
        watchers: Follows trainings.
        links: Makes addresses of pictures; None where the mesh is not told its public address.
        retention: Knows what is old.
        old: Deletes what has ended.
    """

    def __init__(
        self,
        trainings: TrainingsService,
        watchers: TrainingWatchers,
        links: MediaLinks | None,
        retention: Pruning,
        old: OldTrainings,
    ) -> None:
        self._old = old
        self._trainings = trainings
        self._watchers = watchers
        self._links = links
        self._retention = retention

    async def PreviewTrainingRetention(
        self, request: api.PreviewTrainingRetentionRequest, context: Context
    ) -> api.PreviewTrainingRetentionResponse:
        del context
        lines = await self._retention.preview(
            request.tenant if request.HasField("tenant") else None, request.days if request.HasField("days") else None
        )
        return api.PreviewTrainingRetentionResponse(lines=to_lines(lines))

    async def CreateTraining(self, request: api.CreateTrainingRequest, context: Context) -> api.CreateTrainingResponse:
        key = IdempotencyKey.of_call("CreateTraining", request)
        answer, replayed = await self._trainings.create(request, Caller.of_call(), key)
        if replayed:
            context.set_trailing_metadata(REPLAYED)
        if isinstance(answer, bytes):
            return api.CreateTrainingResponse.FromString(answer)
        return api.CreateTrainingResponse(training=to_training(answer))

    async def ListTrainings(self, request: api.ListTrainingsRequest, context: Context) -> api.ListTrainingsResponse:
        del context
        records = await self._trainings.list_trainings(Caller.of_call(), request.skip, request.limit)
        return api.ListTrainingsResponse(trainings=[to_training(one) for one in records])

    async def GetTraining(self, request: api.GetTrainingRequest, context: Context) -> api.GetTrainingResponse:
        del context
        record = await self._trainings.get(UUID(request.task_id), Caller.of_call())
        return api.GetTrainingResponse(training=to_training(record))

    async def CancelTraining(self, request: api.CancelTrainingRequest, context: Context) -> api.CancelTrainingResponse:
        del context
        record = await self._trainings.cancel(UUID(request.task_id), Caller.of_call())
        return api.CancelTrainingResponse(training=to_training(record))

    async def DeleteTraining(self, request: api.DeleteTrainingRequest, context: Context) -> api.DeleteTrainingResponse:
        del context
        await self._old.delete(UUID(request.task_id), Caller.of_call())
        return api.DeleteTrainingResponse(task_id=request.task_id)

    async def UpdateTraining(self, request: api.UpdateTrainingRequest, context: Context) -> api.UpdateTrainingResponse:
        del context
        priority = request.update.priority
        record = await self._trainings.set_priority(UUID(request.task_id), Caller.of_call(), priority)
        return api.UpdateTrainingResponse(training=to_training(record))

    async def ContinueTraining(
        self, request: api.ContinueTrainingRequest, context: Context
    ) -> api.ContinueTrainingResponse:
        key = IdempotencyKey.of_call("ContinueTraining", request)
        answer, replayed = await self._trainings.go_on(request, Caller.of_call(), key)
        if replayed:
            context.set_trailing_metadata(REPLAYED)
        if isinstance(answer, bytes):
            return api.ContinueTrainingResponse.FromString(answer)
        return api.ContinueTrainingResponse(training=to_training(answer))

    async def SampleTraining(self, request: api.SampleTrainingRequest, context: Context) -> api.SampleTrainingResponse:
        del context
        record = await self._trainings.sample(UUID(request.task_id), Caller.of_call(), request.sample.prompts)
        return api.SampleTrainingResponse(training=to_training(record))

    async def GetTrainingDataset(
        self, request: api.GetTrainingDatasetRequest, context: Context
    ) -> api.GetTrainingDatasetResponse:
        del context
        record, found = await self._trainings.dataset(UUID(request.task_id), Caller.of_call())
        response = api.GetTrainingDatasetResponse.FromString(found or b"")
        if self._links is not None:
            for image in response.images:
                image.url = self._links.url(record.tenant, image.path)
                if image.thumbnail_path:
                    image.thumbnail_url = self._links.url(record.tenant, image.thumbnail_path)
        return response

    async def GetTrainingCurve(
        self, request: api.GetTrainingCurveRequest, context: Context
    ) -> api.GetTrainingCurveResponse:
        del context
        curve = await self._trainings.curve(UUID(request.task_id), Caller.of_call())
        return api.GetTrainingCurveResponse(
            losses=to_losses(curve.losses),
            smoothed=to_losses(smoothed(curve.losses)),
            validation=to_validation(curve.validation),
        )

    async def DrawTrainingCurve(
        self, request: api.DrawTrainingCurveRequest, context: Context
    ) -> api.DrawTrainingCurveResponse:
        del context
        title, curve = await self._curve(UUID(request.task_id))
        data = await asyncio.to_thread(as_svg, title, curve.losses, curve.validation, _theme(request.theme))
        return api.DrawTrainingCurveResponse(picture=HttpBody(content_type="image/svg+xml", data=data))

    async def PaintTrainingCurve(
        self, request: api.PaintTrainingCurveRequest, context: Context
    ) -> api.PaintTrainingCurveResponse:
        del context
        title, curve = await self._curve(UUID(request.task_id))
        data = await asyncio.to_thread(as_png, title, curve.losses, curve.validation, _theme(request.theme))
        return api.PaintTrainingCurveResponse(picture=HttpBody(content_type="image/png", data=data))

    async def ListTrainingSaves(
        self, request: api.ListTrainingSavesRequest, context: Context
    ) -> api.ListTrainingSavesResponse:
        del context
        record, saves, samples = await self._trainings.kept(UUID(request.task_id), Caller.of_call())
        return api.ListTrainingSavesResponse(
            saves=[to_save(one) for one in saves],
            samples=[to_sample(one, record.tenant, self._links) for one in samples],
        )

    async def WatchTraining(
        self, request: api.WatchTrainingRequest, context: Context
    ) -> AsyncIterator[api.WatchTrainingResponse]:
        del context
        async for response in self._watchers.watch(UUID(request.task_id), Caller.of_call(), request.after_version):
            yield response

    async def _curve(self, training_id: UUID) -> tuple[str, Any]:
        caller = Caller.of_call()
        training = to_training(await self._trainings.get(training_id, caller))
        title = f"{training.trigger_word}: loss by step, {training.current_step} of {training.total_steps}"
        return title, await self._trainings.curve(training_id, caller)


class TrainerServicer(TrainerServiceServicer):
    """Answers trainers.

    Args:
        reports: The use cases.
    """

    def __init__(self, reports: TrainerReports) -> None:
        self._reports = reports

    async def BeginAttempt(
        self, request: trainer.BeginAttemptRequest, context: Context
    ) -> trainer.BeginAttemptResponse:
        del context
        _admit_trainer()
        record, saves = await self._reports.begin(request.ref)
        return trainer.BeginAttemptResponse(spec=to_spec(record, saves))

    async def ReportStage(self, request: trainer.ReportStageRequest, context: Context) -> trainer.ReportStageResponse:
        del context
        _admit_trainer()
        await self._reports.stage(request)
        return trainer.ReportStageResponse()

    async def NoteDataset(self, request: trainer.NoteDatasetRequest, context: Context) -> trainer.NoteDatasetResponse:
        del context
        _admit_trainer()
        await self._reports.dataset(request)
        return trainer.NoteDatasetResponse()

    async def ReportSteps(self, request: trainer.ReportStepsRequest, context: Context) -> trainer.ReportStepsResponse:
        del context
        _admit_trainer()
        return trainer.ReportStepsResponse(sample_prompts=await self._reports.steps(request))

    async def NoteState(self, request: trainer.NoteStateRequest, context: Context) -> trainer.NoteStateResponse:
        del context
        _admit_trainer()
        await self._reports.state(request)
        return trainer.NoteStateResponse()

    async def NoteSave(self, request: trainer.NoteSaveRequest, context: Context) -> trainer.NoteSaveResponse:
        del context
        _admit_trainer()
        await self._reports.save(request)
        return trainer.NoteSaveResponse()

    async def NoteSample(self, request: trainer.NoteSampleRequest, context: Context) -> trainer.NoteSampleResponse:
        del context
        _admit_trainer()
        await self._reports.sample(request)
        return trainer.NoteSampleResponse()

    async def FinishTraining(
        self, request: trainer.FinishTrainingRequest, context: Context
    ) -> trainer.FinishTrainingResponse:
        del context
        _admit_trainer()
        return trainer.FinishTrainingResponse(library_path=await self._reports.finish(request))


def _admit_trainer() -> None:
    """Refuse a worker whose token is bound to other queues: it has no training to tell of.

    Raises:
        MeshError: `FORBIDDEN`.
    """
    queues = auth.current().queues
    if queues is not None and QUEUE not in queues:
        raise forbidden(f"The token is not bound to the queue {QUEUE!r}", reason="QUEUE_FORBIDDEN")


def _theme(number: int) -> str:
    return _THEME_NAME[number].lower()
