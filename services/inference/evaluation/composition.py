"""The role put together: what `__main__` runs and what the tests start."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import dataclass

from atelier.evaluation.v1.evaluation_service_pb2_grpc import add_EvaluationServiceServicer_to_server
from atelier.tasks.v1.enums_pb2 import PROVIDER_TYPE_LOCAL

from meshkit.catalog import provider_numbered
from meshkit.fetcher import Fetcher
from meshkit.health import HealthPart, PartStates
from meshkit.images.checks import ImageChecks
from meshkit.images.limits import ImageLimits
from meshkit.metrics import serve_metrics
from meshkit.objects import open_configured
from meshkit.server import build_server
from meshkit.topology import EVALUATION
from services.inference.evaluation.config import EvaluationSettings
from services.inference.evaluation.domain import Evaluator
from services.inference.evaluation.local import NetworkEvaluator
from services.inference.evaluation.pictures import PictureRoom, Pictures
from services.inference.evaluation.service import ShotEvaluation
from services.inference.evaluation.servicer import EvaluationServicer


@dataclass(frozen=True, slots=True)
class EvaluationRuntime:
    """The running role."""

    address: str


async def start(settings: EvaluationSettings, stack: AsyncExitStack) -> EvaluationRuntime:
    """Start the role; the stack stops it.

    Args:
        settings: Its settings.
        stack: Closed in reverse order at the end.
    """
    objects = open_configured(settings, stack)
    checks = ImageChecks.from_settings(settings)
    stack.push_async_callback(checks.close)
    pictures = Pictures(
        checks,
        Fetcher.from_settings(settings),
        objects,
        limits=ImageLimits(max_pixels=settings.evaluation_max_pixels),
        fetch_seconds=settings.evaluation_fetch_seconds,
        room=PictureRoom(
            at_once=settings.evaluation_slots,
            per_tenant=settings.evaluation_slots_per_tenant,
            waiting=settings.evaluation_waiting,
            wait_seconds=settings.evaluation_wait_seconds,
        ),
    )
    servicer = EvaluationServicer(ShotEvaluation(_evaluators(settings), pictures))
    # Pictures that come as data need no store, if they are small.
    parts = [] if objects is None else [HealthPart("object_store", objects.ping, essential=False)]
    server = build_server(
        settings, EVALUATION, [(add_EvaluationServiceServicer_to_server, servicer)], PartStates(parts)
    )
    await server.start()
    stack.push_async_callback(server.stop)
    page = serve_metrics(settings.metrics_port, settings.metrics_host)
    if page is not None:
        stack.callback(page.close)
    return EvaluationRuntime(server.address)


def _evaluators(settings: EvaluationSettings) -> dict[str, Evaluator]:
    return {provider_numbered(PROVIDER_TYPE_LOCAL).name: NetworkEvaluator(settings.evaluation_threads)}
