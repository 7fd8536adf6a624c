"""An attempt's inputs as local files, before its handler sees the task."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, MutableMapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import BinaryIO

from meshkit.errors import ErrorKind, MeshError, invalid, too_large
from meshkit.fetcher import Fetcher
from meshkit.images.checks import ImageChecks
from meshkit.images.data import decode_data
from meshkit.objects import ObjectStore
from meshkit.paths import normalise_path
from meshkit.worker.handlers import InputRef
from meshkit.worker.lora_cache import LoraCache

CALLERS_FAULT = frozenset({ErrorKind.INVALID, ErrorKind.NOT_FOUND, ErrorKind.FORBIDDEN, ErrorKind.TOO_LARGE})
"""Kinds of errors that another attempt would meet again: the input itself is wrong."""
_AT_A_TIME = 2
_MAX_PATH_CHARS = 1024  # a longer text is no path in storage, so it can only be base64


class Inputs:
    """Makes local files of what tasks name.

    Args:
        objects: The store.
        fetcher: Fetches remote addresses, and refuses private ones.
        loras: Local copies of LoRA files.
        checks: Judges images and makes them for work.
        max_bytes: Largest image that comes as data or from an address; of what is stored, `checks` says it.
        timeout_seconds: How long a remote image may take.
    """

    def __init__(
        self,
        objects: ObjectStore,
        fetcher: Fetcher,
        loras: LoraCache,
        checks: ImageChecks,
        *,
        max_bytes: int,
        timeout_seconds: float,
    ) -> None:
        self._objects = objects
        self._fetcher = fetcher
        self._loras = loras
        self._checks = checks
        self._max_bytes = max_bytes
        self._timeout = timeout_seconds

    @asynccontextmanager
    async def fetched(
        self, tenant: str, refs: Sequence[InputRef], folder: Path, refused: MutableMapping[str, MeshError] | None = None
    ) -> AsyncIterator[Mapping[str, Path]]:
        """Yield local files of `refs`, by name; LoRA files are held for as long as the context lasts.

        Args:
            tenant: Whose they are.
            refs: The inputs.
            folder: Where the files go.
            refused: Takes what is wrong with inputs that are not required.

        Raises:
            MeshError: an input does not exist, is not what it should be, or cannot be had now.
        """
        files: dict[str, Path] = {}
        images = [ref for ref in refs if ref.kind != "lora"]
        async with AsyncExitStack() as stack:
            for ref in refs:
                if ref.kind == "lora":
                    files[ref.name] = await stack.enter_async_context(self._loras.lend(tenant, ref.source))
            # A few at a time: some have their bytes in memory, and what is wrong with the first stops the rest.
            for begin in range(0, len(images), _AT_A_TIME):
                some = images[begin : begin + _AT_A_TIME]
                async with asyncio.TaskGroup() as group:
                    running = [group.create_task(self._image_or_error(tenant, ref, folder)) for ref in some]
                for ref, one in zip(some, running, strict=True):
                    found = one.result()
                    if isinstance(found, Path):
                        files[ref.name] = found
                    # Where the mesh's own store is away, another attempt has a better chance.
                    elif ref.required or refused is None or not (found.kind in CALLERS_FAULT or is_remote(ref)):
                        raise found
                    else:
                        refused[ref.name] = found
            yield files

    async def _image_or_error(self, tenant: str, ref: InputRef, folder: Path) -> Path | MeshError:
        try:
            return await self._image(tenant, ref, folder)
        except MeshError as error:
            return error

    async def _image(self, tenant: str, ref: InputRef, folder: Path) -> Path:
        given = folder / f"input-{ref.name}-given"
        made = folder / f"input-{ref.name}-made.png"
        # Not in a thread: one that is cancelled meanwhile would leave the file open.
        with given.open("w+b") as file:
            await self._write(tenant, ref, file)
            work = await self._checks.make_for_work(tenant, file, made, path=ref.name)
        if work.made:
            await asyncio.to_thread(given.unlink)
            return made
        return await asyncio.to_thread(given.rename, folder / f"input-{ref.name}.{work.info.format.lower()}")

    async def _write(self, tenant: str, ref: InputRef, file: BinaryIO) -> None:
        """Write an input into a file; what is stored goes there straight, for photos are large."""
        path = None if is_remote(ref) or ref.source[:5].lower() == "data:" else _storage_path(ref.source)
        if path is not None:
            try:
                await self._objects.copy_into(tenant, path, file, self._checks.limits.max_bytes)
                return
            except MeshError as error:
                if error.kind is ErrorKind.TOO_LARGE:
                    raise too_large(f"{ref.name}: {error.message}") from None
                if error.reason != "OBJECT_NOT_FOUND":
                    raise
        await asyncio.to_thread(file.write, await self._bytes(tenant, ref))

    async def _bytes(self, tenant: str, ref: InputRef) -> bytes:
        source = ref.source
        if source[:5].lower() == "data:":
            return decode_data(source, path=ref.name, max_bytes=self._max_bytes)
        if is_remote(ref):
            return await self._fetcher.fetch(
                source,
                self._max_bytes,
                self._timeout,
                content_types=("image/",),
                path=ref.name,
                tenant=tenant,
            )
        try:
            return decode_data(source, path=ref.name, max_bytes=self._max_bytes)
        except MeshError:
            raise invalid(ref.name, "There is no such image in storage.", "not_found") from None


def is_remote(ref: InputRef) -> bool:
    """Tell whether an input is an address, so that somebody else's server decides how long it takes."""
    return ref.kind != "lora" and ref.source[:8].lower().startswith(("http://", "https://"))


def _storage_path(source: str) -> str | None:
    """Return the path that `source` may be, or None where it can only be base64."""
    if len(source) > _MAX_PATH_CHARS:
        return None
    try:
        return normalise_path(source)
    except MeshError:
        return None
