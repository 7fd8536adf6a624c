"""REFINE by an application of fal that enlarges: for every provider that calls one."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from atelier.tasks.v1.enums_pb2 import TASK_TYPE_REFINE
from atelier.tasks.v1.refine_pb2 import RefineTaskPublic
from atelier.tasks.v1.task_pb2 import CreateTask, Task, TaskResult

from meshkit.worker.handlers import CallContext, InputRef, Output, OutputFile
from services.inference.providers.fal_jobs import FalJobs, first_url
from services.inference.providers.fal_queue import NAME
from services.inference.providers.results import data_url, size_of
from services.inference.targets import target_size

_BASE = "base"
_RESULT = "image.png"

Named = Callable[[CreateTask, Task], tuple[str, Mapping[str, Any]]]
"""Returns the application of a task, and what the task passes on to it as it is."""


class FalRefineHandler:
    """Has an application enlarge REFINE tasks' pictures.

    The result has exactly the size that is asked for, and the transparency of the picture. Where nothing is to be
    enlarged, the application redraws the picture at its own size.

    Args:
        jobs: Calls fal.
        named: Tells which application it is.
    """

    def __init__(self, jobs: FalJobs, named: Named) -> None:
        self._jobs = jobs
        self._named = named

    def inputs(self, spec: CreateTask, task: Task) -> Sequence[InputRef]:
        """Name the picture."""
        return [InputRef(_BASE, task.refine.base_image_path or spec.refine.base_image_url, "image")]

    async def run(self, context: CallContext) -> Output:
        """Enlarge the picture."""
        began = time.monotonic()
        base = context.inputs[_BASE]
        size, requested = await size_of(base), context.spec.refine
        enlarge = requested.upscale_enabled if requested.HasField("upscale_enabled") else True
        wanted = target_size(size, requested) if enlarge else size
        application, static = self._named(context.spec, context.task)
        arguments = {**static, **refine_arguments(context.spec, context.task, await data_url(base), size, wanted)}

        async def finish(answer: dict[str, Any]) -> Output:
            path = context.folder / _RESULT
            await self._jobs.kit.results.picture(
                NAME, first_url(answer), path, size=wanted, how="stretch", alpha_of=base
            )
            return Output(
                TaskResult(refine=RefineTaskPublic()),
                (OutputFile(_RESULT, "image/png", "result_image_path"),),
                time.monotonic() - began,
            )

        return await self._jobs.ask(context, TASK_TYPE_REFINE, application, arguments, finish)


def refine_arguments(
    spec: CreateTask, task: Task, image: str, size: tuple[int, int], wanted: tuple[int, int]
) -> dict[str, Any]:
    """Return what an application that enlarges is given.

    Args:
        spec: The task as accepted.
        task: The task as it stands.
        image: The picture, as a data URL.
        size: Its width and height.
        wanted: Those of the result.
    """
    requested, current = spec.refine, task.refine
    # Applications enlarge by whole factors or by any: more than asked for is reduced again, and nothing is lost.
    factor = max(wanted[0] / size[0], wanted[1] / size[1])
    factor = round(factor) if math.isclose(factor, round(factor), abs_tol=0.01) else math.ceil(factor * 100) / 100
    arguments: dict[str, Any] = {
        "image_url": image,
        "upscale_factor": max(1, factor),
        "scale": max(1, factor),
        "seed": current.upscale_seed if task.WhichOneof("detail") is not None else requested.upscale_seed,
    }
    if requested.upscale_prompt:
        arguments["prompt"] = requested.upscale_prompt
    if requested.upscale_denoise > 0:
        arguments["creativity"] = requested.upscale_denoise
        arguments["num_inference_steps"] = requested.upscale_steps or 20
    return arguments
