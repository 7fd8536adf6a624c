from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from atelier.tasks.v1.enums_pb2 import ErrorCategory
from atelier.tasks.v1.task_pb2 import CreateTask, Task
from atelier.tasks.v1.video_generation_pb2 import CreateVideoGenerationTask, VideoGenerationTaskPublic
from PIL import Image, ImageDraw

from meshkit.worker.handlers import Need, Output, TaskCancelled, TaskFailed
from modelkit.video import ClipRequest, Keyframes
from services.inference.tasktypes.video_generation import VideoGenerationHandler


class Model:
    """A model that moves the picture to the right, two steps long."""

    def __init__(self, *, cut_tokens: int = 0) -> None:
        self.asked: list[ClipRequest] = []
        self._cut = cut_tokens

    def keyframes(self, request: ClipRequest) -> Keyframes | None:
        self.asked.append(request)
        for step in (1, 2):
            request.observer.progress(step, 2)
            if request.observer.cancelled():
                return None
        frames = [np.roll(request.still, 2 * index, axis=1) for index in range(3)]
        return Keyframes(frames, enlarge=False, cut_tokens=self._cut)


class Context:
    def __init__(self, folder: Path, config: dict[str, Any], cancel_after: int | None, **fields: Any) -> None:
        self.job_id = "job"
        self.spec = CreateTask(video_generation=CreateVideoGenerationTask(prompt="it turns", **fields))
        self.task = Task(id="1", video_generation=VideoGenerationTaskPublic(input_image_path="x"))
        self.task.config.update(config)
        self.folder = folder
        self.inputs: Mapping[str, Path] = {"input": folder / "input.png"}
        self.steps: list[tuple[int, int]] = []
        self.phases: list[str] = []
        self.refused_inputs: Mapping[str, str] = {}
        self._cancel_after = cancel_after

    def progress(self, step: int, total: int, preview: bytes | None = None) -> None:
        self.steps.append((step, total))

    def upscaling(self) -> None:
        self.phases.append("upscaling")

    def cancelled(self) -> bool:
        return self._cancel_after is not None and len(self.steps) >= self._cancel_after


def picture(size: tuple[int, int] = (60, 40)) -> Image.Image:
    image = Image.new("RGB", size, (240, 240, 235))
    ImageDraw.Draw(image).rectangle((size[0] // 4, size[1] // 4, size[0] // 2, size[1] // 2), fill=(180, 40, 50))
    return image


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Any]:
    """Runs one task; gives its outcome and context."""

    def run(
        image: Image.Image | None = None,
        *,
        config: dict[str, Any] | None = None,
        model: Model | None = None,
        cancel_after: int | None = None,
        **fields: Any,
    ) -> tuple[Any, Context]:
        context = Context(tmp_path, config or {}, cancel_after, **{"duration_seconds": 1, **fields})
        (image or picture()).save(context.inputs["input"])
        (outcome,) = VideoGenerationHandler().run([context], {"model": model or Model()})
        return outcome, context

    return run


def decoded(context: Context) -> tuple[Any, list[Any]]:
    with av.open(str(context.folder / "video.mp4")) as container:
        stream = container.streams.video[0]
        return stream, [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]


def psnr(one: Any, other: Any) -> float:
    return float(10 * np.log10(255**2 / np.mean((np.asarray(one, np.float64) - np.asarray(other, np.float64)) ** 2)))


def test_a_clip_begins_with_its_picture_and_has_every_frame(make: Callable[..., Any]) -> None:
    image = picture()
    outcome, context = make(image)
    assert isinstance(outcome, Output)
    assert [(one.name, one.content_type, one.field) for one in outcome.files] == [
        ("video.mp4", "video/mp4", "result_video_path"),
        ("poster.jpg", "image/jpeg", None),
    ]
    stream, frames = decoded(context)
    assert (len(frames), stream.average_rate, frames[0].shape) == (24, 24, (40, 60, 3))
    assert psnr(frames[0], image) > 30
    assert psnr(frames[-1], image) < 25
    with Image.open(context.folder / "poster.jpg") as poster:
        assert psnr(poster, image) > 30


def test_progress_only_grows_and_ends_whole(make: Callable[..., Any]) -> None:
    _, context = make()
    steps = [step for step, _ in context.steps]
    assert {total for _, total in context.steps} == {12}
    assert steps == sorted(steps)
    assert steps[-1] == 12
    assert context.phases == ["upscaling"]


@pytest.mark.parametrize(("seconds", "fps", "frames"), [(2, 12, 24), (1, 60, 60), (3, 4, 12)])
def test_duration_and_rate_give_the_frames(make: Callable[..., Any], seconds: int, fps: int, frames: int) -> None:
    model = Model()
    _, context = make(config={"fps": fps}, duration_seconds=seconds, model=model)
    stream, found = decoded(context)
    assert (len(found), stream.average_rate) == (frames, fps)
    assert model.asked[0].seconds == seconds


@pytest.mark.parametrize(
    ("given", "config", "size"),
    [
        ((60, 40), {"width": 96, "height": 48}, (96, 48)),
        ((60, 40), {"width": 96}, (96, 64)),
        ((60, 40), {"height": 80}, (120, 80)),
        ((61, 41), {}, (60, 40)),
        ((2600, 1300), {}, (1280, 640)),
        ((1, 1), {}, (16, 16)),
        ((30, 3000), {"width": 16}, (16, 1600)),
    ],
)
def test_the_size_is_what_was_asked_for_else_the_pictures(
    make: Callable[..., Any], given: tuple[int, int], config: dict[str, Any], size: tuple[int, int]
) -> None:
    _, context = make(picture(given), config={"fps": 4, **config})
    _, frames = decoded(context)
    assert (frames[0].shape[1], frames[0].shape[0]) == size


def test_the_models_request_holds_what_was_asked(make: Callable[..., Any]) -> None:
    model = Model()
    config = {"seed": 5, "steps": 7, "fps": 4}
    make(config=config, model=model, negative_prompt="blur", cfg_scale=1.5)
    [asked] = model.asked
    assert (asked.prompt, asked.negative_prompt, asked.seed, asked.steps, asked.guidance) == (
        "it turns",
        "blur",
        5,
        7,
        1.5,
    )


def test_a_task_whose_config_lost_its_seed_has_the_same_on_every_attempt(make: Callable[..., Any]) -> None:
    model = Model()
    make(config={"fps": 4}, model=model)
    make(config={"fps": 4}, model=model)
    assert model.asked[0].seed == model.asked[1].seed < 2**53
    assert model.asked[0].guidance == 0.5


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"width": 14}, "config.width: must be greater than or equal to 16 and less than or equal to 2048"),
        ({"width": 33}, "config.width: must be even"),
        ({"height": 4096}, "config.height: must be greater than or equal to 16 and less than or equal to 2048"),
        ({"height": "64"}, "config.height: Input should be a valid number"),
        ({"fps": 3}, "config.fps: must be greater than or equal to 4 and less than or equal to 60"),
        ({"fps": 12.5}, "config.fps: Input should be a valid integer"),
        ({"steps": 0}, "config.steps: must be greater than or equal to 1"),
        ({"num_inference_steps": 0}, "config.num_inference_steps: must be greater than or equal to 1"),
        ({"seed": -1}, "config.seed: must be greater than or equal to 0"),
        ({"model": 3}, "config.model: Input should be a valid string"),
    ],
)
def test_bad_settings_are_the_callers_fault(make: Callable[..., Any], config: dict[str, Any], message: str) -> None:
    outcome, _ = make(config=config)
    assert isinstance(outcome, TaskFailed)
    assert message in outcome.message
    assert (outcome.category, outcome.retryable) == (ErrorCategory.ERROR_CATEGORY_VALIDATION, False)


def test_a_file_that_is_no_picture_is_the_callers_fault(tmp_path: Path) -> None:
    context = Context(tmp_path, {}, None)
    context.inputs["input"].write_bytes(b"no picture")
    (outcome,) = VideoGenerationHandler().run([context], {"model": Model()})
    assert isinstance(outcome, TaskFailed)
    assert outcome.category == ErrorCategory.ERROR_CATEGORY_VALIDATION


def test_transparent_pictures_lie_on_white(make: Callable[..., Any]) -> None:
    image = picture().convert("RGBA")
    image.putalpha(0)
    _, context = make(image)
    _, frames = decoded(context)
    assert frames[0].min() > 245


@pytest.mark.parametrize("after", [0, 1, 2, 5])
def test_a_cancelled_task_stops_at_the_next_step_or_frame(make: Callable[..., Any], after: int) -> None:
    outcome, context = make(cancel_after=after)
    assert isinstance(outcome, TaskCancelled)
    assert len(context.steps) <= max(after, 1)


def test_a_prompt_that_was_cut_warns(make: Callable[..., Any]) -> None:
    outcome, _ = make(model=Model(cut_tokens=3))
    assert "3 tokens longer" in outcome.result.warnings[0]


def test_it_needs_a_video_model_by_name_and_its_picture() -> None:
    spec = CreateTask(video_generation=CreateVideoGenerationTask(prompt="x", input_image_url="a/b.png"))
    handler = VideoGenerationHandler()
    assert handler.needs(spec, Task()) == (Need("model", "video"),)
    spec.config.update({"model": "other"})
    assert handler.needs(spec, Task()) == (Need("model", "video", "other"),)
    [ref] = handler.inputs(spec, Task())
    assert (ref.name, ref.source, ref.kind) == ("input", "a/b.png", "image")
    assert handler.batch_key(spec, Task()) is None
