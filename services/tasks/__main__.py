"""Runs the tasks service: `python -m services.tasks`."""

from __future__ import annotations

from meshkit import lifecycle
from services.tasks.composition import start
from services.tasks.config import TasksSettings

if __name__ == "__main__":
    lifecycle.run_service("tasks", TasksSettings, start)
