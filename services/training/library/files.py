"""The objects of LoRAs: into the library, into the bin and back, each step so that it may be repeated."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from meshkit.errors import ErrorKind, MeshError
from meshkit.images.checks import ImageChecks
from meshkit.images.data import decode_data
from meshkit.logging import get_logger
from meshkit.objects import ObjectStore
from services.training.library.domain import THUMBNAIL_FOLDER, LoraRecord, LoraState
from services.training.library.store import LoraStore

_log = get_logger(__name__)

CONTENT_TYPE: Final = "application/octet-stream"


class LoraFiles:
    """Moves objects.

    Args:
        objects: The object store.
        checks: Judges pictures.
        store: Knows where an object belongs.
    """

    def __init__(self, objects: ObjectStore, checks: ImageChecks, store: LoraStore) -> None:
        self._objects = objects
        self._checks = checks
        self._store = store

    async def exists(self, tenant: str, path: str) -> bool:
        """Tell whether there is an object."""
        return await self._objects.stat(tenant, path) is not None

    async def put(self, record: LoraRecord, file: Path) -> None:
        """Write the object of a LoRA that was just noted, and note that it is there."""
        await self._objects.put(record.tenant, record.object_path, file, CONTENT_TYPE)
        await self._store.settle(record)

    async def settle(self, record: LoraRecord) -> None:
        """Bring the object of a LoRA to where its state says, and note that it is there.

        One that was noted and whose object never came is forgotten.
        """
        stored, binned = record.object_path, record.bin_path
        source, target = (stored, binned) if record.state is LoraState.DELETED else (binned, stored)
        there = await self.exists(record.tenant, target)
        waits = record.bin_name is not None and await self.exists(record.tenant, source)
        if waits:
            # What is at the target of a move that did not end may be half of it.
            await self._objects.copy(record.tenant, source, target)
            await self._objects.delete(record.tenant, source)
        elif not there and record.state is LoraState.STORED:
            await self._store.remove(record)
            return
        await self._store.settle(record)

    async def put_thumbnail(self, record: LoraRecord, data_url: str) -> str | None:
        """Write the picture that a file carries; None where it is none."""
        try:
            data = decode_data(data_url)
            info = await self._checks.check(record.tenant, data)
        except MeshError as error:
            if error.kind not in {ErrorKind.INVALID, ErrorKind.TOO_LARGE}:
                raise
            _log.info("lora_thumbnail_refused", why=error.message)
            return None
        path = f"{THUMBNAIL_FOLDER}/{record.id}.{info.format.lower()}"
        await self._objects.put(record.tenant, path, data, info.content_type)
        return path

    async def copy_thumbnail(self, record: LoraRecord, source: str) -> str:
        """Copy a picture of a training, which goes with the training's objects one day; return its path."""
        path = f"{THUMBNAIL_FOLDER}/{record.id}.{source.rpartition('.')[2]}"
        await self._objects.copy(record.tenant, source, path)
        return path

    async def thumbnail(self, record: LoraRecord) -> tuple[bytes, str] | None:
        """Return a LoRA's picture and its media type."""
        if record.thumbnail is None:
            return None
        info = await self._objects.stat(record.tenant, record.thumbnail)
        if info is None:
            return None
        return await self._objects.get(record.tenant, record.thumbnail), info.content_type
