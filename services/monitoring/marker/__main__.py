"""Runs the marker: `python -m services.monitoring.marker`."""

from __future__ import annotations

from meshkit import lifecycle
from services.monitoring.marker.composition import start
from services.monitoring.marker.config import MarkerSettings

if __name__ == "__main__":
    lifecycle.run_service("marker", MarkerSettings, start)
