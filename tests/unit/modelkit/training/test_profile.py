from dataclasses import replace

from modelkit.card import LoraTargets, ModelCard
from modelkit.training.plan import TrainingPlan
from modelkit.training.profile import fitted

ASKED = TrainingPlan("models/garments/weights", "zorblax", learning_rate=1e-4, preservation="output")
CARD = ModelCard(lora=LoraTargets(learning_rate_scale=10.0, preserved_prompts=("a red dress", "")))


def test_the_card_scales_the_rate_and_names_what_is_preserved() -> None:
    plan = fitted(ASKED, CARD)
    assert plan == replace(ASKED, learning_rate=1e-3, preservation_prompts=("a red dress", ""))


def test_prompts_of_the_plan_win_over_the_cards() -> None:
    plan = fitted(replace(ASKED, preservation_prompts=("a hat",)), CARD)
    assert plan.preservation_prompts == ("a hat",)


def test_without_preservation_no_prompts_are_taken() -> None:
    assert fitted(replace(ASKED, preservation="none"), CARD).preservation_prompts == ()


def test_a_model_whose_card_says_nothing_is_trained_as_asked() -> None:
    assert fitted(ASKED, ModelCard()) == ASKED


def test_the_rate_of_whole_weights_is_not_scaled() -> None:
    assert fitted(replace(ASKED, training_type="FULL"), CARD).learning_rate == ASKED.learning_rate
