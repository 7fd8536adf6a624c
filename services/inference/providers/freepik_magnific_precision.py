"""Freepik's precise upscaler by Magnific, for REFINE tasks: it sharpens, and invents nothing.

Its first version takes no factor: the size is reached from what it makes by resampling. The second enlarges 2 to 16
times. Neither takes a prompt. `ATELIER_FREEPIK_PRECISION_VERSION` chooses, and `ATELIER_FREEPIK_PRECISION_FLAVOR` says
what the second is tuned for.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from atelier.tasks.v1.enums_pb2 import PROVIDER_TYPE_FREEPIK_MAGNIFIC_PRECISION, TASK_TYPE_REFINE, TaskType
from atelier.tasks.v1.providers_pb2 import FreepikMagnificPrecisionConfig
from atelier.tasks.v1.task_pb2 import CreateTask, Task

from meshkit.validation import apply_defaults
from meshkit.worker.handlers import CallHandler
from modelkit.sizes import MAX_PIXELS
from services.inference.providers.freepik import FreepikUpscaling, Upscale, connections, factor_of
from services.inference.providers.kit import ProviderKit

PATH = "/v1/ai/image-upscaler-precision"
PATH_OF_2 = "/v1/ai/image-upscaler-precision-v2"
FACTORS_OF_2 = tuple(range(2, 17))


def choose(
    flavor: str | None, _spec: CreateTask, task: Task, size: tuple[int, int], wanted: tuple[int, int]
) -> Upscale:
    """Return what is asked for; see `Chooser`.

    Args:
        flavor: What the second version is tuned for; None for the first version.
        task: The task.
        size: Size of the picture.
        wanted: Size that its result is to have.
    """
    settings = FreepikMagnificPrecisionConfig()
    settings.CopyFrom(task.provider_config.freepik_magnific_precision)
    apply_defaults(settings)
    body = {
        "sharpen": settings.sharpen,
        "smart_grain": settings.smart_grain,
        "ultra_detail": settings.ultra_detail,
    }
    if flavor is None:
        return Upscale(PATH, body)
    # What it makes at most is not published; larger results could not be opened here.
    return Upscale(
        PATH_OF_2, {**body, "scale_factor": factor_of(size, wanted, FACTORS_OF_2, MAX_PIXELS), "flavor": flavor}
    )


def handlers(kit: ProviderKit) -> Mapping[TaskType.ValueType, CallHandler]:
    """Return the handlers of the provider."""
    settings = kit.settings
    flavor = settings.freepik_precision_flavor if settings.freepik_precision_version == "2" else None
    path = PATH if flavor is None else PATH_OF_2
    upscaling = FreepikUpscaling(
        kit,
        connections(kit),
        PROVIDER_TYPE_FREEPIK_MAGNIFIC_PRECISION,
        path.rpartition("/")[2],
        partial(choose, flavor),
    )
    return {TASK_TYPE_REFINE: upscaling}
