"""Runs the trainer: `python -m services.training.trainer`."""

from __future__ import annotations

from meshkit import lifecycle
from services.training.trainer.composition import TrainerRuntime, start
from services.training.trainer.config import TrainerSettings

if __name__ == "__main__":
    lifecycle.run_service("trainer", TrainerSettings, start, TrainerRuntime.over)
