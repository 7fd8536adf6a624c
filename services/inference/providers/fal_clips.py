"""VIDEO_GENERATION by an application of fal.

Applications make clips of a few lengths (`ATELIER_FAL_CLIP_SECONDS`). The nearest longer one is asked for, and cut to
the length that the task asks for.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from atelier.tasks.v1.enums_pb2 import TASK_TYPE_VIDEO_GENERATION
from atelier.tasks.v1.task_pb2 import CreateTask, Task, TaskResult
from atelier.tasks.v1.video_generation_pb2 import VideoGenerationTaskPublic

from meshkit.worker.handlers import CallContext, InputRef, Output, OutputFile
from services.inference.providers.clips import write_clip
from services.inference.providers.fal_jobs import FalJobs, first_url, settings_of, static_arguments
from services.inference.providers.fal_pictures import config_of
from services.inference.providers.fal_queue import NAME
from services.inference.providers.results import data_url
from services.inference.tasktypes import members

_INPUT = "input"
_RESULT = "video.mp4"
_DEFAULT_SECONDS = 5
_DEFAULT_CFG_SCALE = 0.5


class FalVideoHandler:
    """Has an application make VIDEO_GENERATION tasks' clips."""

    def __init__(self, jobs: FalJobs) -> None:
        self._jobs = jobs

    def inputs(self, spec: CreateTask, task: Task) -> Sequence[InputRef]:
        """Name the first frame."""
        requested = spec.video_generation
        source = task.video_generation.input_image_path or requested.input_image_data or requested.input_image_url
        return [InputRef(_INPUT, source, "image")]

    async def run(self, context: CallContext) -> Output:
        """Make the clip."""
        began = time.monotonic()
        settings = settings_of(context.spec, context.task).fal_standard
        image = await data_url(context.inputs[_INPUT])
        lengths = self._jobs.kit.settings.fal_clip_lengths
        arguments = {
            **static_arguments(settings),
            **video_arguments(context.spec, context.task, image, lengths),
        }

        async def finish(answer: dict[str, Any]) -> Output:
            made = await self._jobs.kit.results.fetch(NAME, first_url(answer), ("video/",))
            await write_clip(NAME, made.data, context.folder / _RESULT, _seconds(context.spec))
            return Output(
                TaskResult(video_generation=VideoGenerationTaskPublic()),
                (OutputFile(_RESULT, "video/mp4", "result_video_path"),),
                time.monotonic() - began,
            )

        return await self._jobs.ask(context, TASK_TYPE_VIDEO_GENERATION, settings.fal_app_id, arguments, finish)


def video_arguments(spec: CreateTask, task: Task, image: str, lengths: Sequence[int]) -> dict[str, Any]:
    """Return what an application that makes clips is given.

    Args:
        spec: The task as accepted.
        task: The task as it stands.
        image: The first frame, as a data URL.
        lengths: Seconds of the clips that applications make, ascending.

    Raises:
        TaskFailed: The clip would be longer than all of them.
    """
    requested = spec.video_generation
    seconds = _seconds(spec)
    fitting = [length for length in lengths if length >= seconds]
    if not fitting:
        raise members.invalid(f"duration_seconds may be {max(lengths)} at most by this provider.")
    arguments: dict[str, Any] = {
        "prompt": requested.prompt,
        "image_url": image,
        "duration": str(fitting[0]),  # as the applications of most makers spell it
        "cfg_scale": requested.cfg_scale if requested.HasField("cfg_scale") else _DEFAULT_CFG_SCALE,
    }
    if requested.negative_prompt:
        arguments["negative_prompt"] = requested.negative_prompt
    if (seed := members.whole(config_of(spec, task), "seed", 0, 2**53)) is not None:
        arguments["seed"] = seed
    return arguments


def _seconds(spec: CreateTask) -> int:
    requested = spec.video_generation
    return requested.duration_seconds if requested.HasField("duration_seconds") else _DEFAULT_SECONDS
