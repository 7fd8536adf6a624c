"""Runs capture: `python -m services.monitoring.capture`."""

from __future__ import annotations

from meshkit import lifecycle
from services.monitoring.capture.composition import start
from services.monitoring.capture.config import CaptureSettings

if __name__ == "__main__":
    lifecycle.run_service("capture", CaptureSettings, start)
