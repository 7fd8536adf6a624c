"""VIDEO_GENERATION: a clip that begins with a picture and moves as a prompt says.

Beside the documented fields, a caller may set these members of `config`; other members of it are ignored:

| member | value |
|---|---|
| `width`, `height` | even whole numbers from 16 to 2048; one alone keeps the picture's aspect |
| `fps` | frames a second, a whole number from 4 to 60 |
| `steps` (or `num_inference_steps`) | whole number from 1 to 1000, within the model's range |
| `seed` | whole number from 0 to 2^53; drawn and stored at the creation where absent |
| `model` | name of a model that the worker serves |
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from atelier.tasks.v1.enums_pb2 import TaskType
from atelier.tasks.v1.providers_pb2 import LocalVideoConfig
from atelier.tasks.v1.task_pb2 import CreateTask, Task, TaskResult
from atelier.tasks.v1.video_generation_pb2 import VideoGenerationTaskPublic

from meshkit.logging import get_logger
from meshkit.worker.handlers import InputRef, Need, Output, OutputFile, TaskCancelled, TaskContext
from modelkit.pictures import open_picture, over_white
from services.inference.tasktypes.failures import one_by_one
from services.inference.tasktypes.members import steered

if TYPE_CHECKING:  # they import OpenCV and torch, which the parent never does
    from PIL import Image

    from modelkit.video import Keyframes, VideoModel

_log = get_logger(__name__)

_INPUT = "input"
_MODEL = "model"
_RESULT = "video.mp4"
_POSTER = "poster.jpg"
_DEFAULT_SECONDS = 5
_DEFAULT_CFG_SCALE = 0.5
_LEAST_SIDE, _MOST_SIDE = 16, 2048
# Longer side of a clip whose size nobody named: larger pictures are reduced to it.
_USUAL_SIDE = 1280
# Writing the frames counts as so many steps beside those of the model.
_WRITING_STEPS = 10


@dataclass(frozen=True, slots=True)
class _ClipSettings:
    """A VIDEO_GENERATION task with its defaults filled in."""

    prompt: str
    negative_prompt: str | None
    seconds: int
    cfg_scale: float
    width: int | None
    height: int | None
    fps: int
    steps: int | None
    seed: int
    model: str | None


class VideoGenerationHandler:
    """Makes VIDEO_GENERATION tasks' clips with the worker's video models."""

    task_type: TaskType.ValueType = TaskType.TASK_TYPE_VIDEO_GENERATION
    families: tuple[str, ...] = ("video",)

    def inputs(self, spec: CreateTask, task: Task) -> Sequence[InputRef]:
        """Name the first frame."""
        requested = spec.video_generation
        source = task.video_generation.input_image_path or requested.input_image_data or requested.input_image_url
        return [InputRef(_INPUT, source, "image")]

    def batch_key(self, spec: CreateTask, task: Task) -> Hashable | None:  # noqa: ARG002 -- the protocol's signature
        """Make clips one by one: each is many pictures by itself."""
        return None

    def needs(self, spec: CreateTask, task: Task) -> Sequence[Need]:
        """Name the model that draws."""
        return (Need(_MODEL, "video", _read(spec, task).model),)

    def run(self, batch: Sequence[TaskContext], lent: Mapping[str, Any]) -> Sequence[Output | Exception]:
        """Make each clip; one that fails does not fail the others."""
        return one_by_one(batch, lambda context: _make(context, lent[_MODEL]))


def handler() -> VideoGenerationHandler:
    """Return the handler of the type."""
    return VideoGenerationHandler()


def _read(spec: CreateTask, task: Task) -> _ClipSettings:
    """Read the parameters from the request, which no update changes, and the current `config`."""
    requested = spec.video_generation
    config: LocalVideoConfig = steered(spec, task, LocalVideoConfig.DESCRIPTOR)
    return _ClipSettings(
        prompt=requested.prompt,
        negative_prompt=requested.negative_prompt if requested.HasField("negative_prompt") else None,
        seconds=requested.duration_seconds if requested.HasField("duration_seconds") else _DEFAULT_SECONDS,
        cfg_scale=requested.cfg_scale if requested.HasField("cfg_scale") else _DEFAULT_CFG_SCALE,
        width=config.width or None,
        height=config.height or None,
        fps=config.fps,
        steps=config.steps or config.num_inference_steps or None,
        seed=config.seed if config.HasField("seed") else _seed_of(task.id),
        model=config.model or None,
    )


def _seed_of(job_id: str) -> int:
    """Return a seed for a task whose `config` lost it: the same on every attempt."""
    return int.from_bytes(hashlib.sha256(job_id.encode()).digest()[:8], "big") >> 11


def _size(parameters: _ClipSettings, picture: tuple[int, int]) -> tuple[int, int]:
    """Return the size of the clip: as asked for, else the picture's, at most 1280 pixels on its longer side."""
    width, height = parameters.width, parameters.height
    aspect = picture[0] / picture[1]
    if width is None and height is None:
        scale = min(1.0, _USUAL_SIDE / max(picture))
        width, height = round(picture[0] * scale), round(picture[1] * scale)
    elif width is None:
        assert height is not None  # the branch above has both absent
        width = round(height * aspect)
    elif height is None:
        height = round(width / aspect)
    return _even(width), _even(height)


def _even(side: int) -> int:
    return min(_MOST_SIDE, max(_LEAST_SIDE, side // 2 * 2))


class _FirstSteps:
    """A task as the model sees it: its steps are the first of all, and the frames are written after them."""

    def __init__(self, context: TaskContext) -> None:
        self._context = context
        self.total = 0

    def progress(self, step: int, total: int, preview: bytes | None = None) -> None:
        self.total = total + _WRITING_STEPS
        self._context.progress(step, self.total, preview)

    def upscaling(self) -> None:
        self._context.upscaling()

    def cancelled(self) -> bool:
        return self._context.cancelled()


def _make(context: TaskContext, model: VideoModel) -> Output:
    from modelkit.video import ClipRequest  # noqa: PLC0415 -- torch, in the child alone

    began = time.monotonic()
    parameters = _read(context.spec, context.task)
    picture = over_white(open_picture(context.inputs[_INPUT]))
    size = _size(parameters, picture.size)
    still = _first_frame(picture, size)
    watched = _FirstSteps(context)
    drawn = model.keyframes(
        ClipRequest(
            prompt=parameters.prompt,
            still=still,
            seconds=parameters.seconds,
            seed=parameters.seed,
            observer=watched,
            negative_prompt=parameters.negative_prompt,
            steps=parameters.steps,
            guidance=parameters.cfg_scale,
        )
    )
    if drawn is None:
        raise TaskCancelled
    _write(context, parameters, still, drawn, watched.total)
    warnings = []
    if drawn.cut_tokens:
        _log.warning("prompt_cut", job_id=context.job_id, tokens=drawn.cut_tokens)
        warnings.append(
            f"The prompt is {drawn.cut_tokens} tokens longer than the model reads: its end had no say in the clip."
        )
    _log.info("clip_made", job_id=context.job_id, seed=parameters.seed, keyframes=len(drawn.frames), fps=parameters.fps)
    return Output(
        TaskResult(video_generation=VideoGenerationTaskPublic(), warnings=warnings),
        (OutputFile(_RESULT, "video/mp4", "result_video_path"), OutputFile(_POSTER, "image/jpeg", None)),
        time.monotonic() - began,
    )


def _first_frame(picture: Image.Image, size: tuple[int, int]) -> Any:
    """Return the picture at the clip's size, cut evenly where its aspect is another, (h, w, 3) RGB."""
    import numpy as np  # noqa: PLC0415 -- in the child alone
    from PIL import Image  # noqa: PLC0415 -- as above

    from modelkit.sizes import cover  # noqa: PLC0415 -- as above

    if picture.size != size:
        picture = picture.resize(size, Image.Resampling.LANCZOS, box=cover(picture.size, size), reducing_gap=3.0)
    return np.asarray(picture)


def _write(context: TaskContext, parameters: _ClipSettings, still: Any, drawn: Keyframes, total: int) -> None:
    from PIL import Image  # noqa: PLC0415 -- in the child alone

    from modelkit.clips import Clip, ClipWriter  # noqa: PLC0415 -- OpenCV and FFmpeg, in the child alone

    context.upscaling()
    clip = Clip(drawn.frames, still, enlarged=drawn.enlarge)
    count = parameters.seconds * parameters.fps
    writer = ClipWriter(context.folder / _RESULT, (still.shape[1], still.shape[0]), parameters.fps)
    try:
        for number, frame in enumerate(clip.frames(count), start=1):
            if context.cancelled():
                raise TaskCancelled
            writer.add(frame)
            context.progress(total - _WRITING_STEPS + _WRITING_STEPS * number // count, total)
    except BaseException:
        writer.abandon()
        raise
    writer.close()
    Image.fromarray(still).save(context.folder / _POSTER, "JPEG", quality=92)
