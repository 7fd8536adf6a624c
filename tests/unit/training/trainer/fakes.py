"""A store and a training service that do as they are told."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from meshkit.errors import MeshError
from meshkit.objects import ObjectInfo


class FakeStore:
    """Objects in memory; `faults` are raised by the next writes, `gate` holds them up."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.written: list[str] = []
        self.faults: list[MeshError] = []
        self.missing: MeshError | None = None
        self.gate = asyncio.Event()
        self.gate.set()

    async def put(self, tenant: str, path: str, data: Path, content_type: str) -> ObjectInfo:
        await self.gate.wait()
        if self.faults:
            raise self.faults.pop(0)
        self.objects[path] = await asyncio.to_thread(data.read_bytes)
        self.written.append(path)
        return self._info(path)

    async def download(self, tenant: str, path: str, dest: Path) -> ObjectInfo:
        if self.faults:
            raise self.faults.pop(0)
        if path not in self.objects and self.missing is not None:
            raise self.missing

        def write() -> None:
            dest.parent.mkdir(parents=True, exist_ok=True)
            dest.write_bytes(self.objects[path])

        await asyncio.to_thread(write)
        return self._info(path)

    async def delete(self, tenant: str, path: str) -> None:
        if self.faults:
            raise self.faults.pop(0)
        self.objects.pop(path, None)

    async def walk(self, tenant: str, prefix: str = "") -> AsyncIterator[ObjectInfo]:
        if self.faults:
            raise self.faults.pop(0)
        for path in sorted(self.objects):
            if path.startswith(prefix):
                yield self._info(path)

    def _info(self, path: str) -> ObjectInfo:
        return ObjectInfo(path, len(self.objects[path]), "1", "", datetime.now(UTC))


async def no_pause(_seconds: float) -> Any:
    await asyncio.sleep(0)
