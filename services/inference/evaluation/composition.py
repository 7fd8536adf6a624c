"""The role put together: what `__main__` runs and what the tests start."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import dataclass

from atelier.evaluation.v1.evaluation_service_pb2_grpc import add_EvaluationServiceServicer_to_server

from meshkit.fetcher import Fetcher
from meshkit.health import HealthPart, PartStates
from meshkit.images.checks import ImageChecks
from meshkit.images.limits import ImageLimits
from meshkit.metrics import serve_metrics
from meshkit.objects import open_configured
from meshkit.server import build_server
from meshkit.topology import EVALUATION
from services.inference.evaluation.config import AI_CORE, LOCAL, EvaluationSettings
from services.inference.evaluation.local import NetworkEvaluator
from services.inference.evaluation.models import ModelEvaluator
from services.inference.evaluation.pictures import PictureRoom, Pictures
from services.inference.evaluation.service import EvaluatorDesk, ShotEvaluation
from services.inference.evaluation.servicer import EvaluationServicer
from services.inference.providers.chats import open_chat


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
    fetcher = Fetcher.from_settings(settings)

    def pictures(at_once: int) -> Pictures:
        return Pictures(
            checks,
            fetcher,
            objects,
            limits=ImageLimits(max_pixels=settings.evaluation_max_pixels),
            fetch_seconds=settings.evaluation_fetch_seconds,
            room=PictureRoom(
                at_once=at_once,
                per_tenant=settings.evaluation_slots_per_tenant,
                waiting=settings.evaluation_waiting,
                wait_seconds=settings.evaluation_wait_seconds,
            ),
        )

    desks: dict[str, EvaluatorDesk] = {}
    for name in settings.evaluation_providers:
        if name == LOCAL:
            local = NetworkEvaluator(settings.evaluation_threads)
            desks[name] = EvaluatorDesk(local, pictures(settings.evaluation_slots))
            continue
        model = _model(name, settings)
        stack.push_async_callback(model.close)
        desks[name] = EvaluatorDesk(model, pictures(settings.evaluation_calls))
    servicer = EvaluationServicer(ShotEvaluation(desks))
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


def _model(name: str, settings: EvaluationSettings) -> ModelEvaluator:
    """Return the evaluator of a provider: VERTEX is Gemini, AI_CORE whose model the settings name."""
    whose, model = "gemini", settings.gemini_text_model
    if name == AI_CORE:
        whose, model = settings.evaluation_ai_provider, settings.evaluation_ai_model
    seconds = settings.evaluation_answer_seconds
    return ModelEvaluator(lambda: open_chat(whose, settings), model, settings.provider_http, seconds)
