import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from atelier.tasks.v1.enums_pb2 import ErrorCategory
from atelier.tasks.v1.refine_pb2 import CreateRefineTask, RefineTaskPublic
from atelier.tasks.v1.task_pb2 import CreateTask, Task
from PIL import Image

from meshkit.worker.handlers import Output, TaskCancelled, TaskFailed
from modelkit.card import ModelCard
from modelkit.requests import BatchSettings, ImageRequest, Picture
from modelkit.upscale import Upscaler
from modelkit.vision import Vision
from services.inference.targets import target_size
from services.inference.tasktypes.refine import RefineHandler

DATA = Path(__file__).parents[1] / "modelkit" / "data"
UPSCALER, VISION = Upscaler(), Vision(1)


class GrainModel:
    """Stands in for a model: draws grain over what it is given, and takes note of what it is asked."""

    card = ModelCard(name="grain", architecture="flux", native_size=64)

    def __init__(self) -> None:
        self.asked: list[tuple[BatchSettings, Sequence[ImageRequest]]] = []

    def generate(
        self,
        settings: BatchSettings,
        requests: Sequence[ImageRequest],
        upscaler: Upscaler,
    ) -> list[Picture | None]:
        self.asked.append((settings, requests))
        made: list[Picture | None] = []
        for request in requests:
            assert request.reference is not None
            request.observer.progress(1, 1)
            grain = np.random.default_rng(request.seed).normal(0, 12, (settings.height, settings.width, 1))
            pixels = (np.asarray(request.reference) + grain).clip(0, 255).astype(np.uint8)
            made.append(None if request.observer.cancelled() else Picture(Image.fromarray(pixels), 0))
        return made


class Context:
    def __init__(self, folder: Path, spec: CreateTask) -> None:
        self.job_id = "job"
        self.spec = spec
        self.task = Task(refine=RefineTaskPublic(base_image_path="x"))
        self.folder = folder
        self.inputs: Mapping[str, Path] = {}
        self.refused_inputs: Mapping[str, str] = {}
        self.steps: list[tuple[int, int]] = []
        self.cancel_after: int | None = None

    def progress(self, step: int, total: int, preview: bytes | None = None) -> None:
        self.steps.append((step, total))

    def upscaling(self) -> None:
        pass

    def cancelled(self) -> bool:
        return self.cancel_after is not None and len(self.steps) >= self.cancel_after


@pytest.fixture
def refine(tmp_path: Path) -> Callable[..., Any]:
    """Runs one task over a picture; gives the result's picture, or the failure."""

    def run(
        image: Image.Image,
        *,
        model: GrainModel | None = None,
        cancel_after: int | None = None,
        form: str = "PNG",
        **fields: Any,
    ) -> Any:
        spec = CreateTask(refine=CreateRefineTask(**{"face_detail_enabled": False, **fields}))
        context = Context(tmp_path, spec)
        context.cancel_after = cancel_after
        file = tmp_path / "base"
        image.save(file, form)
        context.inputs = {"base": file}
        handler = RefineHandler()
        stock = {"upscaler": UPSCALER, "vision": VISION, "model": model}
        lent = {need.name: stock[need.name] for need in handler.needs(spec, context.task)}
        [outcome] = handler.run([context], lent)
        if not isinstance(outcome, Output):
            return outcome
        assert [one.field for one in outcome.files] == ["result_image_path"]
        assert context.steps == sorted(context.steps)
        assert context.steps[-1] == (1000, 1000)
        with Image.open(tmp_path / outcome.files[0].name) as made:
            made.load()
            return made

    return run


def photo() -> Image.Image:
    return Image.open(DATA / "photo-astronaut.png").convert("RGB")


def small(width: int = 24, height: int = 16) -> Image.Image:
    return photo().resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(
    ("fields", "size"),
    [
        ({"upscale_factor": 2}, (48, 32)),
        ({"upscale_factor": 4}, (96, 64)),
        ({"upscale_factor": 8}, (192, 128)),
        ({"upscale_factor": 1}, (24, 16)),
        ({"upscale_factor": 1.55}, (37, 25)),
        ({"target_width": 100}, (100, 67)),
        ({"target_height": 40}, (60, 40)),
        ({"target_width": 50, "target_height": 80}, (50, 80)),
        ({"target_width": 16, "target_height": 16}, (16, 16)),
        ({"upscale_enabled": False}, (24, 16)),
        ({"upscale_enabled": False, "upscale_factor": 2}, (24, 16)),
    ],
)
def test_the_result_has_exactly_the_size_asked_for(
    refine: Callable[..., Any], fields: dict[str, Any], size: tuple[int, int]
) -> None:
    assert refine(small(), **fields).size == size


def test_without_anything_to_do_the_picture_stays_as_it_is(refine: Callable[..., Any]) -> None:
    assert refine(small(), upscale_enabled=False).tobytes() == small().tobytes()


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"upscale_factor": 16}, "upscale_factor"),
        ({"target_width": 8000}, "target_width"),
        ({}, "required"),
        ({"upscale_factor": 2, "target_width": 64}, "excludes"),
    ],
)
def test_what_cannot_be_made_is_the_callers_fault(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(TaskFailed, match=named) as failed:
        target_size((600, 900), CreateRefineTask(**fields))
    assert (failed.value.category, failed.value.retryable) == (ErrorCategory.ERROR_CATEGORY_VALIDATION, False)


def test_a_result_above_8192_pixels_fails_for_good(refine: Callable[..., Any]) -> None:
    failure = refine(Image.new("RGB", (8192, 2)), upscale_factor=2)
    assert isinstance(failure, TaskFailed)
    assert (failure.category, failure.retryable) == (ErrorCategory.ERROR_CATEGORY_VALIDATION, False)
    assert "upscale_factor" in failure.message


def test_a_picture_that_is_none_fails_for_good(tmp_path: Path) -> None:
    (tmp_path / "base").write_bytes(b"MZ" + bytes(64))
    context = Context(tmp_path, CreateTask(refine=CreateRefineTask(upscale_factor=2)))
    context.inputs = {"base": tmp_path / "base"}
    [failure] = RefineHandler().run([context], {"upscaler": UPSCALER})
    assert isinstance(failure, TaskFailed)
    assert (failure.category, failure.retryable) == (ErrorCategory.ERROR_CATEGORY_VALIDATION, False)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "L", "I;16", "P", "1", "CMYK"])
def test_pictures_of_all_modes_are_enlarged(refine: Callable[..., Any], mode: str) -> None:
    image = small().convert("RGBA" if mode == "LA" else mode)
    if mode in ("RGBA", "LA"):
        image.putalpha(Image.linear_gradient("L").resize(image.size))
        image = image.convert(mode)
    made = refine(image, upscale_factor=2, form="TIFF" if mode == "CMYK" else "PNG")
    assert (made.size, made.mode) == ((48, 32), "RGBA" if mode in ("RGBA", "LA") else "RGB")


def test_one_pixel_is_enlarged(refine: Callable[..., Any]) -> None:
    assert refine(Image.new("RGB", (1, 1), (200, 90, 40)), upscale_factor=8).size == (8, 8)


def test_a_jpeg_is_cleaned_before_it_is_enlarged(refine: Callable[..., Any]) -> None:
    truth = photo()
    half = truth.resize((96, 96), Image.Resampling.BICUBIC)

    def error(made: Image.Image) -> float:
        return float(((np.asarray(made).astype(float) - np.asarray(truth)) ** 2).mean())

    cleaned = error(refine(half, upscale_factor=2, form="JPEG"))
    file = io.BytesIO()
    half.save(file, "JPEG")
    bicubic = error(Image.open(file).resize(truth.size, Image.Resampling.BICUBIC))
    assert cleaned < 0.9 * bicubic


def test_only_repainting_takes_a_model_and_the_one_that_is_named() -> None:
    def needs(config: dict[str, Any] | None = None, **fields: Any) -> list[tuple[str, str | None]]:
        spec = CreateTask(refine=CreateRefineTask(**fields))
        spec.config.update(config or {})
        return [(need.family, need.model) for need in RefineHandler().needs(spec, Task())]

    faces = ("vision", None)
    assert needs() == [("upscaler", None), faces]
    assert needs(face_detail_enabled=False) == [("upscaler", None)]
    assert needs(face_detail_denoise=0) == [("upscaler", None)]
    assert needs({"model": "big"}, upscale_denoise=0.3) == [("upscaler", None), faces, ("flux", "big")]
    assert needs(upscale_denoise=0.3, upscale_enabled=False) == [("upscaler", None), faces]
    with pytest.raises(TaskFailed, match=r"config\.model"):
        needs({"model": 7}, upscale_denoise=0.3)


def test_repainting_keeps_to_the_prompt_the_steps_the_seed_and_the_transparency(refine: Callable[..., Any]) -> None:
    image = small(40, 30)
    image.putalpha(Image.linear_gradient("L").resize(image.size))

    def repainted(seed: int) -> tuple[GrainModel, Image.Image]:
        model = GrainModel()
        fields = {"upscale_prompt": "linen", "upscale_steps": 7, "upscale_denoise": 0.25, "upscale_seed": seed}
        return model, refine(image, model=model, upscale_factor=4, **fields)

    model, made = repainted(5)
    settings, requests = model.asked[0]
    assert (settings.steps, settings.strength, settings.width) == (7, 0.75, 64)
    assert {request.prompt for request in requests} == {"linen"}
    assert made.size == (160, 120)
    plain = refine(image, upscale_factor=4)
    assert made.getchannel("A").tobytes() == plain.getchannel("A").tobytes()
    assert made.tobytes() == repainted(5)[1].tobytes()
    assert made.tobytes() != repainted(6)[1].tobytes() != plain.tobytes()


@pytest.mark.parametrize("cancel_after", [1, 2, 4])
def test_a_cancelled_task_stops_at_its_next_step(refine: Callable[..., Any], cancel_after: int) -> None:
    fields = {"upscale_factor": 4, "upscale_denoise": 0.5}
    outcome = refine(small(64, 64), model=GrainModel(), cancel_after=cancel_after, **fields)
    assert isinstance(outcome, TaskCancelled)


def test_faces_are_restored_by_their_own_share_and_seed_and_the_rest_stays(refine: Callable[..., Any]) -> None:
    with Image.open(DATA / "astronaut.jpg") as file:
        image = file.convert("RGB")

    def detailed(**fields: Any) -> Any:
        return np.asarray(refine(image, upscale_enabled=False, face_detail_enabled=True, **fields)).astype(int)

    before = np.asarray(image).astype(int)
    first = detailed(face_detail_seed=1, face_detail_denoise=0.4)
    changed = np.abs(first - before).max(2) > 0
    assert 0.005 < changed.mean() < 0.3
    assert np.abs(first - detailed(face_detail_seed=1, face_detail_denoise=0.4)).max() == 0
    assert np.abs(first - detailed(face_detail_seed=2, face_detail_denoise=0.4)).max() > 0
    full = detailed(face_detail_seed=1, face_detail_denoise=1.0)
    assert np.abs(full - before).sum() > 1.5 * np.abs(first - before).sum()


def test_a_picture_without_a_face_is_a_success_and_stays_as_it_is(refine: Callable[..., Any]) -> None:
    image = Image.open(DATA / "photo-coffee.png").convert("RGB")
    assert refine(image, upscale_enabled=False, face_detail_enabled=True).tobytes() == image.tobytes()
