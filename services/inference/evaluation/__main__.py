"""Runs the evaluation role: `python -m services.inference.evaluation`."""

from __future__ import annotations

from meshkit import lifecycle
from services.inference.evaluation.composition import start
from services.inference.evaluation.config import EvaluationSettings

if __name__ == "__main__":
    lifecycle.run_service("evaluation", EvaluationSettings, start)
