"""What became of the workflow of a photo. Pure.

What reads workflows is in `workflow_files`: it needs their contracts, which only a hot folder has loaded.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID


class PhotoRunState(enum.StrEnum):
    """What has become of the workflow of a photo."""

    WAITING = "WAITING"
    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"


@dataclass(frozen=True, slots=True)
class RunRecord:
    """The workflow of a photo.

    Attributes:
        photo_id: The photo.
        stored_path: Where the photo lies in storage.
        path: The photo's file, for people.
        state: What has become of it.
        workflow_id: The workflow, once made.
        error: Why it made nothing.
        results: Paths in storage of what it made.
    """

    photo_id: UUID
    stored_path: str
    path: str
    state: PhotoRunState
    workflow_id: UUID | None = None
    error: str | None = None
    results: Sequence[str] = ()


def failed(run: RunRecord, error: str) -> RunRecord:
    """Return a run that made nothing."""
    return RunRecord(run.photo_id, run.stored_path, run.path, PhotoRunState.FAILED, run.workflow_id, error)
