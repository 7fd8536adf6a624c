from typing import Any

import pytest
from atelier.tasks.v1.enums_pb2 import ErrorCategory
from atelier.tasks.v1.generation_pb2 import CreateGenerationTask, GenerationTaskPublic
from atelier.tasks.v1.task_pb2 import CreateTask, Task
from google.protobuf.struct_pb2 import Struct

from meshkit.worker.handlers import TaskFailed
from services.inference.tasktypes.generation import GenerationHandler, _read

HANDLER = GenerationHandler()


def asked(config: dict[str, Any] | None = None, **fields: Any) -> tuple[CreateTask, Task]:
    """A request that no task was made of, as a direct caller sends it."""
    spec = CreateTask(generation=CreateGenerationTask(**{"prompt": "a red dress", **fields}))
    if config is not None:
        spec.config.update(config)
    return spec, Task(id="0e1a")


def stands(spec: CreateTask, **fields: Any) -> tuple[CreateTask, Task]:
    """The same request, with a task that stands."""
    return spec, Task(id="0e1a", generation=GenerationTaskPublic(**{"prompt": "a red dress", **fields}))


def test_loras_and_the_reference_are_inputs() -> None:
    refs = HANDLER.inputs(
        *asked(
            subject_model_path="identities/ada.safetensors",
            style_model_path="styles/oil.safetensors",
            reference_image_data="data:image/png;base64,AA==",
        )
    )
    assert [(ref.name, ref.source, ref.kind) for ref in refs] == [
        ("subject", "identities/ada.safetensors", "lora"),
        ("style", "styles/oil.safetensors", "lora"),
        ("reference", "data:image/png;base64,AA==", "image"),
    ]


def test_a_reference_of_strength_0_is_not_fetched() -> None:
    assert HANDLER.inputs(*asked(reference_image_url="https://example.org/a.png", reference_image_strength=0)) == []


def test_the_task_as_it_stands_wins_over_its_request() -> None:
    spec, _ = asked(
        subject_model_path="identities/old.safetensors",
        style_model_path="styles/cleared.safetensors",
        reference_image_data="data:",
        seed=1,
    )
    refs = HANDLER.inputs(
        *stands(spec, subject_model_path="identities/new.safetensors", reference_image_path="in/a.png")
    )
    assert [ref.source for ref in refs] == ["identities/new.safetensors", "in/a.png"]
    assert HANDLER.inputs(*stands(spec)) == []
    assert _read(*stands(spec)).seed == 1


def test_pictures_of_other_prompts_and_seeds_share_a_batch() -> None:
    assert HANDLER.batch_key(*asked(prompt="a hat", seed=1)) == HANDLER.batch_key(*asked(prompt="boots", seed=2))
    hash(HANDLER.batch_key(*asked(style_model_path="a", config={"steps": 4})))


@pytest.mark.parametrize(
    "other",
    [
        {"width": 512},
        {"height": 512},
        {"style_model_path": "styles/a.safetensors"},
        {"style_model_path": "styles/a.safetensors", "style_lora_weight": 0.5},
        {"reference_image_url": "https://example.org/a.png"},
        {"reference_image_url": "https://example.org/a.png", "reference_image_strength": 70},
        {"config": {"steps": 4}},
        {"config": {"guidance_scale": 2}},
        {"config": {"model": "flux"}},
    ],
)
def test_pictures_that_one_call_cannot_make_have_keys_of_their_own(other: dict[str, Any]) -> None:
    keys = [HANDLER.batch_key(*asked()), HANDLER.batch_key(*asked(**other))]
    assert keys[0] != keys[1]


def test_defaults() -> None:
    wish = _read(*asked(product_model_path="product/a.safetensors"))
    assert (wish.width, wish.height, wish.steps, wish.guidance_scale, wish.model) == (1024, 1024, None, None, None)
    assert wish.adapters == (("product", "product/a.safetensors", 1.0),)
    assert wish.seed == _read(*asked()).seed
    assert 0 <= wish.seed < 1 << 63


@pytest.mark.parametrize("name", ["steps", "num_inference_steps"])
def test_config_may_set_the_steps(name: str) -> None:
    assert _read(*asked({name: 7, "guidance_scale": 2.5, "negative_prompt": "blur", "mine": [1]})).steps == 7


def test_null_in_config_is_absent() -> None:
    config = Struct()
    config.update({"steps": None, "negative_prompt": None, "model": None})
    wish = _read(*asked(dict(config)))
    assert (wish.steps, wish.negative_prompt, wish.model) == (None, None, None)


def test_the_tasks_config_wins() -> None:
    spec, _ = asked({"steps": 7})
    _, task = stands(spec)
    task.config.update({"steps": 9})
    assert _read(spec, task).steps == 9


@pytest.mark.parametrize(
    "config",
    [
        {"steps": 0},
        {"steps": 1001},
        {"steps": 1.5},
        {"steps": "4"},
        {"steps": True},
        {"steps": float("nan")},
        {"guidance_scale": -1},
        {"guidance_scale": float("inf")},
        {"negative_prompt": 3},
        {"negative_prompt": "x" * 10_001},
        {"model": ["a"]},
        {"model": "x" * 256},
    ],
)
def test_a_faulty_config_is_a_sentence(config: dict[str, Any]) -> None:
    with pytest.raises(TaskFailed, match=f"config.{next(iter(config))}: ") as caught:
        HANDLER.batch_key(*asked(config))
    assert caught.value.category == ErrorCategory.ERROR_CATEGORY_VALIDATION
