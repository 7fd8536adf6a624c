"""Put the files of a request into the object store, before the request is forwarded.

A file inside JSON that is too large for an RPC is checked and put into the object store under `staging/`; its member
then reads `staging:<path>`, which the service that owns the request resolves. The service moves what it takes over;
what it refuses is deleted before the caller is answered. A sweeper removes what a crash left.
"""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Protocol

from meshkit.errors import ErrorKind, MeshError
from meshkit.images.checks import ImageChecks
from meshkit.images.data import decode_data
from meshkit.logging import get_logger
from meshkit.staging import STAGING_FOLDER, STAGING_SCHEME
from meshkit.transcoding.decoding import Upload, Violation
from meshkit.transcoding.errors import RefusedRequestError

_log = get_logger(__name__)

# Errors that say for sure that the service did nothing. After the others it may have done what was asked.
_REFUSALS = frozenset(
    {
        ErrorKind.INVALID,
        ErrorKind.UNAUTHENTICATED,
        ErrorKind.FORBIDDEN,
        ErrorKind.NOT_FOUND,
        ErrorKind.CONFLICT,
        ErrorKind.UNIMPLEMENTED,
    }
)


class StagingStore(Protocol):
    """Where files go."""

    async def put(self, tenant: str, path: str, data: bytes, content_type: str = ...) -> object:
        """Write an object."""
        ...

    async def delete(self, tenant: str, path: str) -> None:
        """Delete an object."""
        ...


@dataclass(slots=True)
class StagedFiles:
    """The time that staged files spend here.

    Attributes:
        unclaimed: Whether nobody will take them over, so that they go when their request ends.
    """

    unclaimed: bool = True


@dataclass(slots=True)
class _StagedMember:
    """A staged object and the requests that name it: more than one only where a request is repeated under its key."""

    users: int = 0
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class UploadStager:
    """Stages the files of a request.

    Args:
        store: Where they go.
        checks: Judges them.
    """

    def __init__(self, store: StagingStore, checks: ImageChecks) -> None:
        self._store = store
        self._checks = checks
        self._places: dict[tuple[str, str], _StagedMember] = {}

    @asynccontextmanager
    async def staged(
        self, tenant: str, uploads: Sequence[Upload], *, key: str = "", request: bytes = b""
    ) -> AsyncIterator[StagedFiles]:
        """Check and stage files, all of them or none, and put their staged names in their places.

        Within the block the request is made. They are deleted at its end where it raises a refusal, or where the block
        says that they are unclaimed.

        Args:
            tenant: Tenant that they belong to.
            uploads: The files.
            key: The request's `Idempotency-Key`. A repeated request must read alike, so that under a key the names
                follow from it, the content and the rest of the request; without one they are drawn.
            request: The rest of the request. Another one under the same key has objects of its own, so that its
                refusal cannot take away those of the first.

        Raises:
            RefusedRequestError: one of them is no acceptable image.
            MeshError: `UNAVAILABLE`: the object store does not answer.
        """
        files = await self._checked(tenant, uploads)
        named = zip(uploads, files, strict=True)
        paths = [f"{STAGING_FOLDER}/{_name(key, request, upload, data)}" for upload, (data, _) in named]
        places = [(tenant, path) for path in dict.fromkeys(paths)]
        for place in places:
            self._places.setdefault(place, _StagedMember()).users += 1
        stay = StagedFiles()
        try:
            for upload, path, (data, content_type) in zip(uploads, paths, files, strict=True):
                async with self._places[tenant, path].lock:
                    await self._store.put(tenant, path, data, content_type)
                upload.replace(STAGING_SCHEME + path)
            files.clear()
            stay.unclaimed = False
            yield stay
        except MeshError as error:
            stay.unclaimed = stay.unclaimed or error.kind in _REFUSALS
            raise
        finally:
            # A request that is cut off now leaves either all of its bookkeeping or none.
            await asyncio.shield(asyncio.ensure_future(self._leave(places, stay)))

    async def _checked(self, tenant: str, uploads: Sequence[Upload]) -> list[tuple[bytes, str]]:
        files: list[tuple[bytes, str]] = []
        violations: list[Violation] = []
        for upload in uploads:
            try:
                data = await asyncio.to_thread(decode_data, upload.data)
                files.append((data, (await self._checks.check(tenant, data)).content_type))
            except MeshError as error:
                if error.kind is not ErrorKind.INVALID:
                    raise
                texts = [one.message for one in error.violations] or [error.message]
                violations += [Violation(upload.loc, text, "image") for text in texts]
        if violations:
            raise RefusedRequestError(violations)
        return files

    async def _leave(self, places: Sequence[tuple[str, str]], stay: StagedFiles) -> None:
        for place in places:
            kept = self._places[place]
            try:
                if stay.unclaimed:
                    # A request for the same object meanwhile waits, and then writes it again.
                    async with kept.lock:
                        if kept.users == 1:
                            await self._store.delete(*place)
            except MeshError as error:
                _log.warning("upload_left_to_sweeper", path=place[1], cause=error.reason)
            finally:
                kept.users -= 1
                if not kept.users:
                    del self._places[place]


def _name(key: str, request: bytes, upload: Upload, data: bytes) -> uuid.UUID:
    if not key:
        return uuid.uuid4()
    digest, rest = hashlib.sha256(data).hexdigest(), hashlib.sha256(request).hexdigest()
    return uuid.uuid5(uuid.NAMESPACE_OID, f"{key}\n{upload.loc}\n{digest}\n{rest}")
