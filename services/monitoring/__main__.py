"""Runs the monitoring service: `python -m services.monitoring`."""

from __future__ import annotations

from meshkit import lifecycle
from services.monitoring.composition import start
from services.monitoring.config import MonitoringSettings

if __name__ == "__main__":
    lifecycle.run_service("monitoring", MonitoringSettings, start)
