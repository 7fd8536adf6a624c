"""The plan of a training."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from modelkit.errors import ModelErrorKind
from modelkit.training.errors import TrainingFailed

TrainingType = Literal["LORA", "FULL"]
Preservation = Literal["output", "none"]
TRIGGER = "[trigger]"
"""Stands for the trigger word in captions and prompts."""
MAX_RANK = 512
# What a resumed run may have been given otherwise: how long it goes on, and what is shown of it.
_MAY_CHANGE = frozenset(
    {"model", "steps", "start_from", "state_seconds", "validate_every"}
    | {"save_every", "sample_every", "sample_steps", "sample_prompts", "resolution"}
)


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """How to train.

    Attributes:
        model: The model's folder.
        trigger_word: What the new thing is called.
        training_type: `LORA`, or `FULL`, which trains the weights of the same layers.
        rank: Rank of the adapter; its alpha is the same, so that its scale is 1.
        steps: Steps of the optimiser.
        learning_rate: Of the optimiser, after a short rise.
        batch_size: Pictures of a pass; they have one size.
        gradient_accumulation: Passes of a step.
        optimizer: `adamw8bit` takes 8-bit AdamW where the device and the library are there; else fused AdamW runs.
        seed: Of everything that is drawn.
        save_every: Steps between two adapters that are kept.
        sample_every: Steps between two rounds of samples.
        sample_steps: Denoising steps of a sample.
        sample_prompts: What to draw; the first noise has seed 42, the next 43.
        bypass_guidance: Train without the embedding of the guidance scale.
        preservation: `output` keeps the model's own predictions for other prompts.
        preservation_weight: Weight of that loss.
        preservation_prompts: Those other prompts; the captions without the trigger word where there are none.
        masked_loss: Weigh the loss by the pictures' masks.
        resolution: Side of samples in pixels; the model's native one where None.
        caption_dropout: Share of pictures that are shown without their caption.
        validation_share: Share of the pictures that is held out to measure by; 0 measures by those that are trained on.
        validate_every: Steps between two measurements; a twentieth of the steps, at least ten, where None.
        state_seconds: Seconds between two states to resume from.
        start_from: Adapter to start from.
    """

    model: str
    trigger_word: str
    training_type: TrainingType = "LORA"
    rank: int = 16
    steps: int = 1000
    learning_rate: float = 1e-4
    batch_size: int = 1
    gradient_accumulation: int = 1
    optimizer: str = "adamw8bit"
    seed: int = 42
    save_every: int = 2000
    sample_every: int = 250
    sample_steps: int = 25
    sample_prompts: tuple[str, ...] = field(default=())
    bypass_guidance: bool = False
    preservation: Preservation = "none"
    preservation_weight: float = 1.0
    preservation_prompts: tuple[str, ...] = field(default=())
    masked_loss: bool = False
    resolution: int | None = None
    caption_dropout: float = 0.05
    validation_share: float = 0.0
    validate_every: int | None = None
    state_seconds: float = 60.0
    start_from: Path | None = None

    def __post_init__(self) -> None:
        if self.training_type not in get_args(TrainingType) or self.preservation not in get_args(Preservation):
            raise _refused("training_type is LORA or FULL, and preservation is output or none")
        if not 1 <= self.rank <= MAX_RANK:
            raise _refused(f"rank is 1 to {MAX_RANK}")
        counts = ("steps", "batch_size", "gradient_accumulation", "save_every", "sample_every", "sample_steps")
        for name in counts:
            if getattr(self, name) < 1:
                raise _refused(f"{name} is at least 1")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise _refused("learning_rate is above 0")
        if not 0 <= self.caption_dropout < 1 or not 0 <= self.validation_share < 1:
            raise _refused("caption_dropout and validation_share are from 0 to below 1")
        if not self.trigger_word:
            raise _refused("trigger_word has at least one character")

    @property
    def alpha(self) -> int:
        """The adapter's alpha."""
        return self.rank

    @property
    def measured_every(self) -> int:
        """Steps between two measurements on the fixed set."""
        return self.validate_every or max(10, self.steps // 20)

    def named(self, text: str) -> str:
        """Return a caption or prompt with the trigger word in place."""
        return text.replace(TRIGGER, self.trigger_word)

    def captioned(self, caption: str) -> str:
        """Return a picture's caption with the trigger word in place, in front where it is nowhere."""
        text = self.named(caption).strip()
        if self.trigger_word.lower() in text.lower():
            return text
        return f"{self.trigger_word}, {text}" if text else self.trigger_word

    def unnamed(self, caption: str) -> str:
        """Return a caption without the trigger word: what the picture shows beside the new thing."""
        lowered, word = caption.lower(), self.trigger_word.lower()
        while (at := lowered.find(word)) >= 0:
            caption = caption[:at] + caption[at + len(word) :]
            lowered = caption.lower()
        return " ".join(caption.split()).strip(" ,.;:")

    def binding(self) -> dict[str, Any]:
        """Return the members that a resumed run must have the same."""
        return {name: value for name, value in self._members().items() if name not in _MAY_CHANGE}

    def to_json(self) -> str:
        """Return the plan as a JSON object."""
        return json.dumps(self._members(), indent=2)

    @classmethod
    def from_json(cls, text: str) -> TrainingPlan:
        """Read a plan.

        Raises:
            TrainingFailed: It is not a plan.
        """
        try:
            data = json.loads(text)
            for name in ("sample_prompts", "preservation_prompts"):
                if name in data:
                    data[name] = tuple(map(str, data[name]))
            if data.get("start_from") is not None:
                data["start_from"] = Path(data["start_from"])
            return cls(**data)
        except (ValueError, TypeError, AttributeError) as error:
            raise _refused("it is not readable") from error

    def _members(self) -> dict[str, Any]:
        members = dataclasses.asdict(self)
        if self.start_from is not None:
            members["start_from"] = str(self.start_from)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in members.items()}


def _refused(why: str) -> TrainingFailed:
    return TrainingFailed(ModelErrorKind.VALIDATION, f"The plan of the training is not valid: {why}.")
