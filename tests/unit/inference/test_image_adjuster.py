import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from atelier.tasks.v1.enums_pb2 import ErrorCategory
from atelier.tasks.v1.image_adjuster_pb2 import CreateImageAdjusterTask, ImageAdjusterTaskPublic
from atelier.tasks.v1.task_pb2 import CreateTask, Task
from PIL import Image, ImageDraw

from meshkit.worker.handlers import Output, TaskCancelled, TaskFailed
from modelkit.vision import Vision
from services.inference.tasktypes.image_adjuster import ImageAdjusterHandler

BACKGROUND = (225, 220, 210)
VISION = Vision(1)
LENT = {"vision": VISION}


def product(width: int = 200, height: int = 100, box: tuple[int, int, int, int] = (80, 30, 120, 80)) -> Image.Image:
    image = Image.new("RGB", (width, height), BACKGROUND)
    ImageDraw.Draw(image).rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill=(180, 40, 50))
    return image


class Context:
    def __init__(self, folder: Path, *, cancelled: bool = False, **fields: Any) -> None:
        self.job_id = "job"
        self.spec = CreateTask(image_adjuster=CreateImageAdjusterTask(**fields))
        stored = ImageAdjusterTaskPublic(input_image_path="x", reference_image_path=fields.get("reference_image"))
        self.task = Task(image_adjuster=stored)
        self.folder = folder
        self.inputs: Mapping[str, Path] = {}
        self.refused_inputs: Mapping[str, str] = {}
        self.steps: list[tuple[int, int]] = []
        self._cancelled = cancelled

    def progress(self, step: int, total: int, preview: bytes | None = None) -> None:
        self.steps.append((step, total))

    def upscaling(self) -> None:
        pass

    def cancelled(self) -> bool:
        return self._cancelled


@pytest.fixture
def adjust(tmp_path: Path) -> Callable[..., Any]:
    """Runs one task over an image; gives the result's image, or the failure."""

    def run(image: Image.Image, reference: Image.Image | None = None, **fields: Any) -> Any:
        context = Context(tmp_path, **fields)
        for name, picture in (("input", image), ("reference", reference)):
            if picture is not None:
                context.inputs = {**context.inputs, name: tmp_path / f"{name}.png"}
                picture.save(context.inputs[name])
        handler = ImageAdjusterHandler()
        lent = {need.name: LENT[need.family] for need in handler.needs(context.spec, context.task)}
        (outcome,) = handler.run([context], lent)
        if not isinstance(outcome, Output):
            return outcome
        assert outcome.files[0].field == "result_image_path"
        assert context.steps == [(1, 3), (2, 3), (3, 3)]
        with Image.open(tmp_path / outcome.files[0].name) as made:
            made.load()
            return made

    return run


def subject_of(image: Image.Image) -> tuple[float, ...]:
    """The margins of the red product, left, top, right, bottom."""
    red = np.asarray(image.convert("RGB")).astype(int)
    mask = (red[..., 0] - red[..., 1]) > 70
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    height, width = mask.shape
    return (
        columns[0] / width,
        rows[0] / height,
        1 - (columns[-1] + 1) / width,
        1 - (rows[-1] + 1) / height,
    )


@pytest.mark.parametrize(
    ("fields", "size"),
    [
        ({"mode": "crop", "aspect_ratio": 1.0}, (100, 100)),
        ({"mode": "pad", "aspect_ratio": 1.0}, (200, 200)),
        ({"mode": "auto", "aspect_ratio": 1.0}, (200, 200)),
        ({"mode": "auto", "aspect_ratio": 1.95}, (195, 100)),
        ({"aspect_ratio": 1.95}, (195, 100)),
        ({"mode": "scale", "aspect_ratio": 1.0, "scaling_proportions": "height"}, (100, 100)),
        ({"mode": "crop", "target_width": 64, "target_height": 80}, (64, 80)),
        ({"mode": "pad", "target_width": 1024, "target_height": 64}, (1024, 64)),
        ({"mode": "scale", "target_width": 77, "target_height": 99}, (77, 99)),
        ({"mode": "auto", "target_width": 201, "target_height": 101, "tolerance": 0.02}, (200, 100)),
        ({"mode": "pad", "margin_bottom": 0.25}, (213, 107)),
        ({"mode": "crop", "margin_bottom": 0.25}, (160, 80)),
    ],
)
def test_the_size_of_each_modes_result(adjust: Any, fields: dict[str, Any], size: tuple[int, int]) -> None:
    assert adjust(product(), **fields).size == size


def test_cropping_position_says_what_stays(adjust: Any) -> None:
    image = product()
    left = adjust(image, mode="crop", aspect_ratio=0.5, cropping_position="left")
    centre = adjust(image, mode="crop", aspect_ratio=0.5)
    assert (np.asarray(left) == BACKGROUND).all()
    assert (np.asarray(centre) != BACKGROUND).any()


def test_resampling_takes_the_named_filter(adjust: Any) -> None:
    fields = {"mode": "pad", "target_width": 400, "target_height": 200}
    nearest = np.asarray(adjust(product(), resampling="nearest", **fields))
    smooth = np.asarray(adjust(product(), **fields))
    assert len(np.unique(nearest.reshape(-1, 3), axis=0)) == 2
    assert len(np.unique(smooth.reshape(-1, 3), axis=0)) > 2


@pytest.mark.parametrize("mode", ["auto", "crop", "pad", "scale"])
def test_margins_are_kept_in_every_mode(adjust: Any, mode: str) -> None:
    wanted = {"margin_left": 0.2, "margin_top": 0.2, "margin_right": 0.2, "margin_bottom": 0.21}
    made = adjust(product(), mode=mode, target_width=600, target_height=300, **wanted)
    assert made.size == (600, 300)
    for have, want in zip(subject_of(made), wanted.values(), strict=True):
        assert have >= want - 0.01


def test_scaling_by_height_matches_the_vertical_margins_exactly(adjust: Any) -> None:
    made = adjust(
        product(),
        mode="scale",
        scaling_proportions="height",
        target_width=200,
        target_height=400,
        margin_top=0.1,
        margin_bottom=0.3,
    )
    assert subject_of(made)[1::2] == pytest.approx((0.1, 0.3), abs=0.01)


def test_margins_are_taken_from_the_reference_and_given_ones_win(adjust: Any) -> None:
    reference = product(100, 100, (20, 10, 80, 60))
    made = adjust(product(), reference, mode="scale", scaling_proportions="height", reference_image="x")
    assert subject_of(made)[1::2] == pytest.approx((0.1, 0.4), abs=0.02)
    made = adjust(product(), reference, mode="scale", scaling_proportions="height", reference_image="x", margin_top=0.3)
    assert subject_of(made)[1::2] == pytest.approx((0.3, 0.4), abs=0.02)


def test_an_image_within_tolerance_is_left_as_it_is(adjust: Any) -> None:
    image = product()
    made = adjust(image, mode="crop", aspect_ratio=2.0, margin_top=0.3)
    assert (np.asarray(made) == np.asarray(image)).all()


def test_transparency_is_kept(adjust: Any) -> None:
    cut = Image.new("RGBA", (60, 40))
    cut.paste((180, 40, 50, 255), (20, 10, 40, 30))
    made = adjust(cut, mode="pad", aspect_ratio=1.0, margin_top=0.4)
    assert made.mode == "RGBA"
    assert made.getpixel((0, 0))[3] == 0


@pytest.mark.parametrize(
    ("image", "fields", "sentence"),
    [
        (Image.new("RGB", (50, 50), (9, 9, 9)), {"mode": "pad", "margin_top": 0.1}, "No subject was found"),
        (product(), {"mode": "crop", "margin_top": 0.5, "margin_bottom": 0.45}, "Cropping alone"),
        (product(), {"mode": "pad", "margin_top": 0.6, "margin_bottom": 0.5}, "no room"),
        (product(), {"mode": "pad"}, "is required"),
        (product(), {"mode": "pad", "target_width": 100}, "together"),
        (product(), {"target_width": 64, "target_height": 64, "aspect_ratio": 1.0}, "excludes"),
    ],
)
def test_what_cannot_be_done_fails_with_a_sentence(
    adjust: Any, image: Image.Image, fields: dict[str, Any], sentence: str
) -> None:
    failure = adjust(image, **fields)
    assert isinstance(failure, TaskFailed)
    assert sentence in failure.message
    assert failure.category == ErrorCategory.ERROR_CATEGORY_VALIDATION
    assert not failure.retryable


def test_a_reference_without_a_subject_fails_and_says_which(adjust: Any) -> None:
    failure = adjust(product(), Image.new("RGB", (30, 30)), mode="pad", reference_image="x")
    assert "reference image" in failure.message


def test_a_cancelled_task_stops_and_the_next_one_runs(tmp_path: Path) -> None:
    product().save(tmp_path / "input.png")
    contexts = [Context(tmp_path, cancelled=cancelled, mode="crop", aspect_ratio=1.0) for cancelled in (True, False)]
    for context in contexts:
        context.inputs = {"input": tmp_path / "input.png"}
    first, second = ImageAdjusterHandler().run(contexts, {})
    assert isinstance(first, TaskCancelled)
    assert isinstance(second, Output)


def test_inputs_are_named_from_the_task_as_it_stands() -> None:
    spec = CreateTask(image_adjuster=CreateImageAdjusterTask(input_image="data:,", reference_image="data:,"))
    task = Task(image_adjuster=ImageAdjusterTaskPublic(input_image_path="a.png", reference_image_path="b.png"))
    handler = ImageAdjusterHandler()
    assert [(ref.name, ref.source) for ref in handler.inputs(spec, task)] == [
        ("input", "a.png"),
        ("reference", "b.png"),
    ]
    assert [ref.source for ref in handler.inputs(spec, Task())] == ["data:,", "data:,"]
    assert handler.batch_key(spec, task) is None


def test_the_networks_are_needed_where_margins_are_measured() -> None:
    handler = ImageAdjusterHandler()
    for fields, needed in (
        ({"aspect_ratio": 1.0}, []),
        ({"margin_top": 0.1}, ["vision"]),
        ({"reference_image": "data:,"}, ["vision"]),
    ):
        spec = CreateTask(image_adjuster=CreateImageAdjusterTask(**fields))
        assert [need.family for need in handler.needs(spec, Task())] == needed


def test_the_handlers_are_imported_without_torch_or_image_libraries() -> None:
    code = (
        "import sys; import services.inference.tasktypes.generation, services.inference.tasktypes.image_adjuster; "
        "print([m for m in ('torch', 'diffusers', 'cv2', 'numpy', 'ncnn') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
