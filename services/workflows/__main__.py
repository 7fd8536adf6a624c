"""Runs the workflows service: `python -m services.workflows`."""

from __future__ import annotations

from meshkit import lifecycle
from services.workflows.composition import start
from services.workflows.config import WorkflowsSettings

if __name__ == "__main__":
    lifecycle.run_service("workflows", WorkflowsSettings, start)
