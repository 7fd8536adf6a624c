"""FAL_GARMENT_FIXER: DETAIL_ENHANCER by the application that the installation names as its garment fixer.

The application is given both pictures (`image_urls`, the picture before its reference) and is told what to do.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from atelier.tasks.v1.detail_enhancer_pb2 import DetailEnhancerTaskPublic
from atelier.tasks.v1.enums_pb2 import PROVIDER_TYPE_FAL_GARMENT_FIXER, TASK_TYPE_DETAIL_ENHANCER, TaskType
from atelier.tasks.v1.task_pb2 import CreateTask, Task, TaskResult

from meshkit.worker.handlers import CallContext, CallHandler, InputRef, Output, OutputFile
from services.inference.providers.fal_jobs import FalJobs, first_url
from services.inference.providers.fal_queue import NAME
from services.inference.providers.kit import ProviderKit
from services.inference.providers.results import data_url, size_of

_BASE, _REFERENCE = "base", "reference"
_RESULT = "image.png"


class GarmentFixerHandler:
    """Has an application give a garment the details that a reference shows."""

    def __init__(self, jobs: FalJobs) -> None:
        self._jobs = jobs

    def inputs(self, spec: CreateTask, task: Task) -> Sequence[InputRef]:
        """Name the picture and its reference."""
        current, requested = task.detail_enhancer, spec.detail_enhancer
        return [
            InputRef(_BASE, current.base_image_path or requested.base_image, "image"),
            InputRef(_REFERENCE, current.reference_image_path or requested.reference_image, "image"),
        ]

    async def run(self, context: CallContext) -> Output:
        """Fix the garment."""
        began = time.monotonic()
        base, reference = context.inputs[_BASE], context.inputs[_REFERENCE]
        size = await size_of(base)
        arguments = garment_arguments(context.spec, await data_url(base), await data_url(reference))

        async def finish(answer: dict[str, Any]) -> Output:
            await self._jobs.kit.results.picture(
                NAME, first_url(answer), context.folder / _RESULT, size=size, alpha_of=base
            )
            return Output(
                TaskResult(detail_enhancer=DetailEnhancerTaskPublic()),
                (OutputFile(_RESULT, "image/png", "result_image_path"),),
                time.monotonic() - began,
            )

        application = self._jobs.kit.settings.fal_garment_app
        return await self._jobs.ask(context, TASK_TYPE_DETAIL_ENHANCER, application, arguments, finish)


def garment_arguments(spec: CreateTask, base: str, reference: str) -> dict[str, Any]:
    """Return what the application is given: both pictures, as data URLs, and what to do with them."""
    label = spec.detail_enhancer.detail_label or "garment"
    prompt = (
        f"Restore the {label} in the first image to look exactly like the {label} in the second image: the same "
        "fabric, seams, prints, logos and colours. Keep everything else, the pose and the light as they are."
    )
    return {
        "prompt": prompt,
        "image_url": base,
        "image_urls": [base, reference],
        "num_images": 1,
        "output_format": "png",
    }


def handlers(kit: ProviderKit) -> Mapping[TaskType.ValueType, CallHandler]:
    """Return the handler of the one type that it executes."""
    return {TASK_TYPE_DETAIL_ENHANCER: GarmentFixerHandler(FalJobs(kit, PROVIDER_TYPE_FAL_GARMENT_FIXER))}
