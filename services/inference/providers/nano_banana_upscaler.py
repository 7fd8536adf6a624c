"""NANO_BANANA_UPSCALER: Gemini enlarges a picture, and what comes is checked to show the same.

What is checked is the structural similarity (SSIM) of both at the size of the picture that was sent, once the result is
laid over it: a model moves what it redraws by a few pixels. A result that fails is drawn again, with less freedom; each
is a request of its own. Where none passes, the one that comes nearest is the result.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from atelier.tasks.v1.enums_pb2 import (
    ERROR_CATEGORY_CANCELLED,
    PROVIDER_TYPE_NANO_BANANA_UPSCALER,
    TASK_TYPE_REFINE,
    TaskType,
)
from atelier.tasks.v1.providers_pb2 import NanoBananaUpscalerConfig
from atelier.tasks.v1.refine_pb2 import RefineTaskPublic
from atelier.tasks.v1.task_pb2 import CreateTask, Task, TaskResult

from meshkit.logging import get_logger
from meshkit.validation import apply_defaults
from meshkit.worker.handlers import CallContext, CallHandler, InputRef, Output, TaskFailed
from modelkit.pictures import open_picture, over_white
from services.inference.providers import aspects
from services.inference.providers.gemini_pictures import (
    BASE,
    RESULT,
    GeminiPictures,
    asks_for_faces,
    growth_note,
    picture_output,
    refine_prompt,
    refined_base,
    refined_refs,
    refined_size,
    require_account,
    unchanged,
)
from services.inference.providers.paid import Order
from services.inference.providers.results import size_of

if TYPE_CHECKING:
    from services.inference.providers.kit import ProviderKit

_log = get_logger(__name__)

_SYSTEM = (
    "You enlarge photographs. You reproduce what you are given and invent nothing: no person, garment, letter or "
    "object appears, disappears, moves or changes its colour."
)
_TOP_P = 0.95
# The first drawing is fairly free, for detail; each further one is less so.
_TEMPERATURE, _COOLING = 0.6, 0.6
_COMPARED_SIDE = 1024


@dataclass(slots=True)
class _Best:
    """The result that comes nearest to its original so far."""

    path: Path
    likeness: float
    growth: float


class NanoBananaUpscalerHandler:
    """Refines REFINE tasks' pictures.

    Args:
        kit: What providers share.
    """

    def __init__(self, kit: ProviderKit) -> None:
        self._kit = kit
        self._pictures = GeminiPictures(kit)

    def inputs(self, spec: CreateTask, task: Task) -> Sequence[InputRef]:
        """Name the picture."""
        return refined_refs(spec, task)

    async def run(self, context: CallContext) -> Output:
        """Have the picture redrawn until it shows the same; one of which nothing is asked is given back."""
        asked, path = context.spec.refine, context.inputs[BASE]
        own = await size_of(path)
        size = refined_size(own, asked)
        if size == own and not asks_for_faces(asked):
            return await unchanged(path, context.folder)
        config = _config(context.spec, context.task)
        best: _Best | None = None
        failed: TaskFailed | None = None
        number = 0
        for number in range(1, config.max_retries + 2):
            try:
                drawn = await self._drawn(context, config, size, number)
            except TaskFailed as error:
                if best is None or error.category == ERROR_CATEGORY_CANCELLED:
                    raise
                failed = error
                break
            if best is None or drawn.likeness > best.likeness:
                best, worse = drawn, best
            else:
                worse = drawn
            if worse is not None:
                worse.path.unlink()
            if drawn.likeness >= config.ssim_threshold:
                break
            _log.info("upscaling_differs", job_id=context.job_id, number=number, likeness=round(drawn.likeness, 3))
        assert best is not None, "a loop of one round at least ends with a result or an error"
        best.path.rename(context.folder / RESULT)
        warnings = growth_note(best.growth)
        if best.likeness < config.ssim_threshold:
            warnings.append(
                f"No result of {number} is as similar to the original as asked for (SSIM {config.ssim_threshold:g}): "
                f"this one is nearest ({best.likeness:.3f})."
            )
        if failed is not None:
            warnings.append(f"Another one was not drawn: {failed.message}")
        return picture_output(TaskResult(refine=RefineTaskPublic(), warnings=warnings))

    async def _drawn(
        self, context: CallContext, config: NanoBananaUpscalerConfig, size: tuple[int, int], number: int
    ) -> _Best:
        from services.inference.providers.gemini import NAME, PictureRequest  # noqa: PLC0415 -- two seconds

        path = context.inputs[BASE]
        sheet = aspects.Sheet.around(*size)
        image_size = aspects.image_size_for(*size)
        base = await asyncio.to_thread(refined_base, path, sheet, aspects.SIDES[image_size])
        model = self._kit.settings.gemini_image_model
        asked = PictureRequest(
            model=model,
            prompt=refine_prompt(context.spec.refine, config.default_prompt or None),
            pictures=[base],
            system=_SYSTEM,
            aspect_ratio=sheet.aspect,
            image_size=image_size,
            temperature=_TEMPERATURE * _COOLING ** (number - 1),
            top_p=_TOP_P,
        )
        order = Order(PROVIDER_TYPE_NANO_BANANA_UPSCALER, NAME, model, "upscale", self._kit.seconds(TASK_TYPE_REFINE))
        target = context.folder / f"drawn-{number}.png"

        async def finish(drawing: Path) -> _Best:
            growth = await asyncio.to_thread(aspects.brought, drawing, target, sheet, size, path)
            likeness = 1.0
            if config.ssim_threshold > 0:
                likeness = await asyncio.to_thread(_likeness, path, target)
            return _Best(target, likeness, growth)

        return await self._pictures.drawn(context, order, asked, finish)


def handlers(kit: ProviderKit) -> Mapping[TaskType.ValueType, CallHandler]:
    """Return the handlers of the provider's task types.

    Raises:
        ValueError: There is no account at Google.
    """
    require_account(kit)
    return {TASK_TYPE_REFINE: NanoBananaUpscalerHandler(kit)}


def _config(spec: CreateTask, task: Task) -> NanoBananaUpscalerConfig:
    config = NanoBananaUpscalerConfig()
    config.CopyFrom((task if task.HasField("provider_config") else spec).provider_config.nano_banana_upscaler)
    apply_defaults(config)
    return config


def _likeness(original: Path, drawn: Path) -> float:
    """Return the SSIM of a drawn picture and its original, once it is laid over that, at the original's size."""
    import numpy as np  # noqa: PLC0415 -- as OpenCV, of no use to other providers

    from modelkit.alignment import align  # noqa: PLC0415 -- OpenCV
    from modelkit.consistency import ssim  # noqa: PLC0415 -- OpenCV
    from modelkit.patches import PixelBox  # noqa: PLC0415 -- OpenCV

    before = over_white(open_picture(original))
    scale = min(1.0, _COMPARED_SIDE / max(before.size))
    size = (max(1, round(before.width * scale)), max(1, round(before.height * scale)))
    first, second = (
        np.asarray(image.resize(size, reducing_gap=3.0)) for image in (before, over_white(open_picture(drawn)))
    )
    return ssim(first, align(second, PixelBox(0, 0, *size), first).pixels)
