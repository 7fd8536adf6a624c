import io
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from atelier.tasks.v1.enums_pb2 import PROVIDER_TYPE_SARTIQ_ULTIMATE_FACE_FIXER, ErrorCategory
from atelier.tasks.v1.face_enhancer_pb2 import CreateFaceEnhancerTask, FaceEnhancerTaskPublic
from atelier.tasks.v1.task_pb2 import CreateTask, Task
from google.protobuf import json_format
from google.protobuf.struct_pb2 import Struct
from PIL import Image, ImageFilter

from meshkit.worker.handlers import Output, TaskCancelled, TaskFailed
from modelkit.vision import Face
from services.inference.tasktypes.face_enhancer import FaceEnhancerHandler

PHOTO = Path(__file__).parents[1] / "modelkit" / "data" / "astronaut.jpg"


class Finder:
    """Finds one face in the middle of any picture that is large enough for one."""

    def faces(self, image: Image.Image) -> Sequence[Face]:
        width, height = image.size
        side = min(width, height) / 2
        left, top = (width - side) / 2, (height - side) / 2
        return [Face((left, top, left + side, top + side), 0.9)] if side >= 4 else []


class Sharpener:
    def __init__(self, amount: int = 150) -> None:
        self.amount = amount

    def restore(self, image: Image.Image, step: Callable[[int, int], None] | None = None) -> Image.Image:
        for tile in range(2):
            if step is not None:
                step(tile + 1, 2)
        large = image.resize((image.width * 4, image.height * 4), Image.Resampling.BICUBIC)
        return large.filter(ImageFilter.UnsharpMask(8, self.amount, 0))


class Network:
    def distance(self, first: np.ndarray, second: np.ndarray) -> float:
        return float(np.abs(first.astype(float) - second).mean() / 255)


class Context:
    def __init__(self, folder: Path, config: Mapping[str, Any], *, cancel_after: int | None = None) -> None:
        self.job_id = "job"
        self.spec = CreateTask(face_enhancer=CreateFaceEnhancerTask(input_image="x.png"))
        self.task = Task(face_enhancer=FaceEnhancerTaskPublic(input_image_path="x.png"))
        self.task.config.CopyFrom(json_format.ParseDict(dict(config), Struct()))
        self.folder = folder
        self.inputs: Mapping[str, Path] = {"input": folder / "input"}
        self.refused_inputs: Mapping[str, str] = {}
        self.steps: list[tuple[int, int]] = []
        self._cancel_after = cancel_after

    def progress(self, step: int, total: int, preview: bytes | None = None) -> None:
        self.steps.append((step, total))

    def upscaling(self) -> None:
        pass

    def cancelled(self) -> bool:
        return self._cancel_after is not None and len(self.steps) >= self._cancel_after


Run = Callable[..., tuple[Any, Context]]


@pytest.fixture
def enhance(tmp_path: Path) -> Run:
    """Runs one task over the bytes of an image; gives the outcome and the attempt."""

    def run(image: Image.Image | bytes, sharpener: Sharpener | None = None, *, cancel_after: int | None = None,
            **config: Any) -> tuple[Any, Context]:  # fmt: skip
        context = Context(tmp_path, config, cancel_after=cancel_after)
        if isinstance(image, bytes):
            context.inputs["input"].write_bytes(image)
        else:
            image.save(context.inputs["input"], "PNG")
        lent = {"vision": Finder(), "upscaler": sharpener or Sharpener(), "lpips": Network(), "dists": Network()}
        (outcome,) = FaceEnhancerHandler().run([context], lent)
        return outcome, context

    return run


def photo(side: int = 96) -> Image.Image:
    with Image.open(PHOTO) as image:
        return image.convert("RGB").resize((side, side))


def result_of(outcome: Any, context: Context) -> Image.Image:
    assert isinstance(outcome, Output), outcome
    assert (outcome.files[0].name, outcome.files[0].field) == ("image.png", "result_image_path")
    with Image.open(context.folder / "image.png") as made:
        made.load()
        return made


def test_a_face_is_restored_and_scored(enhance: Run) -> None:
    outcome, context = enhance(photo())
    made = result_of(outcome, context)
    changed = (np.asarray(made) != np.asarray(photo())).any(-1)
    assert changed[30:66, 30:66].mean() > 0.3
    assert not changed[:10].any()
    result = outcome.result.face_enhancer
    assert (result.face_detected, result.attempts_used, result.fallback_used) == (True, 1, False)
    assert 0.7 <= result.final_ssim_score < 1
    assert not result.HasField("final_lpips_score")
    assert not result.HasField("final_dists_score")


def test_a_picture_without_a_face_is_its_own_result(enhance: Run) -> None:
    image = photo(6)
    outcome, context = enhance(image)
    assert result_of(outcome, context).tobytes() == image.tobytes()
    result = outcome.result.face_enhancer
    assert (result.face_detected, result.attempts_used, result.fallback_used) == (False, 0, False)
    assert not any(result.HasField(f"final_{name}_score") for name in ("ssim", "lpips", "dists"))


def test_a_check_that_is_off_has_no_score(enhance: Run) -> None:
    outcome, _ = enhance(photo(), ssim_threshold=0, lpips_threshold=0.5, dists_threshold=0.4)
    result = outcome.result.face_enhancer
    assert not result.HasField("final_ssim_score")
    assert 0 < result.final_lpips_score < 0.5
    assert result.final_dists_score == result.final_lpips_score


def test_the_best_attempt_is_kept_where_none_passes(enhance: Run) -> None:
    outcome, context = enhance(photo(), Sharpener(600), ssim_threshold=1, max_retries=2)
    result_of(outcome, context)
    result = outcome.result.face_enhancer
    assert (result.attempts_used, result.fallback_used) == (3, True)
    assert result.final_ssim_score < 1


def test_no_retries_are_one_attempt(enhance: Run) -> None:
    outcome, _ = enhance(photo(), Sharpener(600), ssim_threshold=1, max_retries=0)
    assert outcome.result.face_enhancer.attempts_used == 1


def test_debug_images_are_files_of_the_attempt(enhance: Run) -> None:
    outcome, context = enhance(photo(), Sharpener(600), ssim_threshold=1, max_retries=1, save_debug_images=True)
    drafts = [file for file in outcome.files if file.field is None]
    assert [file.name for file in drafts] == ["debug-face-1-attempt-1.png", "debug-face-1-attempt-2.png"]
    for draft in drafts:
        with Image.open(context.folder / draft.name) as image:
            assert image.size == (144, 72)  # the original beside the attempt
    outcome, _ = enhance(photo())
    assert len(outcome.files) == 1


def test_the_margin_around_a_face_is_settable(enhance: Run) -> None:
    changed = []
    for share in (0.0, 1.0):
        outcome, context = enhance(photo(), expand_percent=share)
        changed.append((np.asarray(result_of(outcome, context)) != np.asarray(photo())).any(-1).sum())
    assert changed[1] > 2 * changed[0]


def test_the_same_task_has_the_same_result(enhance: Run) -> None:
    first, second = (result_of(*enhance(photo())).tobytes() for _ in range(2))
    assert first == second


def test_a_wrong_member_of_config_is_named(enhance: Run) -> None:
    outcome, _ = enhance(photo(), max_retries=99)
    assert isinstance(outcome, TaskFailed)
    assert outcome.category == ErrorCategory.ERROR_CATEGORY_VALIDATION
    assert not outcome.retryable
    assert "config.max_retries" in outcome.message


def test_settings_of_the_pipeline_hold_where_it_is_the_provider(tmp_path: Path) -> None:
    context = Context(tmp_path, {"max_retries": 99, "lpips_threshold": 0.1})
    context.task.provider_type = PROVIDER_TYPE_SARTIQ_ULTIMATE_FACE_FIXER
    context.task.provider_config.sartiq_ultimate_face_fixer.ssim_threshold = 1
    context.task.provider_config.sartiq_ultimate_face_fixer.max_retries = 1
    photo().save(context.inputs["input"], "PNG")
    needs = FaceEnhancerHandler().needs(context.spec, context.task)
    assert [need.family for need in needs] == ["vision", "upscaler"]
    (outcome,) = FaceEnhancerHandler().run([context], {"vision": Finder(), "upscaler": Sharpener(600)})
    assert isinstance(outcome, Output), outcome
    assert outcome.result.face_enhancer.attempts_used == 2
    assert outcome.result.face_enhancer.fallback_used


def test_progress_rises_to_the_end(enhance: Run) -> None:
    _, context = enhance(photo())
    assert context.steps == sorted(context.steps)
    assert (context.steps[0], context.steps[-1]) == ((0, 100), (100, 100))


def test_a_cancelled_task_stops_between_two_tiles(enhance: Run) -> None:
    outcome, context = enhance(photo(), cancel_after=2)
    assert isinstance(outcome, TaskCancelled)
    assert len(context.steps) == 2
    assert not (context.folder / "image.png").exists()


def saved(image: Image.Image, form: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(photo().resize((120, 80)), "JPEG", exif=exif)


def transparent() -> bytes:
    image = photo()
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return saved(image, "PNG")


@pytest.mark.parametrize(
    ("content", "size", "mode"),
    [
        (transparent(), (96, 96), "RGBA"),
        (saved(Image.fromarray(np.arange(96 * 96, dtype=np.uint16).reshape(96, 96)), "PNG"), (96, 96), "RGB"),
        (saved(photo().convert("CMYK"), "JPEG"), (96, 96), "RGB"),
        (saved(photo().convert("P"), "PNG"), (96, 96), "RGB"),
        (rotated(), (80, 120), "RGB"),
        (saved(photo(1), "PNG"), (1, 1), "RGB"),
        (saved(photo(), "GIF", save_all=True, append_images=[photo().rotate(90)]), (96, 96), "RGB"),
        (saved(photo().resize((2000, 40)), "PNG"), (2000, 40), "RGB"),
    ],
    ids=["transparent", "16-bit", "cmyk", "palette", "rotated", "one pixel", "animated", "long"],
)
def test_pictures_of_all_kinds_are_taken(enhance: Run, content: bytes, size: tuple[int, int], mode: str) -> None:
    made = result_of(*enhance(content))
    assert (made.size, made.mode) == (size, mode)


@pytest.mark.parametrize("content", [b"", b"no picture", saved(photo(), "PNG")[:2000]])
def test_what_is_no_picture_is_refused(enhance: Run, content: bytes) -> None:
    outcome, _ = enhance(content)
    assert isinstance(outcome, TaskFailed)
    assert (outcome.category, outcome.retryable) == (ErrorCategory.ERROR_CATEGORY_VALIDATION, False)


def test_networks_are_asked_for_by_the_checks_that_are_on(tmp_path: Path) -> None:
    handler = FaceEnhancerHandler()
    plain, checked = Context(tmp_path, {}), Context(tmp_path, {"lpips_threshold": 0.2})
    assert [need.family for need in handler.needs(plain.spec, plain.task)] == ["vision", "upscaler"]
    needs = handler.needs(checked.spec, checked.task)
    assert [(need.name, need.family, need.model) for need in needs][2:] == [("lpips", "likeness", "lpips")]
    assert {need.family for need in needs} <= set(handler.families)


def test_the_input_is_the_stored_one_and_a_direct_runs_own(tmp_path: Path) -> None:
    context = Context(tmp_path, {})
    (stored,) = FaceEnhancerHandler().inputs(context.spec, context.task)
    (own,) = FaceEnhancerHandler().inputs(CreateTask(face_enhancer=CreateFaceEnhancerTask(input_image="b")), Task())
    assert (stored.source, own.source) == ("x.png", "b")


def test_the_parent_imports_no_networks() -> None:
    code = (
        "import sys, services.inference.tasktypes.face_enhancer;"
        "sys.exit(bool({'torch', 'cv2', 'ncnn', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
