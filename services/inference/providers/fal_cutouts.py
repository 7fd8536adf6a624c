"""BACKGROUND_REMOVE by an application of fal: one request a picture, several at a time.

A picture that fails leaves "" in its place and a line in `errors` that names it. The task fails where all of them do.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from atelier.tasks.v1.background_removal_pb2 import BackgroundRemovalTaskPublic
from atelier.tasks.v1.enums_pb2 import ERROR_CATEGORY_VALIDATION, TASK_TYPE_BACKGROUND_REMOVE
from atelier.tasks.v1.task_pb2 import CreateTask, Task, TaskResult

from meshkit.worker.handlers import CallContext, InputRef, Output, OutputFile, TaskFailed, image_refs
from services.inference.providers.fal_jobs import FalJobs, first_url, settings_of, static_arguments
from services.inference.providers.fal_queue import NAME
from services.inference.providers.results import data_url, size_of

_INPUT = "input_image_paths"
_RESULTS = "result_image_paths"
_AT_ONCE = 4


class FalCutoutHandler:
    """Has an application cut out BACKGROUND_REMOVE tasks' pictures."""

    def __init__(self, jobs: FalJobs) -> None:
        self._jobs = jobs

    def inputs(self, spec: CreateTask, task: Task) -> Sequence[InputRef]:
        """Name the pictures; the task can do without some of them."""
        return image_refs(_INPUT, _sources(spec, task), required=False)

    async def run(self, context: CallContext) -> Output:
        """Cut the pictures out."""
        began = time.monotonic()
        count = len(_sources(context.spec, context.task))
        places = asyncio.Semaphore(_AT_ONCE)
        outcomes: list[OutputFile | TaskFailed] = []

        async def one(index: int) -> OutputFile | TaskFailed:
            async with places:
                try:
                    return await self._cut(context, index)
                except TaskFailed as failure:
                    return failure

        async with asyncio.TaskGroup() as group:
            running = [group.create_task(one(index)) for index in range(count)]
        outcomes = [task.result() for task in running]
        files = tuple(outcome for outcome in outcomes if isinstance(outcome, OutputFile))
        failures = [(index, outcome) for index, outcome in enumerate(outcomes) if isinstance(outcome, TaskFailed)]
        # What may pass is not an outcome: another attempt goes on with what the provider has.
        for _, failure in failures:
            if failure.retryable or not files:
                raise failure
        errors = tuple(_sentence(index, failure) for index, failure in failures)
        result = BackgroundRemovalTaskPublic(result_image_paths=[""] * count)
        return Output(TaskResult(background_remove=result), files, time.monotonic() - began, errors)

    async def _cut(self, context: CallContext, index: int) -> OutputFile:
        name = f"{_INPUT}[{index}]"
        if name in context.refused_inputs:
            raise TaskFailed(context.refused_inputs[name], ERROR_CATEGORY_VALIDATION, retryable=False)
        settings = settings_of(context.spec, context.task).fal_standard
        path, file = context.inputs[name], f"image-{index}.png"
        size = await size_of(path)
        arguments = {**static_arguments(settings), "image_url": await data_url(path), "output_format": "png"}

        async def finish(answer: dict[str, Any]) -> OutputFile:
            await self._jobs.kit.results.picture(NAME, first_url(answer), context.folder / file, size=size)
            return OutputFile(file, "image/png", _RESULTS, index)

        return await self._jobs.ask(
            context, TASK_TYPE_BACKGROUND_REMOVE, settings.fal_app_id, arguments, finish, operation=name
        )


def _sentence(index: int, failure: TaskFailed) -> str:
    name = f"{_INPUT}[{index}]"
    return failure.message if failure.message.startswith(name) else f"{name}: {failure.message}"


def _sources(spec: CreateTask, task: Task) -> Sequence[str]:
    return task.background_remove.input_image_paths or spec.background_remove.input_image_paths
