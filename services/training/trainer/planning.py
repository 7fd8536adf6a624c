"""What to do with a training: the dataset that is made for it, and the plan of its steps."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from atelier.training.v1.trainer_service_pb2 import TrainingSpec
from atelier.training.v1.training_pb2 import (
    CAPTIONING_STRATEGY_AUTO,
    CAPTIONING_STRATEGY_PROMPT,
    CAPTIONING_STRATEGY_TRIGGER_ONLY,
    ENTITY_TYPE_SUBJECT,
    TRAINING_TYPE_FULL,
    CaptioningStrategy,
)
from google.protobuf.json_format import MessageToDict

from modelkit.card import ModelCard
from modelkit.training.plan import Preservation, TrainingPlan
from modelkit.training.profile import fitted
from services.training.trainer.base_models import TrainableModel
from services.training.trainer.config import TrainerSettings
from services.training.trainer.dataset.captions import Strategy
from services.training.trainer.dataset.domain import DatasetRequest, MaskKind
from services.training.trainer.dataset.transforms import parse_transforms

_STRATEGIES: Final[dict[CaptioningStrategy.ValueType, Strategy]] = {
    CAPTIONING_STRATEGY_TRIGGER_ONLY: "trigger_only",
    CAPTIONING_STRATEGY_PROMPT: "prompt",
    CAPTIONING_STRATEGY_AUTO: "auto",
}


def dataset_request(spec: TrainingSpec, base: TrainableModel, settings: TrainerSettings) -> DatasetRequest:
    """Return what the dataset of a training is made of, and how.

    Raises:
        MeshError: A transform is not one; INVALID.
    """
    training, card = spec.training, base.card
    masks: MaskKind = "none"
    if spec.masked_loss:
        masks = "person" if training.entity_type == ENTITY_TYPE_SUBJECT else "garment"
    return DatasetRequest(
        sources=tuple(training.source_images),
        trigger_word=training.trigger_word,
        resolution=_resolution(card, settings.trainer_resolution),
        multiple=card.size_multiple,
        max_side=card.max_size,
        transforms=parse_transforms([MessageToDict(one) for one in training.preprocessing_transforms]),
        strategy=_STRATEGIES.get(training.preprocessing_captioning_strategy, "trigger_only"),
        prompt=training.preprocessing_captioning_prompt,
        masks=masks,
        seed=spec.seed,
    )


def training_plan(
    spec: TrainingSpec, base: TrainableModel, settings: TrainerSettings, start_from: Path | None
) -> TrainingPlan:
    """Return the plan of a training's steps.

    Raises:
        TrainingFailed: A member of it is out of range; VALIDATION.
    """
    training = spec.training
    asked = TrainingPlan(
        model=str(base.folder),
        trigger_word=training.trigger_word,
        training_type="FULL" if training.training_type == TRAINING_TYPE_FULL else "LORA",
        rank=training.rank,
        steps=spec.total_steps,
        learning_rate=training.learning_rate,
        batch_size=spec.batch_size,
        gradient_accumulation=spec.gradient_accumulation,
        optimizer=spec.optimizer,
        seed=spec.seed,
        save_every=spec.save_every,
        sample_every=spec.sample_every,
        sample_steps=spec.sample_steps,
        sample_prompts=tuple(training.sample_prompts),
        bypass_guidance=training.bypass_guidance_embedding,
        preservation=_preservation(base, settings),
        masked_loss=spec.masked_loss,
        resolution=settings.trainer_resolution or None,
        state_seconds=settings.trainer_state_seconds,
        start_from=start_from,
    )
    return fitted(asked, base.card)


def _resolution(card: ModelCard, wanted: int) -> int:
    side = min(wanted or card.native_size, card.max_size)
    return max(card.size_multiple, side // card.size_multiple * card.size_multiple)


def _preservation(base: TrainableModel, settings: TrainerSettings) -> Preservation:
    if settings.trainer_preservation == "auto":
        return "output" if base.shipped else "none"
    return settings.trainer_preservation
