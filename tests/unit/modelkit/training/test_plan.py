from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from modelkit.training.errors import TrainingFailed
from modelkit.training.plan import TrainingPlan

PLAN = TrainingPlan("models/garments/weights", "zorblax")


def test_a_plan_comes_back_from_json_as_it_was() -> None:
    plan = replace(PLAN, sample_prompts=("a [trigger]", "x"), start_from=Path("a/b.safetensors"), resolution=512)
    assert TrainingPlan.from_json(plan.to_json()) == plan
    assert TrainingPlan.from_json(PLAN.to_json()) == PLAN


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"model": "m", "trigger_word": "t", "colour": 1}', '{"model": 1}'])
def test_what_is_no_plan_is_refused(text: str) -> None:
    with pytest.raises(TrainingFailed, match="plan of the training is not valid"):
        TrainingPlan.from_json(text)


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("rank", 0),
        ("rank", 513),
        ("steps", 0),
        ("batch_size", 0),
        ("gradient_accumulation", 0),
        ("save_every", 0),
        ("sample_every", 0),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("training_type", "HALF"),
        ("preservation", "some"),
        ("caption_dropout", 1.0),
        ("validation_share", -0.1),
        ("trigger_word", ""),
    ],
)
def test_a_member_out_of_range_is_refused(member: str, value: Any) -> None:
    with pytest.raises(TrainingFailed):
        replace(PLAN, **{member: value})


def test_alpha_is_the_rank() -> None:
    assert replace(PLAN, rank=32).alpha == 32


@pytest.mark.parametrize(
    ("caption", "captioned", "unnamed"),
    [
        ("", "zorblax", ""),
        ("[trigger]", "zorblax", ""),
        ("a photo of [trigger] on a chair", "a photo of zorblax on a chair", "a photo of on a chair"),
        ("a red dress", "zorblax, a red dress", "a red dress"),
        ("A Zorblax.", "A Zorblax.", "A"),
    ],
)
def test_captions_name_the_trigger_word_once(caption: str, captioned: str, unnamed: str) -> None:
    assert PLAN.captioned(caption) == captioned
    assert PLAN.unnamed(captioned) == unnamed


def test_prompts_that_leave_the_trigger_out_stay_as_they_are() -> None:
    assert PLAN.named("a [trigger] and a hat") == "a zorblax and a hat"
    assert PLAN.named("a hat") == "a hat"


def test_a_resumed_run_may_go_on_longer_but_not_learn_otherwise() -> None:
    same = replace(PLAN, steps=2000, sample_prompts=("a",), save_every=1, model="elsewhere").binding()
    assert same == PLAN.binding()
    assert replace(PLAN, rank=8).binding() != PLAN.binding()
    assert replace(PLAN, learning_rate=2e-4).binding() != PLAN.binding()
