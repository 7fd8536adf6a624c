"""What callers ask of cameras."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from meshkit.logging import get_logger
from services.monitoring.capture.access import CaptureAccess
from services.monitoring.capture.cameras.domain import CameraRecord
from services.monitoring.capture.cameras.store import CameraStore
from services.monitoring.capture.errors import camera_has_folder, camera_not_found
from services.monitoring.capture.pages import PageFound, PageWanted

_log = get_logger(__name__)


class CameraDesk:
    """Shows cameras and switches them.

    Args:
        store: The rows.
        access: Judges callers.
        on_change: Called when a camera was switched or removed.
        has_folder: Tells whether the folder of a camera is there; blocks.
    """

    def __init__(
        self,
        store: CameraStore,
        access: CaptureAccess,
        on_change: Callable[[], None],
        has_folder: Callable[[str], bool],
    ) -> None:
        self._store = store
        self._access = access
        self._on_change = on_change
        self._has_folder = has_folder

    async def get(self, camera_id: str) -> CameraRecord:
        """Return a camera.

        Raises:
            MeshError: There is none for this caller.
        """
        found = await self._store.find_camera(camera_id) if self._access.reads() else None
        if found is None:
            raise camera_not_found(camera_id)
        return found

    async def list_page(self, page: PageWanted) -> PageFound[CameraRecord]:
        """Return a page of cameras; an empty one for who may see none."""
        return await self._store.list_cameras(page) if self._access.reads() else PageFound((), 0)

    async def switch(self, camera_id: str, *, enabled: bool) -> CameraRecord:
        """Switch a camera on or off; what it is already changes nothing.

        Raises:
            MeshError: There is none for this caller.
        """
        found = await self._store.set_enabled(camera_id, enabled=enabled) if self._access.writes() else None
        if found is None:
            raise camera_not_found(camera_id)
        self._on_change()
        return found

    async def remove(self, camera_id: str) -> None:
        """Remove a camera whose folder is gone; what it has brought stays until it is forgotten.

        Raises:
            MeshError: There is none for this caller, or its folder is there.
        """
        found = await self._store.find_camera(camera_id) if self._access.writes() else None
        if found is None:
            raise camera_not_found(camera_id)
        if await asyncio.to_thread(self._has_folder, camera_id):
            raise camera_has_folder(camera_id)
        if not await self._store.remove_camera(camera_id):
            raise camera_not_found(camera_id)
        _log.info("camera_removed", camera_id=camera_id)
        self._on_change()
