import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from atelier.tasks.v1.enums_pb2 import PROVIDER_TYPE_SARTIQ_ULTIMATE_REFINER, ErrorCategory
from atelier.tasks.v1.providers_pb2 import ProviderConfig, SartiqUltimateRefinerConfig
from atelier.tasks.v1.refine_pb2 import CreateRefineTask, RefineTaskPublic
from atelier.tasks.v1.task_pb2 import CreateTask, Task
from PIL import Image, ImageFilter

from meshkit.worker.handlers import Output, TaskCancelled, TaskFailed
from modelkit.refiner import resampled
from modelkit.vision import Face
from services.inference.tasktypes.ultimate_refiner import UltimateRefinerHandler

PHOTO = Path(__file__).parents[1] / "modelkit" / "data" / "astronaut.jpg"
FACE = (30.0, 20.0, 60.0, 55.0)


class Upscaler:
    """Interpolates in the networks' place."""

    def enlarge(
        self, image: Image.Image, width: int, height: int, step: Callable[[int, int], None], **options: Any
    ) -> Image.Image:
        assert options["faithful"]
        step(1, 1)
        return resampled(image, width, height)

    def restore(self, image: Image.Image, step: Callable[[int, int], None] | None = None) -> Image.Image:
        if step is not None:
            step(1, 1)
        large = image.resize((image.width * 4, image.height * 4), Image.Resampling.BICUBIC)
        return large.filter(ImageFilter.UnsharpMask(8, 200, 0))


class Finder:
    """Finds one face where it is in pictures that are twice as large as the photo."""

    def faces(self, image: Image.Image) -> list[Face]:
        return [Face(tuple(2 * edge for edge in FACE), 0.9)]  # type: ignore[arg-type] # four edges


class Network:
    def distance(self, first: np.ndarray, second: np.ndarray) -> float:
        return float(np.abs(first.astype(float) - second).mean() / 255)


class Context:
    def __init__(self, folder: Path, spec: CreateTask, cancel_after: int | None) -> None:
        self.job_id = "job"
        self.spec = spec
        self.task = Task(refine=RefineTaskPublic(base_image_path="x.png"), provider_type=spec.provider_type)
        self.folder = folder
        self.inputs: Mapping[str, Path] = {"base": folder / "input"}
        self.refused_inputs: Mapping[str, str] = {}
        self.steps: list[int] = []
        self._cancel_after = cancel_after

    def progress(self, step: int, total: int, preview: bytes | None = None) -> None:
        self.steps.append(step)

    def upscaling(self) -> None:
        pass

    def cancelled(self) -> bool:
        return self._cancel_after is not None and len(self.steps) >= self._cancel_after


Refine = Callable[..., tuple[Any, Context]]


@pytest.fixture
def refine(tmp_path: Path) -> Refine:
    """Runs one task over a picture; gives the outcome and the attempt."""

    def run(
        image: Image.Image, *, cancel_after: int | None = None, config: Mapping[str, Any] | None = None, **fields: Any
    ) -> tuple[Any, Context]:
        settings = SartiqUltimateRefinerConfig(**(config or {}))
        spec = CreateTask(
            provider_type=PROVIDER_TYPE_SARTIQ_ULTIMATE_REFINER,
            provider_config=ProviderConfig(sartiq_ultimate_refiner=settings),
            refine=CreateRefineTask(**({"upscale_factor": 2} | fields)),
        )
        context = Context(tmp_path, spec, cancel_after)
        image.save(context.inputs["base"], "PNG")
        lent = {"upscaler": Upscaler(), "lpips": Network()}
        handler = UltimateRefinerHandler()
        if any(need.family == "vision" for need in handler.needs(spec, context.task)):
            lent["vision"] = Finder()
        (outcome,) = handler.run([context], lent)
        return outcome, context

    return run


def photo(width: int = 96, height: int = 96) -> Image.Image:
    with Image.open(PHOTO) as image:
        return image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)


def made_by(outcome: Any, context: Context) -> Image.Image:
    assert isinstance(outcome, Output), outcome
    assert (outcome.files[0].name, outcome.files[0].field) == ("image.png", "result_image_path")
    assert outcome.result.HasField("refine")
    with Image.open(context.folder / "image.png") as made:
        made.load()
        return made


def detail(image: Image.Image) -> float:
    return float(np.abs(np.diff(np.asarray(image.convert("L")).astype(float), axis=1)).mean())


@pytest.mark.parametrize("version", ["1", "2"])
@pytest.mark.parametrize(
    ("fields", "size"),
    [
        ({"upscale_factor": 2}, (192, 192)),
        ({"upscale_factor": 1.37}, (132, 132)),
        ({"upscale_factor": None, "target_width": 250}, (250, 250)),
        ({"upscale_factor": None, "target_width": 250, "target_height": 101}, (250, 101)),
    ],
)
def test_the_result_has_the_size_that_was_asked_for(
    refine: Refine, version: str, fields: dict[str, Any], size: tuple[int, int]
) -> None:
    made = made_by(*refine(photo(), config={"version": version}, **fields))
    assert (made.size, made.mode) == (size, "RGB")


def test_tiles_are_redrawn_and_show_the_same(refine: Refine) -> None:
    made = made_by(*refine(photo(), face_detail_enabled=False))
    plain = resampled(photo(), 192, 192)
    assert detail(made) > 1.1 * detail(plain)
    small = [np.asarray(one.resize((24, 24), Image.Resampling.BOX)).astype(int) for one in (made, plain)]
    assert np.abs(small[0] - small[1]).mean() < 6


def test_version_1_restores_faces_from_the_plain_enlargement_and_version_2_leaves_them(refine: Refine) -> None:
    middle = tuple(int(2 * edge) for edge in (38, 30, 52, 45))
    face = {
        name: np.asarray(made_by(*refine(photo(), config=config, **fields)).crop(middle)).astype(int)  # type: ignore[arg-type] # four edges
        for name, config, fields in (
            ("plain", {"version": "1"}, {"face_detail_denoise": 1e-9}),
            ("restored", {"version": "1"}, {"face_detail_denoise": 1.0}),
            ("tiled", {"version": "2"}, {}),
            ("not asked", {"version": "1"}, {"face_detail_enabled": False}),
        )
    }
    plain = np.asarray(resampled(photo(), 192, 192).crop(middle)).astype(int)  # type: ignore[arg-type] # four edges
    assert np.abs(face["plain"] - plain).max() <= 1
    for name in ("restored", "tiled", "not asked"):
        assert np.abs(face[name] - plain).mean() > 1, name


def test_faces_alone_are_restored_where_nothing_is_enlarged(refine: Refine) -> None:
    image = photo(192, 192)
    made = np.asarray(made_by(*refine(image, upscale_enabled=False, upscale_factor=None)))
    changed = (made != np.asarray(image)).any(-1)
    assert made.shape == (192, 192, 3)
    assert changed[60:90, 80:100].mean() > 0.5
    assert not changed[140:].any()


def test_debug_tiles_are_files_of_the_attempt(refine: Refine) -> None:
    outcome, context = refine(photo(), config={"save_debug_tiles": True, "num_tiles": 2})
    names = [file.name for file in outcome.files[1:]]
    assert names == ["debug-tile-1-attempt-1.png", "debug-tile-2-attempt-1.png", "debug-face-1-attempt-1.png"]
    assert {file.field for file in outcome.files[1:]} == {None}
    for name in names:
        with Image.open(context.folder / name) as image:
            assert image.width % 2 == 0
    outcome, _ = refine(photo())
    assert len(outcome.files) == 1


def test_what_never_passes_stays_the_plain_enlargement_and_is_no_failure(refine: Refine) -> None:
    config = {"version": "2", "ssim_threshold": 1.0, "max_retries": 1, "save_debug_tiles": True}
    outcome, context = refine(photo(), config=config)
    made = made_by(outcome, context)
    assert made.tobytes() == resampled(photo(), 192, 192).tobytes()
    assert len(outcome.files) == 1 + 4 * 2


def test_transparency_is_scaled_and_kept(refine: Refine) -> None:
    image = photo()
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    made = made_by(*refine(image, config={"num_tiles": 2}))
    assert made.mode == "RGBA"
    assert made.getchannel("A").tobytes() == resampled(image, 192, 192).getchannel("A").tobytes()


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (300, 2)])
def test_the_smallest_pictures_are_taken(refine: Refine, size: tuple[int, int]) -> None:
    made = made_by(*refine(photo(*size), config={"version": "2", "num_tiles": 16}))
    assert made.size == (2 * size[0], 2 * size[1])


def test_a_check_by_a_network_is_asked_for_and_counts(refine: Refine) -> None:
    outcome, context = refine(
        photo(), config={"version": "2", "ssim_threshold": 0, "lpips_threshold": 1e-9, "max_retries": 0}
    )
    assert made_by(outcome, context).tobytes() == resampled(photo(), 192, 192).tobytes()
    needs = UltimateRefinerHandler().needs(context.spec, context.task)
    assert [need.family for need in needs] == ["upscaler", "likeness"]
    assert {need.family for need in needs} <= set(UltimateRefinerHandler.families)


def test_a_result_that_is_too_large_is_the_callers_fault(refine: Refine) -> None:
    outcome, _ = refine(photo(1000, 2), upscale_factor=16)
    assert isinstance(outcome, TaskFailed)
    assert (outcome.category, outcome.retryable) == (ErrorCategory.ERROR_CATEGORY_VALIDATION, False)


def test_progress_rises_to_the_end_and_a_cancelled_task_stops(refine: Refine) -> None:
    _, context = refine(photo())
    assert context.steps == sorted(context.steps)
    assert (context.steps[0], context.steps[-1]) == (0, 100)
    (context.folder / "image.png").unlink()
    outcome, context = refine(photo(), cancel_after=3)
    assert isinstance(outcome, TaskCancelled)
    assert len(context.steps) == 3
    assert not (context.folder / "image.png").exists()


def test_defaults_hold_where_a_fallback_has_no_settings(refine: Refine, tmp_path: Path) -> None:
    spec = CreateTask(refine=CreateRefineTask(upscale_factor=2))
    task = Task(refine=RefineTaskPublic(base_image_path="a"), provider_type=PROVIDER_TYPE_SARTIQ_ULTIMATE_REFINER)
    needs = UltimateRefinerHandler().needs(spec, task)
    assert [need.family for need in needs] == ["upscaler", "vision"]
    [stored] = UltimateRefinerHandler().inputs(spec, task)
    assert stored.source == "a"


def test_the_parent_imports_no_networks() -> None:
    code = (
        "import sys, services.inference.tasktypes.ultimate_refiner;"
        "sys.exit(bool({'torch', 'cv2', 'ncnn', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
