"""The one door for files that come with a request.

A file inside JSON that is too large for an RPC is checked and put into the object store under `staging/`; its member
then reads `staging:<path>`, which the service that owns the request resolves. A sweeper removes what was never claimed.
"""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from collections.abc import Sequence
from typing import Protocol

from meshkit.errors import Kind, MeshError
from services.gateway.transcoding.codec import Upload, Violation
from services.gateway.transcoding.errors import RefusedRequestError

STAGING_FOLDER = "staging"
STAGING_SCHEME = "staging:"


class Store(Protocol):
    """Where files go."""

    async def put(self, tenant: str, path: str, data: bytes, content_type: str = ...) -> object:
        """Write an object."""
        ...


async def sniff(data: bytes) -> str:
    """Check that bytes are an image and return its media type, judged by content alone.

    Raises:
        MeshError: `INVALID` with what is wrong with it.
    """
    from meshkit import images  # noqa: PLC0415 - Pillow takes half a second that the start need not wait for

    return (await asyncio.to_thread(images.inspect, data)).content_type


class UploadDoor:
    """Stages the files of a request."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def stage(self, tenant: str, uploads: Sequence[Upload], key: str = "") -> None:
        """Check and stage files, all of them or none, and put their staged names in their places.

        Args:
            tenant: Tenant that they belong to.
            uploads: The files.
            key: The request's `Idempotency-Key`. A repeated request must read alike, so that under a key the names
                follow from it and the content; without one they are drawn.

        Raises:
            RefusedRequestError: one of them is no acceptable image.
        """
        from meshkit import images  # noqa: PLC0415 - as above

        files: list[tuple[bytes, str]] = []
        violations: list[Violation] = []
        for upload in uploads:
            try:
                data = await asyncio.to_thread(images.decode_data, upload.data)
                files.append((data, await sniff(data)))
            except MeshError as error:
                if error.kind is not Kind.INVALID:
                    raise
                texts = [one.message for one in error.violations] or [error.message]
                violations += [Violation(upload.loc, text, "image") for text in texts]
        if violations:
            raise RefusedRequestError(violations)
        for upload, (data, content_type) in zip(uploads, files, strict=True):
            path = f"{STAGING_FOLDER}/{_name(key, upload, data)}"
            await self._store.put(tenant, path, data, content_type)
            upload.replace(STAGING_SCHEME + path)


def _name(key: str, upload: Upload, data: bytes) -> uuid.UUID:
    if not key:
        return uuid.uuid4()
    digest = hashlib.sha256(data).hexdigest()
    return uuid.uuid5(uuid.NAMESPACE_OID, f"{key}\n{upload.loc}\n{digest}")
