from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from atelier.tasks.v1.background_fix_pb2 import BackgroundFixTaskPublic, CreateBackgroundFixTask
from atelier.tasks.v1.enums_pb2 import ErrorCategory
from atelier.tasks.v1.task_pb2 import CreateTask, Task
from PIL import Image, ImageDraw

from meshkit.worker.handlers import Output, TaskCancelled, TaskFailed
from modelkit.background import background_colour
from modelkit.cutout import CutoutFamily
from modelkit.device import Device
from modelkit.family import Source
from modelkit.vision import Vision
from services.inference.tasktypes.background_fix import BackgroundFixHandler

DATA = Path(__file__).parents[1] / "modelkit" / "data"
HANDLER = BackgroundFixHandler()
BLUE = (190, 210, 240)


@pytest.fixture(scope="module")
def lent() -> Iterator[Mapping[str, Any]]:
    small = next(card for card in CutoutFamily.packaged if card.name == "u2netp")
    models: dict[str, Any] = {"vision": Vision(1), "cutout": CutoutFamily().load(Source(small), Device("cpu", 1))}
    yield models
    for model in models.values():
        model.close()


class Context:
    def __init__(self, folder: Path, base: Image.Image, palette: Image.Image, **fields: Any) -> None:
        self.job_id = "job"
        self.spec = CreateTask(
            background_fix=CreateBackgroundFixTask(base_image="b.png", palette_image="p.png", **fields)
        )
        self.task = Task(background_fix=BackgroundFixTaskPublic(base_image_path="b.png", palette_image_path="p.png"))
        self.folder = folder
        self.inputs: Mapping[str, Path] = {}
        self.refused_inputs: Mapping[str, str] = {}
        self.steps: list[tuple[int, int]] = []
        self.cancel_at = -1
        for ref, picture in zip(HANDLER.inputs(self.spec, self.task), (base, palette), strict=True):
            self.inputs = {**self.inputs, ref.name: folder / f"{ref.name}.png"}
            picture.save(self.inputs[ref.name])

    def progress(self, step: int, total: int, preview: bytes | None = None) -> None:
        self.steps.append((step, total))

    def upscaling(self) -> None:
        pass

    def cancelled(self) -> bool:
        return len(self.steps) == self.cancel_at


def photo() -> Image.Image:
    with Image.open(DATA / "astronaut.jpg") as image:
        return image.convert("RGB")


def packshot(ground: tuple[int, int, int] = (228, 224, 216), size: tuple[int, int] = (240, 200)) -> Image.Image:
    image = Image.new("RGB", size, ground)
    ImageDraw.Draw(image).ellipse((80, 50, 160, 150), fill=(180, 40, 50))
    return image


def run(context: Context, lent: Mapping[str, Any]) -> Any:
    (outcome,) = HANDLER.run([context], lent)
    if not isinstance(outcome, Output):
        return outcome
    (file,) = outcome.files
    assert file.field == "result_image_path"
    with Image.open(context.folder / file.name) as made:
        made.load()
        return made


def distance(image: Image.Image, subject: Any, colour: tuple[int, int, int], above: int) -> float:
    found = background_colour(np.asarray(image.convert("RGB")), subject, above)
    wanted = background_colour(np.full((4, 4, 3), colour, np.uint8), None)
    assert found is not None
    assert wanted is not None
    return float(np.linalg.norm(np.subtract(found, wanted)))


@pytest.mark.parametrize("strategy", ["BACKGROUND_FIX_STRATEGY_COLOR_SHIFT", "BACKGROUND_FIX_STRATEGY_REPLACE"])
def test_the_background_of_a_person_gets_the_colour_of_the_palette(
    lent: Mapping[str, Any], tmp_path: Path, strategy: str
) -> None:
    context = Context(
        tmp_path,
        photo(),
        packshot(BLUE),
        strategy=strategy,
        shadow_threshold=60,
        light_threshold=100,
        edge_blur_sigma=2,
    )
    made = run(context, lent)
    assert made.size == (220, 256)
    with Image.open(DATA / "astronaut-subject.png") as mask:
        subject = np.asarray(np.asarray(mask.convert("L")) / 255, np.float32)
    assert distance(photo(), subject, BLUE, 100) > 20
    assert distance(made, subject, BLUE, 100) < 5
    # What the worker took for the person is unchanged; it is nearly what a person would say.
    changed = (np.asarray(made) != np.asarray(photo())).any(-1)
    assert changed[subject > 0].mean() < 0.05
    assert not changed[45:75, 95:125].any()  # the face
    assert context.steps == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_a_subject_takes_the_place_of_a_person(lent: Mapping[str, Any], tmp_path: Path) -> None:
    made = run(Context(tmp_path, packshot(), packshot(BLUE), edge_blur_sigma=3), lent)
    assert (np.asarray(made)[75:125, 100:140] == (180, 40, 50)).all()
    assert np.abs(np.asarray(made)[:30].astype(int) - BLUE).max() <= 2


def test_what_is_transparent_stays_so(lent: Mapping[str, Any], tmp_path: Path) -> None:
    base = packshot().convert("RGBA")
    base.putalpha(Image.linear_gradient("L").resize(base.size).point(lambda level: max(level, 60)))
    made = run(Context(tmp_path, base, packshot(BLUE)), lent)
    assert made.mode == "RGBA"
    assert made.getchannel("A").tobytes() == base.getchannel("A").tobytes()


def test_a_cut_out_gets_the_plain_background_behind_it(lent: Mapping[str, Any], tmp_path: Path) -> None:
    base = packshot().convert("RGBA")
    mask = Image.new("L", base.size)
    ImageDraw.Draw(mask).ellipse((80, 50, 160, 150), fill=255)
    base.putalpha(mask)
    made = run(Context(tmp_path, base, packshot(BLUE), strategy="BACKGROUND_FIX_STRATEGY_REPLACE"), lent)
    assert made.mode == "RGB"
    assert np.abs(np.asarray(made)[np.asarray(mask) == 0].astype(int) - BLUE).max() <= 2
    assert (np.asarray(made)[75:125, 100:140] == (180, 40, 50)).all()


def test_a_picture_without_a_subject_is_refused(lent: Mapping[str, Any], tmp_path: Path) -> None:
    outcome = run(Context(tmp_path, Image.new("RGB", (90, 60), "grey"), packshot(BLUE)), lent)
    assert isinstance(outcome, TaskFailed)
    assert (outcome.category, outcome.retryable) == (ErrorCategory.ERROR_CATEGORY_VALIDATION, False)
    assert outcome.message.startswith("base_image shows neither a person nor ")


def test_a_palette_may_be_a_plain_colour(lent: Mapping[str, Any], tmp_path: Path) -> None:
    made = run(Context(tmp_path, packshot(), Image.new("RGB", (1, 1), BLUE)), lent)
    assert np.abs(np.asarray(made)[:10, :10].astype(int) - BLUE).max() <= 2


@pytest.mark.parametrize("threshold", [0, 200, 255])
def test_equal_thresholds_work(lent: Mapping[str, Any], tmp_path: Path, threshold: int) -> None:
    context = Context(tmp_path, packshot(), packshot(BLUE), shadow_threshold=threshold, light_threshold=threshold)
    moved = np.abs(np.asarray(run(context, lent))[2, 2].astype(int) - (228, 224, 216)).max() > 5
    assert moved == (threshold < 255)


def test_shadows_above_lights_are_refused(lent: Mapping[str, Any], tmp_path: Path) -> None:
    outcome = run(Context(tmp_path, packshot(), packshot(BLUE), shadow_threshold=230), lent)
    assert isinstance(outcome, TaskFailed)
    assert "150 and 220 where absent" in outcome.message


@pytest.mark.parametrize("step", [0, 1, 2, 3])
def test_a_cancelled_task_stops_at_its_next_step(lent: Mapping[str, Any], tmp_path: Path, step: int) -> None:
    context = Context(tmp_path, packshot(), packshot(BLUE))
    context.cancel_at = step
    assert isinstance(run(context, lent), TaskCancelled)


def test_the_same_task_gives_the_same_bytes(lent: Mapping[str, Any], tmp_path: Path) -> None:
    first = run(Context(tmp_path, photo(), packshot(BLUE)), lent)
    again = run(Context(tmp_path, photo(), packshot(BLUE)), lent)
    assert first.tobytes() == again.tobytes()
