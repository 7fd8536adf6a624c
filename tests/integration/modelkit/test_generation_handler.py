"""GENERATION from the task to the file, on a tiny model of random weights."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from atelier.tasks.v1.enums_pb2 import ErrorCategory
from atelier.tasks.v1.generation_pb2 import CreateGenerationTask
from atelier.tasks.v1.task_pb2 import CreateTask, Task
from PIL import Image

from meshkit.images.notes import read_notes
from meshkit.worker.handlers import Need, Output, TaskCancelled, TaskFailed
from modelkit.errors import ModelError
from modelkit.residency import Models
from services.inference.tasktypes.failures import explained
from services.inference.tasktypes.generation import GenerationHandler


class Context:
    def __init__(self, folder: Path, *, cancelled: bool = False, config: Any = None, **fields: Any) -> None:
        folder.mkdir()
        self.job_id = folder.name
        self.spec = CreateTask(
            generation=CreateGenerationTask(
                **{"prompt": "a secret dress", "width": 64, "height": 64, "seed": 5, **fields}
            )
        )
        if config:
            self.spec.config.update(config)
        self.task = Task(id=folder.name)
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


def execute(models: Models, *batch: Any) -> list[Output | Exception]:
    """Run the handler with the models it needs, as a child does."""
    handler = GenerationHandler()
    wanted = dict.fromkeys(need for context in batch for need in needs(handler, context))
    try:
        with models.lend(tuple(wanted)) as lent:
            return list(handler.run(batch, lent))
    except ModelError as error:
        return [explained(error)] * len(batch)


def needs(handler: GenerationHandler, context: Any) -> Sequence[Need]:
    try:
        return handler.needs(context.spec, context.task)
    except TaskFailed:
        return ()


def test_a_batch_becomes_files(models: Models, tmp_path: Path) -> None:
    contexts = [Context(tmp_path / "a"), Context(tmp_path / "b", cancelled=True), Context(tmp_path / "c", seed=6)]
    first, second, third = execute(models, *contexts)
    assert isinstance(second, TaskCancelled)
    for outcome, context in ((first, contexts[0]), (third, contexts[2])):
        assert isinstance(outcome, Output)
        (file,) = outcome.files
        assert (file.name, file.content_type, file.field) == ("image.png", "image/png", "result_image_path")
        assert outcome.device_seconds > 0
        with Image.open(context.folder / file.name) as image:
            assert (image.format, image.mode, image.size) == ("PNG", "RGB", (64, 64))
            assert set(image.info) == {"Software", "atelier", "parameters"}
        notes = read_notes(context.folder / file.name)
        assert notes is not None
        assert (notes["prompt"], notes["seed"], notes["model"]) == (
            context.spec.generation.prompt,
            context.spec.generation.seed,
            "tiny",
        )
        assert (notes["steps"], notes["width"], notes["height"]) == (4, 64, 64)
        assert context.steps[-1] == (4, 4)
    assert (contexts[0].folder / "image.png").read_bytes() != (contexts[2].folder / "image.png").read_bytes()


def test_a_picture_says_nothing_of_its_making_where_its_task_does_not_want_it(models: Models, tmp_path: Path) -> None:
    silent = Context(tmp_path / "a", config={"metadata": False})
    wrong = Context(tmp_path / "b", config={"metadata": "no"})
    first, second = (execute(models, context)[0] for context in (silent, wrong))
    assert isinstance(first, Output)
    with Image.open(silent.folder / "image.png") as image:
        image.load()
        assert image.info == {}
    assert isinstance(second, TaskFailed)
    assert second.message == "config.metadata: Input should be a valid boolean"


def test_a_result_tells_of_the_part_of_its_prompt_that_the_model_did_not_read(models: Models, tmp_path: Path) -> None:
    short, long = execute(models, Context(tmp_path / "a", prompt="ab"), Context(tmp_path / "b", prompt="a" * 40))
    assert isinstance(short, Output)
    assert isinstance(long, Output)
    assert list(short.result.warnings) == []
    (warning,) = long.result.warnings
    count = int(warning.removeprefix("The prompt is ").partition(" ")[0])
    assert count > 20
    assert "tokens longer than the model reads" in warning


def test_reference_and_lora_files_are_used(models: Models, tmp_path: Path, make_lora: Any) -> None:
    plain = Context(tmp_path / "plain")
    rich = Context(tmp_path / "rich", style_model_path="styles/a.safetensors", reference_image_data="data:,")
    Image.effect_noise((64, 64), 50).save(tmp_path / "reference.png")
    rich.inputs = {"style": make_lora(), "reference": tmp_path / "reference.png"}
    for context in (plain, rich):
        assert isinstance(execute(models, context)[0], Output)
    assert (plain.folder / "image.png").read_bytes() != (rich.folder / "image.png").read_bytes()
    assert rich.steps[-1] == (2, 2)
    assert models.resident()[-1].loras == ("styles/a.safetensors",)


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"steps": 500}, "takes 1 to 20 steps"),
        ({"model": "another"}, "not served"),
        ({"steps": "many"}, "config.steps"),
    ],
)
def test_what_the_model_does_not_take_is_a_validation_failure(
    models: Models, tmp_path: Path, config: Any, sentence: str
) -> None:
    (failure,) = execute(models, Context(tmp_path / "a", config=config))
    assert isinstance(failure, TaskFailed)
    assert sentence in failure.message
    assert failure.category == ErrorCategory.ERROR_CATEGORY_VALIDATION
    assert not failure.retryable


def test_a_faulty_lora_and_a_faulty_reference_fail_by_themselves(models: Models, tmp_path: Path) -> None:
    (tmp_path / "junk").write_bytes(b"junkjunkjunk")
    lora = Context(tmp_path / "a", style_model_path="styles/a.safetensors")
    lora.inputs = {"style": tmp_path / "junk"}
    picture = Context(tmp_path / "b", reference_image_data="data:,")
    picture.inputs = {"reference": tmp_path / "junk"}
    for context, sentence in ((lora, "not a safetensors file"), (picture, "could not be read")):
        (failure,) = execute(models, context)
        assert isinstance(failure, TaskFailed)
        assert sentence in failure.message


def test_a_member_that_cannot_run_does_not_touch_the_others(models: Models, tmp_path: Path) -> None:
    contexts = [Context(tmp_path / "a", config={"steps": "x"}), Context(tmp_path / "b")]
    bad, good = execute(models, *contexts)
    assert isinstance(bad, TaskFailed)
    assert isinstance(good, Output)
