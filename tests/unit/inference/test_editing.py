"""EDITING from the task to the file, on a model that records what it is asked for."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from atelier.tasks.v1.editing_pb2 import CreateEditingTask, EditingTaskPublic
from atelier.tasks.v1.enums_pb2 import ErrorCategory
from atelier.tasks.v1.task_pb2 import CreateTask, Task
from PIL import Image

from meshkit.images.notes import read_notes
from meshkit.worker.handlers import Need, Output, TaskCancelled, TaskFailed
from modelkit.card import ModelCard
from modelkit.errors import ModelError
from modelkit.requests import BatchSettings, ImageRequest, Picture
from services.inference.tasktypes.editing import EditingHandler


class Editor:
    """A model that paints everything blue."""

    def __init__(self, architecture: str = "flux-kontext", error: ModelError | None = None) -> None:
        self.card = ModelCard(name="editor", architecture=architecture)
        self.asked: list[tuple[BatchSettings, list[ImageRequest]]] = []
        self._error = error

    def generate(self, settings: BatchSettings, requests: Sequence[ImageRequest], upscaler: Any) -> list[Any]:
        if self._error is not None:
            raise self._error
        self.asked.append((settings, list(requests)))
        return [
            None
            if request.observer.cancelled()
            else Picture(Image.new("RGB", (settings.width, settings.height), "blue"), len(request.prompt) // 50)
            for request in requests
        ]


class Context:
    def __init__(self, folder: Path, *, cancelled: bool = False, config: Any = None, **fields: Any) -> None:
        folder.mkdir(exist_ok=True)
        self.job_id = folder.name
        requested = {"prompt": "make it blue", "base_image": "in/base.png", "width": 80, "height": 40, **fields}
        self.spec = CreateTask(editing=CreateEditingTask(**requested))
        stored = EditingTaskPublic(
            base_image_path=requested["base_image"] or "x", reference_images=fields.get("reference_images", ())
        )
        self.task = Task(id=folder.name, editing=stored)
        self.task.config.update(config or {})
        self.folder = folder
        self.inputs: Mapping[str, Path] = {}
        self.refused_inputs: Mapping[str, str] = {}
        self._cancelled = cancelled

    def given(self, **pictures: Image.Image) -> "Context":
        for name, picture in pictures.items():
            path = self.folder / f"in-{name}.png"
            picture.save(path)
            key = f"reference[{name[1:]}]" if name.startswith("r") else name
            self.inputs = {**self.inputs, key: path}
        return self

    def progress(self, step: int, total: int, preview: bytes | None = None) -> None:
        raise AssertionError("the model reports")

    def upscaling(self) -> None:
        raise AssertionError("the model reports")

    def cancelled(self) -> bool:
        return self._cancelled


def _base(size: tuple[int, int] = (40, 40)) -> Image.Image:
    image = Image.new("RGB", size, (200, 190, 180))
    image.paste((250, 0, 0), (size[0] // 4, size[1] // 4, size[0] // 2, size[1] // 2))
    return image


def _run(editor: Editor, *contexts: Any) -> list[Output | Exception]:
    return list(EditingHandler().run(contexts, {"model": editor, "upscaler": object()}))


def _asked(editor: Editor, *contexts: Any) -> tuple[BatchSettings, list[ImageRequest]]:
    for outcome in _run(editor, *contexts):
        assert isinstance(outcome, Output), outcome
    (asked,) = editor.asked
    return asked


def _refused(tmp_path: Path, base: Image.Image, *, mask: Image.Image | None = None, **config: Any) -> str:
    context = Context(tmp_path / "refused", config=config).given(base=base)
    if mask is not None:
        context.given(mask=mask)
    (failure,) = _run(Editor(), context)
    assert isinstance(failure, TaskFailed)
    assert (failure.category, failure.retryable) == (ErrorCategory.ERROR_CATEGORY_VALIDATION, False)
    return failure.message


def test_a_batch_becomes_files_of_the_asked_size(tmp_path: Path) -> None:
    editor = Editor()
    contexts = [
        Context(tmp_path / "a", seed=5).given(base=_base()),
        Context(tmp_path / "b", cancelled=True).given(base=_base()),
        Context(tmp_path / "c", seed=6, prompt="x" * 120).given(base=_base()),
    ]
    first, second, third = _run(editor, *contexts)
    assert isinstance(second, TaskCancelled)
    for outcome, context, seed in ((first, contexts[0], 5), (third, contexts[2], 6)):
        assert isinstance(outcome, Output)
        (file,) = outcome.files
        assert (file.name, file.content_type, file.field) == ("image.png", "image/png", "result_image_path")
        assert outcome.result.editing.seed == seed
        with Image.open(context.folder / file.name) as image:
            assert (image.size, image.mode) == ((80, 40), "RGB")
        notes = read_notes(context.folder / file.name)
        assert notes is not None
        assert (notes["task_type"], notes["prompt"], notes["seed"]) == ("EDITING", context.spec.editing.prompt, seed)
        assert (notes["model"], notes["strength"], notes["fit"]) == ("editor", 1.0, "contain")
    assert isinstance(third, Output)
    assert list(third.result.warnings) == [
        "The prompt is 2 tokens longer than the model reads: its end had no say in the picture."
    ]


def test_inputs_are_the_stored_pictures_and_the_mask() -> None:
    spec = CreateTask(editing=CreateEditingTask(prompt="x", base_image="new.png"))
    task = Task(id="1", editing=EditingTaskPublic(base_image_path="a.png", reference_images=["b.png", "c.png"]))
    task.config.update({"mask_image": "m.png"})
    refs = EditingHandler().inputs(spec, task)
    assert [(ref.name, ref.source, ref.kind) for ref in refs] == [
        ("base", "a.png", "image"),
        ("reference[0]", "b.png", "image"),
        ("reference[1]", "c.png", "image"),
        ("mask", "m.png", "image"),
    ]


@pytest.mark.parametrize(
    ("given", "base", "references"),
    [
        ({"base_image": "n", "base_image_data": "d", "base_image_url": "u"}, "n", []),
        ({"base_image_data": "d", "base_image_url": "u"}, "d", []),
        ({"base_image_url": "u"}, "u", []),
        ({"base_image": "n", "reference_image_data": "d", "reference_image_url": "u"}, "n", ["d"]),
        ({"base_image": "n", "reference_image_url": "u"}, "n", ["u"]),
        ({"base_image": "n", "reference_images": ["a", "b"], "reference_image_data": "d"}, "n", ["a", "b"]),
    ],
)
def test_a_direct_run_takes_the_new_names_before_the_former_ones(
    given: dict[str, Any], base: str, references: list[str]
) -> None:
    spec = CreateTask(editing=CreateEditingTask(prompt="x", **given))
    refs = EditingHandler().inputs(spec, Task(id="1"))
    assert [ref.source for ref in refs] == [base, *references]


def test_the_model_is_the_default_for_edits_or_the_named_one_of_either_kind() -> None:
    task = Task(id="1")
    spec = CreateTask(editing=CreateEditingTask(prompt="x", base_image="a"))
    assert EditingHandler().needs(spec, task) == (
        Need("model", "kontext", None, ("flux",)),
        Need("upscaler", "upscaler"),
    )
    task.config.update({"model": "flux-dev"})
    assert EditingHandler().needs(spec, task)[0].model == "flux-dev"


def test_size_defaults_to_1024_and_a_seed_is_drawn_once(tmp_path: Path) -> None:
    editor = Editor()
    context = Context(tmp_path / "a").given(base=_base())
    context.spec.editing.ClearField("width")
    context.spec.editing.ClearField("height")
    settings, (request,) = _asked(editor, context)
    assert (settings.width, settings.height) == (1024, 1024)
    (again,) = _asked(again_editor := Editor(), context)[1]
    assert again.seed == request.seed
    assert len(again_editor.asked) == 1


def test_the_stored_seed_counts_before_the_requested_one(tmp_path: Path) -> None:
    context = Context(tmp_path / "a", seed=4).given(base=_base())
    context.task.editing.seed = 9
    assert _asked(Editor(), context)[1][0].seed == 9


@pytest.mark.parametrize("fit", ["contain", "cover", "stretch", None])
def test_the_picture_is_brought_to_the_asked_size(tmp_path: Path, fit: str | None) -> None:
    context = Context(tmp_path / "a", config={} if fit is None else {"fit": fit}).given(base=_base())
    settings, (request,) = _asked(Editor(), context)
    assert settings.whole
    assert request.reference is not None
    assert request.reference.size == (80, 40)
    pixels = np.asarray(request.reference, np.int16)
    red = (pixels[..., 0] - pixels[..., 1]) > 150
    columns, rows = np.flatnonzero(red.any(0)), np.flatnonzero(red.any(1))
    box = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    expected = {"cover": (20, 0, 40, 20), "stretch": (20, 10, 40, 20)}.get(fit or "", (30, 10, 40, 20))
    assert np.abs(np.subtract(box, expected)).max() <= 1
    assert tuple(pixels[0, 0]) == ((200, 190, 180) if fit != "cover" else tuple(pixels[0, 0]))


def test_a_transparent_picture_lies_over_white_and_hides_what_is_below(tmp_path: Path) -> None:
    base = Image.new("RGBA", (80, 40), (0, 255, 0, 0))
    _, (request,) = _asked(Editor(), Context(tmp_path / "a").given(base=base))
    assert request.reference is not None
    assert request.reference.getextrema() == ((255, 255),) * 3
    assert request.mask is None


def test_members_of_config_reach_the_model(tmp_path: Path) -> None:
    config = {
        "steps": 7,
        "guidance_scale": 3.5,
        "negative_prompt": "dots",
        "strength": 0.25,
        "model": "editor",
        "unknown": [1],
    }
    settings, (request,) = _asked(Editor(), Context(tmp_path / "a", config=config).given(base=_base()))
    assert (settings.steps, settings.guidance_scale, settings.strength) == (7, 3.5, 0.75)
    assert request.negative_prompt == "dots"


@pytest.mark.parametrize(("architecture", "kept"), [("flux-kontext", 0.0), ("flux", 0.25)])
def test_strength_defaults_to_what_the_kind_of_model_needs(tmp_path: Path, architecture: str, kept: float) -> None:
    settings, _ = _asked(Editor(architecture), Context(tmp_path / "a").given(base=_base()))
    assert settings.strength == kept


def test_references_reach_the_model_in_order(tmp_path: Path) -> None:
    context = Context(tmp_path / "a", reference_images=["a.png", "b.png"])
    context.given(base=_base(), r0=Image.new("RGB", (5, 9), "blue"), r1=Image.new("RGB", (9, 5), "lime"))
    _, (request,) = _asked(Editor(), context)
    assert [image.getpixel((0, 0)) for image in request.others] == [(0, 0, 255), (0, 255, 0)]


def test_white_parts_of_the_mask_may_change(tmp_path: Path) -> None:
    mask = Image.new("L", (80, 80), 0)
    mask.paste(255, (0, 0, 40, 80))
    context = Context(tmp_path / "a", config={"mask_image": "m.png"}).given(base=_base(), mask=mask)
    _, (request,) = _asked(Editor(), context)
    assert request.mask is not None
    assert request.mask.size == (80, 40)
    levels = np.asarray(request.mask)
    assert levels[:, 25:35].min() > 240  # the left half of the picture, which stands in the middle
    assert levels[:, 45:].max() < 15
    assert levels[:, :18].max() < 15  # what `contain` filled stays


def test_the_transparent_parts_may_be_those_that_change(tmp_path: Path) -> None:
    base = Image.new("RGBA", (80, 40), (10, 20, 30, 255))
    base.paste((0, 0, 0, 0), (0, 0, 40, 40))
    context = Context(tmp_path / "a", config={"mask_from_alpha": True}).given(base=base)
    _, (request,) = _asked(Editor(), context)
    assert request.mask is not None
    levels = np.asarray(request.mask)
    assert (levels[:, :40].min(), levels[:, 40:].max()) == (255, 0)


def test_what_cannot_work_is_said_once_and_clearly(tmp_path: Path) -> None:
    plain = _base()
    assert _refused(tmp_path, plain, fit="zoom") == "config.fit: must be in list [contain, cover, stretch]"
    assert _refused(tmp_path, plain, strength=2) == (
        "config.strength: must be greater than or equal to 0 and less than or equal to 1"
    )
    assert _refused(tmp_path, plain, mask_from_alpha=True) == (
        "config.mask_from_alpha needs a base image with transparent parts."
    )
    assert _refused(tmp_path, plain, mask=Image.new("L", (40, 20), 255), mask_image="m") == (
        "config.mask_image must have the aspect of the base image."
    )
    assert _refused(tmp_path, plain, mask=Image.new("L", (40, 40), 9), mask_image="m") == (
        "config.mask_image marks no part that may change: white may, black may not."
    )
    both = {"mask_image": "m", "mask_from_alpha": True}
    assert "exclude each other" in _refused(tmp_path, plain, mask=Image.new("L", (40, 40), 255), **both)


def test_a_refusal_of_the_model_is_that_of_every_member_it_was_asked_for(tmp_path: Path) -> None:
    editor = Editor(error=ModelError("The model editor takes no reference images."))
    outcomes = _run(editor, *(Context(tmp_path / name).given(base=_base()) for name in "ab"))
    assert [type(outcome) for outcome in outcomes] == [TaskFailed, TaskFailed]
    assert "takes no reference images" in str(outcomes[0])


def test_edits_that_one_call_can_make_share_a_batch(tmp_path: Path) -> None:
    def key(**more: Any) -> Any:
        context = Context(tmp_path / "a", **more)
        return EditingHandler().batch_key(context.spec, context.task)

    assert key() == key(prompt="another", seed=3, base_image="other.png", config={"fit": "cover"})
    for other in (
        {"width": 90},
        {"reference_images": ["a"]},
        {"config": {"mask_image": "m"}},
        {"config": {"steps": 3}},
        {"config": {"strength": 0.5}},
        {"config": {"model": "x"}},
    ):
        assert key(**other) != key()
