"""Thumbnails of stored images: made on demand by the guarded decoder, and kept in memory for a while.

A thumbnail follows from the version of its image, so its ETag is that of the image with its width, and a client that
has it is answered without anything being read.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from functools import partial

from meshkit.copies import CopiedObjects, open_copy
from meshkit.errors import ErrorKind, MeshError
from meshkit.images.checks import ImageChecks
from meshkit.objects import ObjectInfo
from meshkit.transcoding.decoding import Violation
from meshkit.transcoding.errors import RefusedRequestError
from services.gateway.conditions import PathTurns

WIDTHS = (256, 512)
WEBP = "image/webp"


def width_of(text: str) -> int:
    """Return the width that a request asks for.

    Raises:
        RefusedRequestError: It is none of `WIDTHS`.
    """
    if text not in {str(width) for width in WIDTHS}:
        raise _refusal(f"Input should be {' or '.join(map(str, WIDTHS))}", "enum")
    return int(text)


def described(info: ObjectInfo, width: int) -> ObjectInfo:
    """Return what is known of a thumbnail before it is made; its size is not."""
    return dataclasses.replace(info, etag=f"{info.etag}-w{width}", content_type=WEBP, size=0)


class Thumbnails:
    """Makes thumbnails, each version once while it is kept.

    Args:
        objects: The object store.
        checks: Decodes.
        most_bytes: Bytes of thumbnails that are kept; the least recently asked for go first.
    """

    def __init__(self, objects: CopiedObjects, checks: ImageChecks, most_bytes: int) -> None:
        self._objects = objects
        self._checks = checks
        self._most = most_bytes
        self._kept: OrderedDict[tuple[str, str, str], bytes] = OrderedDict()
        self._bytes = 0
        self._turns = PathTurns()

    async def get(self, tenant: str, info: ObjectInfo, width: int) -> bytes:
        """Return a thumbnail of an image.

        Raises:
            RefusedRequestError: It is a film, no image, or one that cannot be decoded.
            MeshError: `UNAVAILABLE` where the store or the decoder has no time.
        """
        key = (tenant, info.path, described(info, width).etag)
        # Who asks for the same at the same moment waits for the first.
        async with self._turns.of(tenant, f"{width}/{info.path}"):
            kept = self._kept.get(key)
            if kept is not None:
                self._kept.move_to_end(key)
                return kept
            made = await self._made(tenant, info, width)
        self._keep(key, made)
        return made

    async def _made(self, tenant: str, info: ObjectInfo, width: int) -> bytes:
        if info.content_type.startswith("video/"):
            raise _refusal("Only images have thumbnails, and this is a film", "image_format")
        most = self._checks.limits.max_bytes
        if info.size > most:
            raise _refusal(f"Images of more than {most} bytes have no thumbnails", "image_size")
        try:
            return await self._checks.make_thumbnail(
                tenant, partial(open_copy, self._objects, tenant, info.path, most), width
            )
        except MeshError as error:
            if error.kind is not ErrorKind.INVALID:
                raise
            found = [Violation(("query", "w"), f"The image {one.message}", one.type) for one in error.violations]
            raise RefusedRequestError(found) from None

    def _keep(self, key: tuple[str, str, str], made: bytes) -> None:
        if key in self._kept or len(made) > self._most:
            return
        self._kept[key] = made
        self._bytes += len(made)
        while self._bytes > self._most:
            _, dropped = self._kept.popitem(last=False)
            self._bytes -= len(dropped)


def _refusal(message: str, kind: str) -> RefusedRequestError:
    return RefusedRequestError([Violation(("query", "w"), message, kind)])
