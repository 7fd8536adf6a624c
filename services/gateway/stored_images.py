"""Stored images over HTTP: list, read, save, delete; and signed media URLs.

Paths are those that answers show; the tenant's prefix is added below, so another tenant's path is simply not there.
Only images come in, judged by their content, and nothing goes out under a type that a browser would run.
"""

from __future__ import annotations

import asyncio
import mimetypes
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from email.utils import format_datetime
from tempfile import SpooledTemporaryFile
from typing import Any, BinaryIO, Protocol, TypeVar, cast
from urllib.parse import quote

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import RedirectResponse, Response, StreamingResponse

from meshkit import auth
from meshkit.copies import CopiedObjects
from meshkit.errors import ErrorKind, MeshError, not_found, unavailable
from meshkit.images.checks import ImageChecks
from meshkit.media_urls import MEDIA_ROUTE, MediaLinks, MediaSigner
from meshkit.objects import ObjectInfo
from meshkit.paths import normalise_path
from meshkit.s3client import CHANGED
from meshkit.staging import STAGING_FOLDER, is_staged
from meshkit.stored_bytes import StoredBytes
from meshkit.transcoding.decoding import Violation
from meshkit.transcoding.errors import RefusedRequestError
from services.gateway.asgi import ClientGoneError, JsonResponse
from services.gateway.auth import Authenticator
from services.gateway.conditions import Conditions, PathTurns, Verdict
from services.gateway.config import GatewaySettings
from services.gateway.middleware import note_route
from services.gateway.ranges import ByteRange, RangeError, parse_range
from services.gateway.thumbnails import WEBP, Thumbnails, described, width_of

_T = TypeVar("_T")

IMAGES = "/api/v1/storage/images"

_DEFAULT_LIMIT = 100
_MAX_LIMIT = 1000
_PAGE = 1000
# Objects that one list looks at, and so the most that its `total` can say; a prefix reaches the ones beyond.
_MOST_LISTED = 10_000
_AFTER_STAGING = f"{STAGING_FOLDER}/\U0010ffff"
_STATS_AT_ONCE = 16
# How often a write on condition looks again after another one came between.
_WRITE_ATTEMPTS = 4
_IN_MEMORY_BYTES = 1024 * 1024
_CHUNK_BYTES = 256 * 1024

# What a browser shows and never runs.
SHOWN = frozenset(
    {
        "image/png",
        "image/jpeg",
        "image/webp",
        "image/gif",
        "image/bmp",
        "image/tiff",
        "image/avif",
        "image/heif",
        "video/mp4",
        "video/webm",
    }
)
_OPAQUE = "application/octet-stream"


class Objects(CopiedObjects, Protocol):
    """What is asked of the object store."""

    async def put_stream(
        self,
        tenant: str,
        path: str,
        chunks: AsyncIterator[bytes],
        size: int = ...,
        content_type: str = ...,
        *,
        expected: str | None = ...,
    ) -> ObjectInfo:
        """Write an object from chunks, where it is as expected."""
        ...

    def stream(self, tenant: str, path: str, offset: int = ..., length: int = ...) -> AsyncIterator[bytes]:
        """Read an object in chunks."""
        ...

    async def stat(self, tenant: str, path: str) -> ObjectInfo | None:
        """Return what is known of an object."""
        ...

    async def list(self, tenant: str, prefix: str = ..., limit: int = ..., start_after: str = ...) -> list[ObjectInfo]:
        """List objects."""
        ...

    async def delete(self, tenant: str, path: str, *, expected: str | None = ...) -> None:
        """Delete an object, where it is as expected."""
        ...

    async def presign(self, tenant: str, path: str, expires_seconds: float) -> str:
        """Return an address that anyone may read the object by."""
        ...


def _timestamp(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"


def _guessed(path: str) -> str:
    return mimetypes.guess_type(path)[0] or ""


def _path_of(request: Request) -> str:
    try:
        return normalise_path(request.path_params["path"])
    except MeshError as error:
        found = [Violation(("path", "path"), one.message, one.type) for one in error.violations]
        raise RefusedRequestError(found) from None


class StoredImages:
    """The endpoints.

    Args:
        objects: The object store.
        guard: Checks tokens.
        signer: Signs media URLs.
        checks: Judges what comes in.
        settings: Settings of the gateway.
        stored: Knows how much tenants store.
    """

    def __init__(
        self,
        objects: Objects,
        guard: Authenticator,
        signer: MediaSigner,
        checks: ImageChecks,
        settings: GatewaySettings,
        *,
        stored: StoredBytes,
    ) -> None:
        self._objects = objects
        self._guard = guard
        self._signer = signer
        self._checks = checks
        self._stored = stored
        self._turns = PathTurns()
        self._thumbnails = Thumbnails(objects, checks, settings.thumbnail_cache_bytes)
        # Types that names did not tell, of contents by their versions.
        self._asked: OrderedDict[tuple[str, str, str], str] = OrderedDict()
        self._settings = settings

    async def _tenant(self, request: Request, scope: str) -> str:
        caller = await self._guard.admit(request.headers.get("authorization", ""), scope)
        return caller.tenant

    # -- list ----------------------------------------------------------------------------------------------------

    async def list_images(self, request: Request) -> Response:
        """Answer `GET /storage/images`."""
        note_route(request.scope, f"GET {IMAGES}")
        tenant = await self._tenant(request, auth.READ)
        limit = _limit(request.query_params.get("limit"))
        found = await self._found(tenant, self._prefix(request.query_params.get("prefix", "")))
        items = [self._item(request, tenant, one, content_type) for one, content_type in found[:limit]]
        return JsonResponse({"images": items, "total": len(found)})

    @staticmethod
    def _prefix(prefix: str) -> str:
        if not prefix:
            return ""
        try:
            return normalise_path(prefix) + ("/" if prefix.endswith("/") else "")
        except MeshError as error:
            raise RefusedRequestError(
                [Violation(("query", "prefix"), one.message, one.type) for one in error.violations]
            ) from None

    async def _found(self, tenant: str, prefix: str) -> list[tuple[ObjectInfo, str]]:
        """Return the images among the first objects of a prefix, in the order of their paths."""
        found: list[tuple[ObjectInfo, str]] = []
        seen, after = 0, ""
        while seen < _MOST_LISTED:
            page = await self._objects.list(tenant, prefix, _PAGE, after)
            kept = [one for one in page if not is_staged(one.path)]
            types = await self._types(tenant, kept)
            found += [(one, kind) for one, kind in zip(kept, types, strict=True) if kind.startswith("image/")]
            if len(page) < _PAGE:
                break
            seen += len(kept)
            # Uploads that wait to be claimed are no images of the caller's, however many there are.
            after = page[-1].path if kept and kept[-1] is page[-1] else _AFTER_STAGING
        return found

    async def _types(self, tenant: str, infos: Sequence[ObjectInfo]) -> list[str]:
        """Return media types; a listing does not tell them, so names do, and the store where a name does not."""
        turn = asyncio.Semaphore(_STATS_AT_ONCE)

        async def ask(info: ObjectInfo) -> str:
            known = info.content_type or _guessed(info.path) or self._asked.get((tenant, info.path, info.etag), "")
            if known:
                return known if known in SHOWN else _OPAQUE
            async with turn:
                stat = await self._objects.stat(tenant, info.path)
            told = stat.content_type if stat is not None and stat.content_type in SHOWN else _OPAQUE
            self._asked[tenant, info.path, info.etag] = told
            while len(self._asked) > _MOST_LISTED:
                self._asked.popitem(last=False)
            return told

        return list(await asyncio.gather(*(ask(one) for one in infos)))

    def _item(self, request: Request, tenant: str, info: ObjectInfo, content_type: str) -> dict[str, Any]:
        return {
            "path": info.path,
            "size": info.size,
            "content_type": content_type,
            "last_modified": _timestamp(info.modified),
            "url": self._url(request, tenant, info.path),
        }

    def _url(self, request: Request, tenant: str, path: str) -> str:
        base = self._settings.public_url or f"{request.url.scheme}://{request.url.netloc}"
        return MediaLinks(base, self._signer).url(tenant, path)

    # -- read ----------------------------------------------------------------------------------------------------

    async def get_image(self, request: Request) -> Response:
        """Answer `GET` and `HEAD /storage/images/{path}`."""
        note_route(request.scope, f"{request.method} {IMAGES}/{{path}}")
        tenant = await self._tenant(request, auth.READ)
        path = _path_of(request)
        info = await self._existing(tenant, path)
        if (asked := request.query_params.get("w")) is not None:
            return await self._thumbnail(request, tenant, info, asked, "private, no-cache")
        elsewhere = await self._elsewhere(tenant, path) if request.method == "GET" else ""
        if elsewhere:
            return RedirectResponse(elsewhere, 307, {"cache-control": "private, no-store"})
        return self._content(request, tenant, info, "private, no-cache")

    async def get_media(self, request: Request) -> Response:
        """Answer `GET` and `HEAD /media/{token}`."""
        note_route(request.scope, f"{request.method} {MEDIA_ROUTE}/{{token}}")
        # The token opens the object: it does not belong into a log.
        request.scope["atelier.path"] = f"{MEDIA_ROUTE}/..."
        media = self._signer.open(request.path_params["token"])
        info = await self._existing(media.tenant, media.path)
        keeping = f"private, max-age={self._settings.media_url_ttl_seconds}"
        if (asked := request.query_params.get("w")) is not None:
            return await self._thumbnail(request, media.tenant, info, asked, keeping)
        return self._content(request, media.tenant, info, keeping)

    async def _thumbnail(
        self, request: Request, tenant: str, info: ObjectInfo, asked: str, cache_control: str
    ) -> Response:
        width = width_of(asked)
        small = described(info, width)
        headers = {"etag": f'"{small.etag}"', "cache-control": cache_control}
        verdict = Conditions.of(request.headers).verdict(small, reads=True)
        if verdict is Verdict.NOT_MODIFIED:
            return Response(status_code=304, headers=headers)
        if verdict is Verdict.FAILED:
            raise _not_as_expected()
        content = await self._thumbnails.get(tenant, info, width)
        headers["content-length"] = str(len(content))
        return Response(b"" if request.method == "HEAD" else content, media_type=WEBP, headers=headers)

    async def _existing(self, tenant: str, path: str) -> ObjectInfo:
        info = await self._objects.stat(tenant, path)
        if info is None:
            raise not_found("Image", path)
        return info

    async def _elsewhere(self, tenant: str, path: str) -> str:
        if self._settings.cdn_url:
            return f"{self._settings.cdn_url.rstrip('/')}/tenants/{quote(tenant)}/{quote(path)}"
        if self._settings.storage_redirect == "presigned":
            return await self._objects.presign(tenant, path, self._settings.media_url_ttl_seconds)
        return ""

    def _content(self, request: Request, tenant: str, info: ObjectInfo, cache_control: str) -> Response:
        etag = f'"{info.etag}"'
        headers = {
            "etag": etag,
            "last-modified": format_datetime(info.modified.astimezone(UTC), usegmt=True),
            "accept-ranges": "bytes",
            "cache-control": cache_control,
            # Should a browser ever take it for a page, it may not do anything.
            "content-security-policy": "default-src 'none'; sandbox",
        }
        verdict = Conditions.of(request.headers).verdict(info, reads=True)
        if verdict is Verdict.NOT_MODIFIED:
            return Response(status_code=304, headers=headers)
        if verdict is Verdict.FAILED:
            raise _not_as_expected()
        if info.content_type not in SHOWN:
            headers["content-disposition"] = "attachment"
        # RFC 9110, 14.2: a range is asked for by GET alone.
        asked = request.headers.get("range", "") if request.method == "GET" else ""
        try:
            part = parse_range(asked, info.size, request.headers.get("if-range", ""), etag)
        except RangeError:
            return Response(status_code=416, headers={**headers, "content-range": f"bytes */{info.size}"})
        return self._part(request, tenant, info, part, headers)

    def _part(
        self, request: Request, tenant: str, info: ObjectInfo, part: ByteRange | None, headers: dict[str, str]
    ) -> Response:
        offset, length = (part.start, part.length) if part is not None else (0, info.size)
        headers["content-length"] = str(length)
        headers["content-type"] = info.content_type if info.content_type in SHOWN else _OPAQUE
        if part is not None:
            headers["content-range"] = f"bytes {part.start}-{part.end}/{info.size}"
        status = 200 if part is None else 206
        if request.method == "HEAD" or length == 0:
            return Response(status_code=status, headers=headers)
        return StreamingResponse(
            self._objects.stream(tenant, info.path, offset, length), status_code=status, headers=headers
        )

    # -- write ---------------------------------------------------------------------------------------------------

    async def save_image(self, request: Request) -> Response:
        """Answer `POST /storage/images/{path}`, multipart with `file` or the image itself."""
        note_route(request.scope, f"POST {IMAGES}/{{path}}")
        tenant = await self._tenant(request, auth.WRITE)
        path = _writable(_path_of(request))
        try:
            async with _file_of(request) as file:
                self._stored.check(tenant, file.size or 0)
                content_type = await self._judged(tenant, file)

                async def put(expected: str | None) -> ObjectInfo:
                    await file.seek(0)
                    return await self._objects.put_stream(
                        tenant, path, _chunks(file), file.size or 0, content_type, expected=expected
                    )

                info = await self._write(request, tenant, path, put)
        except ClientDisconnect:
            raise ClientGoneError from None
        return JsonResponse(self._item(request, tenant, info, content_type), headers={"etag": f'"{info.etag}"'})

    async def _write(
        self,
        request: Request,
        tenant: str,
        path: str,
        write: Callable[[str | None], Awaitable[_T]],
        *,
        new: bool = True,
    ) -> _T:
        """Do a write if the request's conditions hold.

        They are looked at here, and the store makes sure, in the moment of the write, that the object is still what
        was looked at: so they hold against writers at other gateways as well.

        Args:
            request: The request.
            tenant: The tenant.
            path: The object's path.
            write: Does the write, given the ETag that the object must still have: empty for none, None for any.
            new: Whether the write may be the object's first one.
        """
        conditions = Conditions.of(request.headers)
        async with self._turns.of(tenant, path):
            for _ in range(_WRITE_ATTEMPTS):
                info = await self._objects.stat(tenant, path) if conditions.bind_writes or not new else None
                if info is None and not new:
                    raise not_found("Image", path)
                if not conditions.bind_writes:
                    return await write(None)
                if conditions.verdict(info, reads=False) is Verdict.FAILED:
                    raise _not_as_expected()
                try:
                    return await write(info.etag if info is not None else "")
                except MeshError as error:
                    if error.reason != CHANGED:
                        raise
        raise unavailable("The image is being written by others", reason="OBJECT_CONTENDED")

    async def _judged(self, tenant: str, file: UploadFile) -> str:
        try:
            return (await self._checks.check(tenant, file.file)).content_type
        except MeshError as error:
            if error.kind is not ErrorKind.INVALID:
                raise
            found = [Violation(("body", "file"), one.message, one.type) for one in error.violations]
            raise RefusedRequestError(found) from None

    async def delete_image(self, request: Request) -> Response:
        """Answer `DELETE /storage/images/{path}`."""
        note_route(request.scope, f"DELETE {IMAGES}/{{path}}")
        tenant = await self._tenant(request, auth.WRITE)
        path = _writable(_path_of(request))

        async def delete(expected: str | None) -> None:
            await self._objects.delete(tenant, path, expected=expected)

        await self._write(request, tenant, path, delete, new=False)
        return JsonResponse({"deleted": True, "path": path})


def _limit(text: str | None) -> int:
    if text is None:
        return _DEFAULT_LIMIT
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise RefusedRequestError([Violation(("query", "limit"), "Input should be a valid integer", "int_type")])
    if not 1 <= int(text) <= _MAX_LIMIT:
        message = f"Input should be an integer from 1 to {_MAX_LIMIT}"
        raise RefusedRequestError([Violation(("query", "limit"), message, "int_out_of_range")])
    return int(text)


def _writable(path: str) -> str:
    if path.split("/", 1)[0] == STAGING_FOLDER:
        message = f"'{STAGING_FOLDER}/' is the mesh's own"
        raise RefusedRequestError([Violation(("path", "path"), message, "path_reserved")])
    return path


@asynccontextmanager
async def _file_of(request: Request) -> AsyncIterator[UploadFile]:
    """Read the file of a request; beyond a megabyte it lies in the temporary folder and not in memory."""
    if request.headers.get("content-type", "").lower().startswith("multipart/"):
        try:
            form = await request.form(max_files=1, max_fields=16)
        except HTTPException as error:
            raise RefusedRequestError([Violation(("body",), error.detail, "multipart_invalid")]) from None
        try:
            file = form.get("file")
            if not isinstance(file, UploadFile):
                raise _no_file()
            yield file
        finally:
            await form.close()
        return
    with SpooledTemporaryFile(max_size=_IN_MEMORY_BYTES) as spool:
        file = UploadFile(file=cast("BinaryIO", spool), size=0)
        async for chunk in request.stream():
            await file.write(chunk)
        if not file.size:
            raise _no_file()
        yield file


def _no_file() -> RefusedRequestError:
    return RefusedRequestError([Violation(("body", "file"), "Field required", "missing")])


async def _chunks(file: UploadFile) -> AsyncIterator[bytes]:
    while chunk := await file.read(_CHUNK_BYTES):
        yield chunk


def _not_as_expected() -> HTTPException:
    return HTTPException(412, "The image is not as the request's conditions expect it")
