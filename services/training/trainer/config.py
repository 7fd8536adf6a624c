"""Settings of the trainer, by `ATELIER_*` variables."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from pydantic import Field

from meshkit.config import CommaSeparated
from meshkit.topology import TRAINING
from meshkit.worker.config import beside_program
from meshkit.worker.supervisor import ChildLimits
from services.training.trainer.dataset.config import CaptionSettings

QUEUE = "training"


class TrainerSettings(CaptionSettings):
    """The trainer's settings."""

    training_address: str = Field(default=TRAINING.address, description="host:port of the training service.")
    model: str = Field(default="models/garments/weights", description="Model to train: a folder or a hub name.")
    trainer_models: CommaSeparated = Field(
        default=(), description="Models to train besides it, by folders or hub names; trainings name them."
    )
    model_download: bool = Field(default=False, description="Whether a hub name may be downloaded.")
    trainer_device: str = Field(default="", description="Device to train on; that of ATELIER_DEVICE if empty.")
    device: str = Field(default="auto", description="Device: auto, cpu, cuda, cuda:1.")
    torch_threads: int = Field(default=0, ge=0, description="Processor threads of one computation; 0 for all.")
    trainer_state_seconds: float = Field(
        default=30.0, gt=0, le=60, description="Time between two states that a training is resumed from."
    )
    trainer_step_seconds: float = Field(
        default=600.0, gt=0, description="Longest silence of a training: a step, a sample picture, a measurement."
    )
    trainer_first_step_seconds: float = Field(
        default=1800.0, gt=0, description="The same before the first step, while models are loaded and compiled."
    )
    trainer_resolution: int = Field(
        default=0, ge=0, description="Side of the pictures that are trained on, in pixels; the model's own if 0."
    )
    trainer_one_job: bool = Field(
        default=False, description="Whether to take one training, work it to its end, and exit: for Kubernetes Jobs."
    )
    trainer_one_job_wait_seconds: float = Field(
        default=30.0, gt=0, le=3600, description="How long that one is waited for; without it, the trainer exits."
    )
    trainer_preservation: Literal["auto", "output", "none"] = Field(
        default="auto",
        description="Whether trainings keep the model's output for other prompts; auto does for models that ship.",
    )

    @property
    def places(self) -> tuple[str, ...]:
        """Folders and hub names of the models to train."""
        return tuple(dict.fromkeys(beside_program(place) for place in (self.model, *self.trainer_models)))

    @property
    def limits(self) -> ChildLimits:
        """What the child may take; its steps are longer than those of tasks."""
        return replace(
            super().limits,
            step_seconds=self.trainer_step_seconds,
            first_step_seconds=max(self.trainer_first_step_seconds, self.trainer_step_seconds),
            sample_seconds=0.5,
        )
