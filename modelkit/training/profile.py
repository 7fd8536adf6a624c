"""A plan fitted to its model, by what the model's card says of trainings."""

from __future__ import annotations

from dataclasses import replace

from modelkit.card import ModelCard
from modelkit.training.plan import TrainingPlan


def fitted(plan: TrainingPlan, card: ModelCard) -> TrainingPlan:
    """Return a plan of what was asked for, as this model needs it.

    An adapter's learning rate is scaled, and the prompts that are preserved are the card's unless the plan names some.
    To be called once, where a plan is made: a training does what its plan says.

    Args:
        plan: What was asked for.
        card: Card of the model to train.
    """
    prompts = plan.preservation_prompts
    if plan.preservation == "output" and not prompts:
        prompts = card.lora.preserved_prompts
    # The scale is that of adapters: whole weights are as sensitive in a narrow layer as in a wide one.
    rate = plan.learning_rate * (card.lora.learning_rate_scale if plan.training_type == "LORA" else 1.0)
    return replace(plan, learning_rate=rate, preservation_prompts=prompts)
