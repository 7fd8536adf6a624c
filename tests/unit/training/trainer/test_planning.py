from pathlib import Path
from typing import Any, Literal

import pytest
from atelier.training.v1.trainer_service_pb2 import TrainingSpec
from atelier.training.v1.training_pb2 import (
    CAPTIONING_STRATEGY_PROMPT,
    ENTITY_TYPE_PRODUCT,
    ENTITY_TYPE_SUBJECT,
    TRAINING_TYPE_FULL,
    CreateTraining,
)
from google.protobuf.struct_pb2 import Struct

from modelkit.card import LoraTargets, ModelCard
from modelkit.training.plan import TrainingPlan
from services.training.trainer.base_models import TrainableModel
from services.training.trainer.config import TrainerSettings
from services.training.trainer.planning import dataset_request, training_plan

BASE = TrainableModel(Path("/models/ours"), ModelCard(name="ours", native_size=512, max_size=768, size_multiple=16))


def spec(**training: Any) -> TrainingSpec:
    made = TrainingSpec(
        training=CreateTraining(trigger_word="zorblax", rank=8, learning_rate=0.001),
        total_steps=70,
        seed=7,
        save_every=20,
        batch_size=2,
        gradient_accumulation=3,
        optimizer="adamw8bit",
        sample_every=25,
        sample_steps=9,
    )
    made.training.MergeFrom(CreateTraining(**training))
    return made


def test_a_dataset_is_made_for_the_models_own_sizes() -> None:
    transform = Struct()
    transform.update({"type": "center_crop", "width": 300, "height": 300})
    request = dataset_request(
        spec(
            source_images=["a.png", "b.png"],
            preprocessing_captioning_strategy=CAPTIONING_STRATEGY_PROMPT,
            preprocessing_captioning_prompt="a red dress",
            preprocessing_transforms=[transform],
        ),
        BASE,
        TrainerSettings(),
    )
    assert (request.resolution, request.multiple, request.max_side) == (512, 16, 768)
    assert (request.sources, request.trigger_word, request.seed) == (("a.png", "b.png"), "zorblax", 7)
    assert (request.strategy, request.prompt, request.masks) == ("prompt", "a red dress", "none")
    assert [one.type for one in request.transforms] == ["center_crop"]


@pytest.mark.parametrize(("wanted", "side"), [(0, 512), (300, 288), (5000, 768), (3, 16)])
def test_another_side_is_brought_to_what_the_model_takes(wanted: int, side: int) -> None:
    assert dataset_request(spec(), BASE, TrainerSettings(trainer_resolution=wanted)).resolution == side


@pytest.mark.parametrize(
    ("masked", "entity", "masks"),
    [
        (True, ENTITY_TYPE_SUBJECT, "person"),
        (True, ENTITY_TYPE_PRODUCT, "garment"),
        (False, ENTITY_TYPE_SUBJECT, "none"),
    ],
)
def test_a_masked_loss_looks_at_what_the_pictures_show(masked: bool, entity: int, masks: str) -> None:
    asked = spec(entity_type=entity)
    asked.masked_loss = masked
    assert dataset_request(asked, BASE, TrainerSettings()).masks == masks


def test_the_plan_has_what_the_training_asks_for() -> None:
    asked = spec(training_type=TRAINING_TYPE_FULL, sample_prompts=["a [trigger]"], bypass_guidance_embedding=True)
    plan = training_plan(asked, BASE, TrainerSettings(), Path("/attempt/start.safetensors"))
    assert plan == TrainingPlan(
        "/models/ours",
        "zorblax",
        training_type="FULL",
        rank=8,
        steps=70,
        learning_rate=0.001,
        batch_size=2,
        gradient_accumulation=3,
        optimizer="adamw8bit",
        seed=7,
        save_every=20,
        sample_every=25,
        sample_steps=9,
        sample_prompts=("a [trigger]",),
        bypass_guidance=True,
        state_seconds=30.0,
        start_from=Path("/attempt/start.safetensors"),
    )


@pytest.mark.parametrize(
    ("setting", "shipped", "preservation"),
    [("auto", True, "output"), ("auto", False, "none"), ("output", False, "output"), ("none", True, "none")],
)
def test_models_that_ship_keep_their_output_unless_the_setting_says_otherwise(
    setting: Literal["auto", "output", "none"],
    shipped: bool,
    preservation: str,
) -> None:
    folder = Path(__file__).parents[4] / "models" / "garments" / "weights" if shipped else Path("/models/ours")
    settings = TrainerSettings(trainer_preservation=setting)
    assert training_plan(spec(), TrainableModel(folder, BASE.card), settings, None).preservation == preservation


def test_the_models_card_scales_the_rate_and_names_what_is_kept() -> None:
    lora = LoraTargets(learning_rate_scale=5.0, preserved_prompts=("a red dress",))
    base = TrainableModel(Path("/models/ours"), BASE.card.model_copy(update={"lora": lora}))
    plan = training_plan(spec(), base, TrainerSettings(trainer_preservation="output"), None)
    assert plan.learning_rate == pytest.approx(0.005)
    assert plan.preservation_prompts == ("a red dress",)
