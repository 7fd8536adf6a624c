"""Runs the training service: `python -m services.training`."""

from __future__ import annotations

from meshkit import lifecycle
from services.training.composition import start
from services.training.config import TrainingSettings

if __name__ == "__main__":
    lifecycle.run_service("training", TrainingSettings, start)
