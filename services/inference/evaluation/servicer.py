"""EvaluationService over gRPC: decode, call, encode."""

from __future__ import annotations

from typing import Any

import grpc
from atelier.evaluation.v1 import evaluation_service_pb2 as pb
from atelier.evaluation.v1.evaluation_service_pb2_grpc import EvaluationServiceServicer

from meshkit import auth
from services.inference.evaluation import convert
from services.inference.evaluation.service import ShotEvaluation

Context = grpc.aio.ServicerContext[Any, Any]


class EvaluationServicer(EvaluationServiceServicer):
    """Answers callers.

    Args:
        evaluation: The use case.
    """

    def __init__(self, evaluation: ShotEvaluation) -> None:
        self._evaluation = evaluation

    async def EvaluateImage(self, request: pb.EvaluateImageRequest, context: Context) -> pb.EvaluateImageResponse:
        """Evaluate a picture."""
        del context
        wanted, source = convert.to_wanted(request.evaluation), convert.to_source(request.evaluation)
        provider = convert.to_provider(request.provider)
        verdict = await self._evaluation.evaluate(auth.acting_tenant(), source, wanted, provider)
        return pb.EvaluateImageResponse(evaluation=convert.to_response(verdict, wanted))

    async def GetEvaluatorHealth(
        self, request: pb.GetEvaluatorHealthRequest, context: Context
    ) -> pb.GetEvaluatorHealthResponse:
        """Tell how an evaluator does."""
        del context
        health = self._evaluation.health(convert.to_provider(request.provider))
        return pb.GetEvaluatorHealthResponse(health=convert.to_health(health))
