"""LoRA files on local disk: fetched once for each version, checked, kept within a limit of bytes.

A file's name follows from its tenant, path and ETag, so a path that is written anew gives a new file, and the child
sees the same local path for as long as the adapter is the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import struct
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from meshkit.errors import invalid, too_large
from meshkit.loras import object_path
from meshkit.objects import ObjectInfo, ObjectStore

_MAX_HEADER_BYTES = 100 << 20  # as the safetensors library has it


class LoraCache:
    """Local copies of LoRA files.

    Args:
        objects: The store they come from.
        folder: Where the copies lie.
        max_bytes: Bytes of all copies that are not in use.
        max_file_bytes: Largest file that is taken.
        shared_tenant: Tenant whose LoRAs are everyone's.
    """

    def __init__(
        self,
        objects: ObjectStore,
        folder: Path,
        *,
        max_bytes: int,
        max_file_bytes: int,
        shared_tenant: str = "shared",
    ) -> None:
        self._objects = objects
        self._folder = folder
        self._max_bytes = max_bytes
        self._max_file_bytes = max_file_bytes
        self._shared_tenant = shared_tenant
        self._used: Counter[Path] = Counter()
        self._fetching: dict[Path, asyncio.Lock] = {}

    @asynccontextmanager
    async def lend(self, tenant: str, path: str) -> AsyncIterator[Path]:
        """Lend the local copy of the tenant's LoRA, or of the shared one of that path; it stays while it is lent.

        Raises:
            MeshError: INVALID where there is none, or where it is no safetensors file.
        """
        owner, info = await self._find(tenant, path)
        if info.size > self._max_file_bytes:
            raise too_large(f"The LoRA {path} has {info.size} bytes; at most {self._max_file_bytes} are taken.")
        name = hashlib.sha256(f"{owner}\0{info.path}\0{info.etag}".encode()).hexdigest()
        local = self._folder / f"{name}.safetensors"
        self._used[local] += 1
        try:
            await self._ensure(owner, info.path, local, path)
            yield local
        finally:
            self._used[local] -= 1
            if not self._used[local]:
                del self._used[local]
                self._fetching.pop(local, None)

    async def _find(self, tenant: str, path: str) -> tuple[str, ObjectInfo]:
        key = object_path(path)
        for owner in (tenant, self._shared_tenant):
            if (info := await self._objects.stat(owner, key)) is not None:
                return owner, info
        raise invalid("lora", f"The LoRA {path} does not exist.", "not_found")

    async def _ensure(self, owner: str, key: str, local: Path, shown: str) -> None:
        async with self._fetching.setdefault(local, asyncio.Lock()):
            if await asyncio.to_thread(_touched, local):
                return
            self._folder.mkdir(parents=True, exist_ok=True)
            scratch = local.with_suffix(f".{os.getpid()}.part")
            try:
                await self._objects.download(owner, key, scratch)
                await asyncio.to_thread(check_safetensors, scratch, shown)
                scratch.replace(local)
            finally:
                scratch.unlink(missing_ok=True)
            await asyncio.to_thread(self._evict)

    def _evict(self) -> None:
        copies = []
        for path in self._folder.glob("*.safetensors"):
            with contextlib.suppress(FileNotFoundError):  # another worker on this folder evicts too
                stat = path.stat()
                copies.append((stat.st_mtime, stat.st_size, path))
        total = sum(size for _, size, _ in copies)
        for _, size, path in sorted(copies):
            if total <= self._max_bytes:
                return
            if not self._used[path]:
                path.unlink(missing_ok=True)
                total -= size


def _touched(path: Path) -> bool:
    """Note the use of a copy, which is the order of eviction; False where there is none."""
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    return True


def check_safetensors(path: Path, shown: str) -> None:
    """Check that a file is safetensors and nothing else: a header that describes exactly the bytes that follow.

    https://huggingface.co/docs/safetensors: eight bytes of little-endian length, a JSON object, the tensors' bytes.

    Raises:
        MeshError: INVALID where it is not.
    """
    broken = invalid("lora", f"The LoRA {shown} is not a safetensors file.", "safetensors")
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(8)
        if len(head) < 8:
            raise broken
        (length,) = struct.unpack("<Q", head)
        if not 2 <= length <= min(_MAX_HEADER_BYTES, size - 8):
            raise broken
        try:
            header = json.loads(file.read(length))
        except (ValueError, RecursionError):
            raise broken from None
    if not isinstance(header, dict) or not _covers(header, size - 8 - length):
        raise broken


def _covers(header: dict[str, object], size: int) -> bool:
    """Tell whether the tensors lie one after the other and fill the file."""
    spans: list[tuple[int, int]] = []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
        if not (isinstance(offsets, list) and len(offsets) == 2 and all(type(offset) is int for offset in offsets)):
            return False
        spans.append((offsets[0], offsets[1]))
    end = 0
    for start, stop in sorted(spans):
        if start != end or stop < start:
            return False
        end = stop
    return end == size
