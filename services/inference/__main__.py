"""Runs the inference worker: `python -m services.inference`."""

from __future__ import annotations

from meshkit import lifecycle
from services.inference.composition import start
from services.inference.config import InferenceSettings

if __name__ == "__main__":
    lifecycle.run_service("inference", InferenceSettings, start)
