"""Freepik's creative upscaler by Magnific, for REFINE tasks: it invents detail, guided by a prompt.

It enlarges 2, 4, 8 or 16 times, and its result has 25.3 million pixels at most. Other factors and sizes are reached
from the next one by resampling. What would be larger is refused before it costs anything.
"""

from __future__ import annotations

from collections.abc import Mapping

from atelier.tasks.v1.enums_pb2 import PROVIDER_TYPE_FREEPIK_MAGNIFIC, TASK_TYPE_REFINE, TaskType
from atelier.tasks.v1.providers_pb2 import FreepikMagnificConfig
from atelier.tasks.v1.task_pb2 import CreateTask, Task

from meshkit.validation import apply_defaults
from meshkit.worker.handlers import CallHandler
from services.inference.providers.freepik import FreepikUpscaling, Upscale, connections, factor_of
from services.inference.providers.kit import ProviderKit

PATH = "/v1/ai/image-upscaler"
FACTORS = (2, 4, 8, 16)
MAX_PIXELS = 25_300_000


def choose(spec: CreateTask, task: Task, size: tuple[int, int], wanted: tuple[int, int]) -> Upscale:
    """Return what is asked for; see `Chooser`."""
    settings = FreepikMagnificConfig()
    settings.CopyFrom(task.provider_config.freepik_magnific)
    apply_defaults(settings)
    body = {
        "scale_factor": f"{factor_of(size, wanted, FACTORS, MAX_PIXELS)}x",
        "optimized_for": settings.optimized_for,
        "creativity": settings.creativity,
        "hdr": settings.hdr,
        "resemblance": settings.resemblance,
        "fractality": settings.fractality,
        "engine": settings.engine,
    }
    if prompt := spec.refine.upscale_prompt or settings.default_prompt:
        body["prompt"] = prompt
    return Upscale(PATH, body)


def handlers(kit: ProviderKit) -> Mapping[TaskType.ValueType, CallHandler]:
    """Return the handlers of the provider."""
    upscaling = FreepikUpscaling(kit, connections(kit), PROVIDER_TYPE_FREEPIK_MAGNIFIC, "image-upscaler", choose)
    return {TASK_TYPE_REFINE: upscaling}
