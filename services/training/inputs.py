"""Images that come with a request to train: judged, and put below the training's folder, so that rows hold paths."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from meshkit.errors import MeshError, invalid
from meshkit.fetcher import Fetcher
from meshkit.images.checks import ImageChecks
from meshkit.images.data import decode_data
from meshkit.objects import ObjectStore
from meshkit.paths import normalise_path
from meshkit.staging import STAGING_SCHEME, is_staged
from meshkit.stored_bytes import StoredBytes

_AT_ONCE = 8
_REMOTE = ("http://", "https://")


@dataclass(frozen=True, slots=True)
class SourceImage:
    """An image that passed.

    Attributes:
        path: Path in storage or address.
        data: Its bytes, where they came in the request.
        staged: Upload to copy, where it was staged.
        content_type: Media type of the object.
        size: Bytes that it brings along.
    """

    path: str
    data: bytes | None = None
    staged: str | None = None
    content_type: str = ""
    size: int = 0

    @property
    def is_written(self) -> bool:
        """Whether an object is written for it."""
        return self.data is not None or self.staged is not None


class SourceImages:
    """Judges the images of a request and moves them into place.

    Args:
        objects: The object store.
        fetcher: Judges addresses.
        checks: Judges images.
        stored: Knows how much a tenant stores.
        max_bytes: Bytes that one request may bring along.
    """

    def __init__(
        self, objects: ObjectStore, fetcher: Fetcher, checks: ImageChecks, stored: StoredBytes, *, max_bytes: int
    ) -> None:
        self._objects = objects
        self._fetcher = fetcher
        self._checks = checks
        self._stored = stored
        self._max_bytes = max_bytes

    async def accept(self, images: Sequence[str], tenant: str, folder: str, path: str) -> list[SourceImage]:
        """Judge images.

        Args:
            images: Paths, addresses, base64, data URLs or staged uploads.
            tenant: Tenant of the training.
            folder: Folder of its objects.
            path: Path of the member, for errors.

        Returns:
            The images in their order, not yet written.

        Raises:
            MeshError: `INVALID` naming the first that cannot be, `EXHAUSTED` for a tenant that stores too much.
        """
        self._stored.check(tenant)
        turns = asyncio.Semaphore(_AT_ONCE)

        async def one(index: int, text: str) -> SourceImage | MeshError:
            async with turns:
                try:
                    return await self._accepted(text, tenant, f"{folder}inputs/{index:04d}", f"{path}[{index}]")
                except MeshError as error:
                    return error

        found = await asyncio.gather(*(one(index, text) for index, text in enumerate(images)))
        accepted: list[SourceImage] = []
        for image in found:
            if isinstance(image, MeshError):
                raise image
            accepted.append(image)
        brought = sum(image.size for image in accepted)
        if brought > self._max_bytes:
            raise invalid(path, f"bring along {brought} bytes; {self._max_bytes} are the most", "too_large")
        self._stored.check(tenant, brought)
        return accepted

    async def write(self, tenant: str, images: Sequence[SourceImage]) -> None:
        """Write the objects of accepted images."""
        for image in images:
            if image.data is not None:
                await self._objects.put(tenant, image.path, image.data, image.content_type)
            elif image.staged is not None:
                await self._objects.copy(tenant, image.staged, image.path)

    async def settle(self, tenant: str, images: Sequence[SourceImage]) -> None:
        """Delete the uploads that were taken over, once the training is committed."""
        for image in images:
            if image.staged is not None:
                await self._objects.delete(tenant, image.staged)

    async def discard(self, tenant: str, folder: str) -> None:
        """Delete what was written for a training that did not come to be."""
        await self._objects.delete_prefix(tenant, folder)

    async def _accepted(self, text: str, tenant: str, stem: str, path: str) -> SourceImage:
        if text.startswith(STAGING_SCHEME):
            return await self._taken_over(text, tenant, stem, path)
        if text[:8].lower().startswith(_REMOTE):
            self._fetcher.check(text, path=path)
            return SourceImage(text)
        if (stored := await self._stored_path(text, tenant, path)) is not None:
            return SourceImage(stored)
        data = await asyncio.to_thread(partial(decode_data, text, path=path))
        info = await self._checks.check(tenant, data, path=path)
        return SourceImage(f"{stem}.{info.format.lower()}", data=data, content_type=info.content_type, size=len(data))

    async def _taken_over(self, text: str, tenant: str, stem: str, path: str) -> SourceImage:
        try:
            staged = normalise_path(text.removeprefix(STAGING_SCHEME))
        except MeshError:
            staged = ""
        info = await self._objects.stat(tenant, staged) if is_staged(staged) else None
        if info is None:
            raise invalid(path, "The upload does not exist any more", "unknown_upload")
        # The gateway has judged it, and the trainer judges all it takes once more.
        extension = info.content_type.partition("/")[2] or "bin"
        return SourceImage(f"{stem}.{extension}", staged=staged, content_type=info.content_type, size=info.size)

    async def _stored_path(self, text: str, tenant: str, path: str) -> str | None:
        """Return the path in storage that a text names, or None where it looks like base64."""
        if text[:5].lower() == "data:" or len(text) > 1024:
            return None
        looks_like_path = ".." in text or "\\" in text or "." in text.rpartition("/")[2]
        try:
            normal = normalise_path(text)
        except MeshError as error:
            if not looks_like_path:
                return None
            message = error.violations[0].message if error.violations else error.message
            raise invalid(path, message, "path") from None
        if await self._objects.stat(tenant, normal) is not None:
            return normal
        if looks_like_path:
            raise invalid(path, f"There is no object {normal!r} in storage", "unknown_object")
        return None
