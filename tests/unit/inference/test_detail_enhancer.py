import io
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from atelier.tasks.v1.detail_enhancer_pb2 import CreateDetailEnhancerTask, DetailEnhancerTaskPublic
from atelier.tasks.v1.enums_pb2 import PROVIDER_TYPE_SARTIQ_ULTIMATE_GARMENT_FIXER, ErrorCategory
from atelier.tasks.v1.task_pb2 import CreateTask, Task
from google.protobuf import json_format
from google.protobuf.struct_pb2 import Struct
from PIL import Image

from meshkit.worker.handlers import Output, TaskCancelled, TaskFailed
from modelkit.vision import Vision
from services.inference.tasktypes.detail_enhancer import DetailEnhancerHandler
from tests.unit.modelkit.drawn import shirt, soft


class Cutter:
    def matte(self, image: Image.Image) -> np.ndarray | None:
        return np.ones((image.height, image.width), np.float32)


LENT = {"vision": Vision(1), "cutout": Cutter()}


class Context:
    def __init__(self, folder: Path, config: Mapping[str, Any], *, label: str = "", cancel_after: int | None = None):
        self.job_id = "job"
        self.spec = CreateTask(detail_enhancer=CreateDetailEnhancerTask(base_image="a", reference_image="b"))
        stored = DetailEnhancerTaskPublic(base_image_path="a.png", reference_image_path="b.png", detail_label=label)
        self.task = Task(detail_enhancer=stored)
        self.task.config.CopyFrom(json_format.ParseDict(dict(config), Struct()))
        self.folder = folder
        self.inputs: Mapping[str, Path] = {"base": folder / "base", "reference": folder / "reference"}
        self.refused_inputs: Mapping[str, str] = {}
        self.steps: list[tuple[int, int]] = []
        self._cancel_after = cancel_after

    def progress(self, step: int, total: int, preview: bytes | None = None) -> None:
        self.steps.append((step, total))

    def upscaling(self) -> None:
        pass

    def cancelled(self) -> bool:
        return self._cancel_after is not None and len(self.steps) >= self._cancel_after


def saved(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


Run = Callable[..., tuple[Any, Context]]


@pytest.fixture
def enhance(tmp_path: Path) -> Run:
    """Runs one task over the bytes of two images; gives the outcome and the attempt."""

    def run(base: bytes | None = None, reference: bytes | None = None, *, label: str = "shirt",
            cancel_after: int | None = None, **config: Any) -> tuple[Any, Context]:  # fmt: skip
        context = Context(tmp_path, config, label=label, cancel_after=cancel_after)
        context.inputs["base"].write_bytes(saved(soft(shirt())) if base is None else base)
        context.inputs["reference"].write_bytes(saved(shirt()) if reference is None else reference)
        (outcome,) = DetailEnhancerHandler().run([context], LENT)
        return outcome, context

    return run


def result_of(outcome: Any, context: Context) -> Image.Image:
    assert isinstance(outcome, Output), outcome
    assert (outcome.files[0].name, outcome.files[0].field) == ("image.png", "result_image_path")
    with Image.open(context.folder / "image.png") as made:
        made.load()
        return made


def test_detail_comes_back(enhance: Run) -> None:
    outcome, context = enhance()
    made = np.asarray(result_of(outcome, context)).astype(float)
    lost, truth = np.asarray(soft(shirt())).astype(float), np.asarray(shirt()).astype(float)
    place = (slice(75, 140), slice(70, 130))
    assert ((made[place] - truth[place]) ** 2).mean() < 0.6 * ((lost[place] - truth[place]) ** 2).mean()
    assert not outcome.result.detail_enhancer.fallback_used


def test_the_best_attempt_is_kept_where_none_passes(enhance: Run) -> None:
    outcome, context = enhance(ssim_threshold=1, max_retries=1, save_debug_images=True)
    result_of(outcome, context)
    assert outcome.result.detail_enhancer.fallback_used
    assert [file.name for file in outcome.files[1:]] == ["debug-tile-1-attempt-1.png", "debug-tile-1-attempt-2.png"]
    assert all(file.field is None and (context.folder / file.name).is_file() for file in outcome.files[1:])


def test_config_steers_the_box(enhance: Run) -> None:
    changed = []
    for config in ({"split_threshold": 1.0, "save_debug_images": True}, {"save_debug_images": True}):
        outcome, _ = enhance(**config)
        changed.append(len(outcome.files) - 1)
    assert changed == [2, 1]


def test_a_wrong_member_of_config_is_named(enhance: Run) -> None:
    outcome, _ = enhance(split_threshold=0.5)
    assert isinstance(outcome, TaskFailed)
    assert (outcome.category, outcome.retryable) == (ErrorCategory.ERROR_CATEGORY_VALIDATION, False)
    assert "config.split_threshold" in outcome.message


def test_progress_rises_to_the_end_and_a_cancelled_task_stops(enhance: Run) -> None:
    _, context = enhance()
    assert context.steps == sorted(context.steps)
    assert (context.steps[0], context.steps[-1]) == ((0, 100), (100, 100))
    outcome, context = enhance(cancel_after=2)
    assert isinstance(outcome, TaskCancelled)
    assert len(context.steps) == 2


def rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(shirt(), "JPEG", exif=exif)


@pytest.mark.parametrize(
    ("content", "size"),
    [
        (saved(Image.fromarray(np.arange(96 * 96, dtype=np.uint16).reshape(96, 96))), (96, 96)),
        (saved(shirt().convert("CMYK"), "JPEG"), (200, 250)),
        (saved(shirt().convert("RGBA")), (200, 250)),
        (rotated(), (250, 200)),
        (saved(shirt().resize((1, 1))), (1, 1)),
        (saved(shirt(), "GIF", save_all=True, append_images=[shirt().rotate(90)]), (200, 250)),
    ],
    ids=["16-bit", "cmyk", "rgba", "rotated", "one pixel", "animated"],
)
def test_pictures_of_all_kinds_are_taken(enhance: Run, content: bytes, size: tuple[int, int]) -> None:
    assert result_of(*enhance(content)).size == size
    assert result_of(*enhance(None, content)).size == (200, 250)


@pytest.mark.parametrize("content", [b"", b"no picture", saved(shirt())[:2000]])
def test_what_is_no_picture_is_refused(enhance: Run, content: bytes) -> None:
    for outcome, _ in (enhance(content), enhance(None, content)):
        assert isinstance(outcome, TaskFailed)
        assert (outcome.category, outcome.retryable) == (ErrorCategory.ERROR_CATEGORY_VALIDATION, False)


def test_networks_and_inputs_are_asked_for(tmp_path: Path) -> None:
    handler = DetailEnhancerHandler()
    context = Context(tmp_path, {"dists_threshold": 0.2})
    needs = [(need.name, need.family, need.model) for need in handler.needs(context.spec, context.task)]
    assert needs == [("vision", "vision", None), ("cutout", "cutout", "u2netp"), ("dists", "likeness", "dists")]
    assert {family for _, family, _ in needs} <= set(handler.families)
    assert [ref.source for ref in handler.inputs(context.spec, context.task)] == ["a.png", "b.png"]
    assert [ref.source for ref in handler.inputs(context.spec, Task())] == ["a", "b"]


def test_the_parent_imports_no_networks() -> None:
    code = (
        "import sys, services.inference.tasktypes.detail_enhancer;"
        "sys.exit(bool({'torch', 'cv2', 'ncnn', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_settings_of_the_pipeline_hold_where_it_is_the_provider(tmp_path: Path) -> None:
    context = Context(tmp_path, {"split_threshold": 0.5}, label="shirt")
    context.task.provider_type = PROVIDER_TYPE_SARTIQ_ULTIMATE_GARMENT_FIXER
    settings = context.task.provider_config.sartiq_ultimate_garment_fixer
    settings.split_threshold, settings.save_debug_images = 1.0, True
    context.inputs["base"].write_bytes(saved(soft(shirt())))
    context.inputs["reference"].write_bytes(saved(shirt()))
    (outcome,) = DetailEnhancerHandler().run([context], LENT)
    assert isinstance(outcome, Output), outcome
    result_of(outcome, context)
    drafts = [file.name for file in outcome.files if file.field is None]
    assert drafts == ["debug-tile-1-attempt-1.png", "debug-tile-2-attempt-1.png"]
