"""What cameras need of a database."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from services.monitoring.capture.cameras.domain import CameraRecord, CameraStatus
from services.monitoring.capture.pages import PageFound, PageWanted


class CameraStore(Protocol):
    """Cameras as rows. Those that were removed are there for nobody until their folder comes again."""

    async def find_camera(self, camera_id: str) -> CameraRecord | None:
        """Return a camera."""
        ...

    async def list_cameras(self, page: PageWanted) -> PageFound[CameraRecord]:
        """Return cameras by their names."""
        ...

    async def add_cameras(self, camera_ids: Collection[str]) -> None:
        """Write those that are not known yet, or were removed."""
        ...

    async def names(self) -> Sequence[str]:
        """Return the names of all."""
        ...

    async def disabled(self) -> frozenset[str]:
        """Return those whose photos are not taken."""
        ...

    async def set_enabled(self, camera_id: str, *, enabled: bool) -> CameraRecord | None:
        """Switch one on or off, and tell of it where that changes it; None where there is no such."""
        ...

    async def remove_camera(self, camera_id: str) -> bool:
        """Remove one; whether it was there."""
        ...

    async def judge_all(self, troubles: Mapping[str, str], offline_seconds: float, notes: Mapping[str, str]) -> int:
        """Write the state of each where it has changed, and tell of it; what is said of it as well, untold.

        Nothing where another replica does that.

        Args:
            troubles: What keeps folders from being read, by camera.
            offline_seconds: How long no photo must have come for a camera to be offline.
            notes: What else there is to say, by camera.

        Returns:
            How many have changed.
        """
        ...

    async def count_states(self) -> Mapping[CameraStatus, int]:
        """Return how many of those whose photos are taken are in each state."""
        ...

    async def judge_no_more(self) -> None:
        """Let another replica judge at once."""
        ...
