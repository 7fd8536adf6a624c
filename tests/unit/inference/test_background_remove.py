from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from atelier.tasks.v1.background_removal_pb2 import BackgroundRemovalTaskPublic, CreateBackgroundRemovalTask
from atelier.tasks.v1.enums_pb2 import ErrorCategory
from atelier.tasks.v1.providers_pb2 import LocalProviderConfig, ProviderConfig
from atelier.tasks.v1.task_pb2 import CreateTask, Task
from PIL import Image

from meshkit.worker.handlers import Output, TaskCancelled, TaskFailed
from modelkit.cutout import Cutout, CutoutFamily
from modelkit.device import Device
from modelkit.family import Source
from models.garments.catalogue import GarmentFacts
from models.garments.draw import draw
from services.inference.tasktypes.background_remove import BackgroundRemoveHandler

HANDLER = BackgroundRemoveHandler()


@pytest.fixture(scope="module")
def network() -> Iterator[Cutout]:
    small = next(card for card in CutoutFamily.packaged if card.name == "u2netp")
    loaded = CutoutFamily().load(Source(small), Device("cpu", 1))
    yield loaded
    loaded.close()


class Context:
    def __init__(
        self, folder: Path, pictures: Sequence[Image.Image | bytes | None], config: Mapping[str, Any] | None = None
    ) -> None:
        self.job_id = "job"
        paths = [f"uploads/{index}.png" for index in range(len(pictures))]
        self.spec = CreateTask(background_remove=CreateBackgroundRemovalTask(input_image_paths=paths))
        if config is not None:
            self.spec.config.update(config)
        self.task = Task(background_remove=BackgroundRemovalTaskPublic(input_image_paths=paths))
        self.folder = folder
        self.inputs: Mapping[str, Path] = {}
        self.refused_inputs: Mapping[str, str] = {}
        self.steps: list[tuple[int, int]] = []
        self.cancel_at = -1
        for index, (ref, picture) in enumerate(zip(HANDLER.inputs(self.spec, self.task), pictures, strict=True)):
            assert not ref.required
            if picture is None:
                refusal = f"{ref.name}: There is no such image in storage."
                self.refused_inputs = {**self.refused_inputs, ref.name: refusal}
                continue
            file = folder / f"in-{index}.png"
            self.inputs = {**self.inputs, ref.name: file}
            if isinstance(picture, bytes):
                file.write_bytes(picture)
            else:
                picture.save(file)

    def progress(self, step: int, total: int, preview: bytes | None = None) -> None:
        self.steps.append((step, total))

    def upscaling(self) -> None:
        pass

    def cancelled(self) -> bool:
        return len(self.steps) == self.cancel_at


def garment(colour: str, size: int = 128) -> Image.Image:
    return Image.fromarray(draw(GarmentFacts("t-shirt", colour), np.random.default_rng(3), size).picture)


def run(context: Context, network: Cutout) -> Output | Exception:
    (outcome,) = HANDLER.run([context], {"cutout": network})
    return outcome


def made(context: Context, name: str) -> Image.Image:
    with Image.open(context.folder / name) as image:
        image.load()
        return image


def test_each_image_gets_a_result_in_its_place(network: Cutout, tmp_path: Path) -> None:
    sizes, colours = (128, 200, 90), ("red", "green", "blue")
    context = Context(tmp_path, [garment(c, s) for c, s in zip(colours, sizes, strict=True)])
    outcome = run(context, network)
    assert isinstance(outcome, Output)
    assert [(file.field, file.index) for file in outcome.files] == [("result_image_paths", i) for i in range(3)]
    assert outcome.errors == ()
    for file, size, channel in zip(outcome.files, sizes, range(3), strict=True):
        image = made(context, file.name)
        assert (image.mode, image.size) == ("RGBA", (size, size))
        centre = image.getpixel((size // 2, size // 2))
        assert isinstance(centre, tuple)
        assert centre[channel] == max(centre[:3])
        assert centre[3] == 255
        assert image.getpixel((2, 2)) == (0, 0, 0, 0)
    assert context.steps == [(1, 3), (2, 3), (3, 3)]


def test_an_image_that_fails_leaves_its_place_empty_and_a_line_that_names_it(network: Cutout, tmp_path: Path) -> None:
    plain = Image.new("RGB", (64, 64), "grey")
    context = Context(tmp_path, [None, garment("red"), b"no picture", plain])
    outcome = run(context, network)
    assert isinstance(outcome, Output)
    assert [file.index for file in outcome.files] == [1]
    assert list(outcome.result.background_remove.result_image_paths) == [""] * 4
    assert outcome.errors == (
        "input_image_paths[0]: There is no such image in storage.",
        "input_image_paths[2]: The image could not be read.",
        "input_image_paths[3]: The picture shows nothing that stands out from its background.",
    )
    assert context.steps[-1] == (4, 4)


def test_a_task_fails_where_no_image_could_be_cut_out(network: Cutout, tmp_path: Path) -> None:
    outcome = run(Context(tmp_path, [b"no picture", Image.new("RGB", (1, 1), "grey")]), network)
    assert isinstance(outcome, TaskFailed)
    assert (outcome.category, outcome.retryable) == (ErrorCategory.ERROR_CATEGORY_VALIDATION, False)
    assert "input_image_paths[0]: " in outcome.message
    assert "input_image_paths[1]: " in outcome.message


def test_a_cancelled_task_stops_between_two_images(network: Cutout, tmp_path: Path) -> None:
    context = Context(tmp_path, [garment("red"), garment("green"), garment("blue")])
    context.cancel_at = 1
    assert isinstance(run(context, network), TaskCancelled)
    assert context.steps == [(1, 3)]


@pytest.mark.parametrize("picture", ["alpha", "palette", "grey", "sixteen", "rotated"])
def test_pictures_of_all_kinds_are_cut_out(network: Cutout, tmp_path: Path, picture: str) -> None:
    plain = garment("red", 120).crop((0, 0, 120, 100))
    context = Context(tmp_path, [plain])
    (path,) = context.inputs.values()
    if picture == "alpha":
        plain.putalpha(Image.new("L", plain.size, 200))
        plain.save(path)
    elif picture == "palette":
        plain.quantize(32).save(path)
    elif picture == "grey":
        plain.convert("L").save(path)
    elif picture == "sixteen":
        Image.fromarray(np.asarray(plain.convert("L"), np.uint16) * 257).save(path)
    else:
        exif = Image.Exif()
        exif[0x0112] = 6
        plain.save(path, exif=exif)
    outcome = run(context, network)
    assert isinstance(outcome, Output), outcome
    image = made(context, outcome.files[0].name)
    assert image.size == ((100, 120) if picture == "rotated" else (120, 100))
    alpha = np.asarray(image.getchannel("A"))
    assert 0.1 < (alpha > 100).mean() < 0.9
    assert alpha.max() == (200 if picture == "alpha" else 255)


@pytest.mark.parametrize("value", ["hat", 3])
def test_an_unknown_garment_is_refused(network: Cutout, tmp_path: Path, value: Any) -> None:
    outcome = run(Context(tmp_path, [garment("red")], {"cloth_category": value}), network)
    assert isinstance(outcome, TaskFailed)
    assert "config.cloth_category" in outcome.message or "string" in outcome.message
    assert (outcome.category, outcome.retryable) == (ErrorCategory.ERROR_CATEGORY_VALIDATION, False)


def test_other_members_of_config_are_the_callers_own(network: Cutout, tmp_path: Path) -> None:
    context = Context(tmp_path, [garment("red")], {"cloth_category": None, "colour": "hat"})
    assert isinstance(run(context, network), Output)


def test_the_task_names_its_network() -> None:
    config = ProviderConfig(local=LocalProviderConfig(rembg_model="u2netp"))
    (need,) = HANDLER.needs(CreateTask(), Task(provider_config=config))
    assert (need.family, need.model) == ("cutout", "u2netp")
    (need,) = HANDLER.needs(CreateTask(), Task())
    assert need.model is None
    assert HANDLER.batch_key(CreateTask(), Task()) is None
