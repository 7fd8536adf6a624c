"""The object store: S3 by the `minio` client, which only this module and `meshkit.s3client` use.

Callers name a tenant and a path; the key `tenants/{tenant}/{path}` never leaves this module.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from meshkit.auth import valid_tenant
from meshkit.chunks import ChunkReader
from meshkit.errors import MeshError, too_large, unavailable
from meshkit.logging import get_logger
from meshkit.paths import TENANTS, key_of, normalise_path, normalise_prefix, root_of
from meshkit.s3client import S3Clients, translated

if TYPE_CHECKING:
    from meshkit.config import MeshSettings

_log = get_logger(__name__)
_T = TypeVar("_T")

_THREADS = 16
_CHUNK_BYTES = 256 * 1024
_PART_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What the store knows of an object.

    Attributes:
        path: The object's path within its tenant.
        size: Bytes.
        etag: Changes with the content; without quotes.
        content_type: Media type, empty where a listing does not include it.
        modified: When it was written, UTC.
    """

    path: str
    size: int
    etag: str
    content_type: str
    modified: datetime


class ObjectStore:
    """Objects of tenants in one bucket.

    Args:
        endpoint: `host:port`.
        access_key: Access key.
        secret_key: Secret key.
        bucket: The bucket.
        secure: Whether to use TLS.
        region: The region that requests are signed for.
    """

    def __init__(
        self,
        endpoint: str,
        access_key: str,
        secret_key: str,
        *,
        bucket: str = "atelier",
        secure: bool = False,
        region: str = "us-east-1",
    ) -> None:
        self._bucket = bucket
        self._clients = S3Clients(endpoint, access_key, secret_key, secure=secure, region=region, threads=_THREADS)
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="objects")

    @classmethod
    def from_settings(cls, settings: MeshSettings) -> ObjectStore:
        """Build the store that the settings describe."""
        return cls(
            settings.s3_endpoint,
            settings.s3_access_key,
            settings.s3_secret_key.get_secret_value(),
            bucket=settings.s3_bucket,
            secure=settings.s3_secure,
            region=settings.s3_region,
        )

    async def close(self) -> None:
        """End the store's threads."""
        await asyncio.to_thread(self._threads.shutdown, cancel_futures=True)

    async def ensure_bucket(self) -> None:
        """Create the bucket if it is missing."""

        def ensure(client: Any) -> None:
            from minio.error import S3Error  # noqa: PLC0415 -- loaded with the client

            if not client.bucket_exists(self._bucket):
                try:
                    client.make_bucket(self._bucket)
                except S3Error as error:
                    # Another process created it meanwhile.
                    if error.code not in {"BucketAlreadyOwnedByYou", "BucketAlreadyExists"}:
                        raise

        await self._run(ensure)

    async def ping(self) -> None:
        """Ask the store for an answer.

        Raises:
            MeshError: `UNAVAILABLE` where there is none.
        """
        await self._run(lambda client: client.bucket_exists(self._bucket))

    async def put(
        self, tenant: str, path: str, data: bytes | Path, content_type: str = "application/octet-stream"
    ) -> ObjectInfo:
        """Write an object, whole or not at all.

        Args:
            tenant: Tenant it belongs to.
            path: Its path.
            data: Its bytes, or a local file that holds them.
            content_type: Its media type.

        Returns:
            What was written.
        """
        path = normalise_path(path)
        key = key_of(tenant, path)

        def put(client: Any) -> ObjectInfo:
            if isinstance(data, bytes):
                size = len(data)
                result = client.put_object(
                    self._bucket, key, io.BytesIO(data), size, content_type, part_size=_PART_BYTES
                )
            else:
                size = data.stat().st_size
                result = client.fput_object(self._bucket, key, str(data), content_type, part_size=_PART_BYTES)
            return ObjectInfo(path, size, _bare(result.etag), content_type, datetime.now(UTC))

        return await self._run(put, path)

    async def put_stream(
        self,
        tenant: str,
        path: str,
        chunks: AsyncIterator[bytes],
        size: int = -1,
        content_type: str = "application/octet-stream",
        *,
        expected: str | None = None,
        part_bytes: int = _PART_BYTES,
    ) -> ObjectInfo:
        """Write an object from chunks as they come, without holding it in memory.

        Args:
            tenant: Tenant it belongs to.
            path: Its path.
            chunks: Its bytes; what the iterator raises aborts the write and is raised here.
            size: Its size where known, else -1.
            content_type: Its media type.
            expected: ETag that the object must still have, empty where there must be none; None for any. The store
                itself compares, in the moment of the write.
            part_bytes: What is held at once; 5 MiB at least.

        Returns:
            What was written.

        Raises:
            MeshError: `CONFLICT` with the reason `OBJECT_CHANGED` where the object is not as expected.
        """
        path = normalise_path(path)
        key = key_of(tenant, path)
        reader = ChunkReader(asyncio.get_running_loop(), chunks)

        def put(client: Any) -> ObjectInfo:
            # One part after the other: several at once would all be held, and the chunks come no faster for it.
            result = client.put_object(
                self._bucket, key, reader, size, content_type, part_size=part_bytes, num_parallel_uploads=1
            )
            return ObjectInfo(path, reader.count, _bare(result.etag), content_type, datetime.now(UTC))

        try:
            return await self._run(put, path, expected)
        except Exception:
            if reader.failure is not None:
                raise reader.failure from None
            raise
        finally:
            reader.close()

    async def get(self, tenant: str, path: str, max_bytes: int | None = None) -> bytes:
        """Read an object into memory.

        Args:
            tenant: Tenant it belongs to.
            path: Its path.
            max_bytes: What is larger is not read.

        Raises:
            MeshError: `NOT_FOUND` where there is none, `TOO_LARGE` for one that is larger.
        """
        path = normalise_path(path)
        key = key_of(tenant, path)

        def get(client: Any) -> bytes:
            with self._answer(client, key, path, max_bytes) as response:
                return bytes(response.read())

        return await self._run(get, path)

    async def copy_into(self, tenant: str, path: str, file: BinaryIO, max_bytes: int | None = None) -> None:
        """Read an object into an open file, and with that next to nothing into memory.

        Args:
            tenant: Tenant it belongs to.
            path: Its path.
            file: Takes it, in place of what it holds.
            max_bytes: What is larger is not read.

        Raises:
            MeshError: As for `get`.
        """
        path = normalise_path(path)
        key = key_of(tenant, path)

        def copy(client: Any) -> None:
            with self._answer(client, key, path, max_bytes) as response:
                file.seek(0)
                file.truncate()
                file.writelines(response.stream(_CHUNK_BYTES))

        await self._run(copy, path)

    @contextmanager
    def _answer(self, client: Any, key: str, path: str, max_bytes: int | None) -> Iterator[Any]:
        """Yield what the store answers for an object, not yet read; blocks."""
        response = client.get_object(self._bucket, key)
        try:
            size = int(response.headers["content-length"])
            if max_bytes is not None and size > max_bytes:
                raise too_large(f"{path} has {size} bytes, at most {max_bytes} are allowed")
            yield response
        finally:
            response.close()
            response.release_conn()

    async def download(self, tenant: str, path: str, dest: Path) -> ObjectInfo:
        """Read an object into a local file, which appears only once it is whole.

        Args:
            tenant: Tenant it belongs to.
            path: Its path.
            dest: The file.

        Returns:
            What was read.

        Raises:
            MeshError: `NOT_FOUND` where there is none.
        """
        path = normalise_path(path)
        key = key_of(tenant, path)
        stat = await self._run(lambda client: client.fget_object(self._bucket, key, str(dest)), path)
        return _info(path, stat)

    async def stream(self, tenant: str, path: str, offset: int = 0, length: int = 0) -> AsyncGenerator[bytes, None]:
        """Read an object in chunks; the store is read no faster than the caller takes.

        Args:
            tenant: Tenant it belongs to.
            path: Its path.
            offset: First byte.
            length: Bytes to read, 0 for all that follow.

        Yields:
            Chunks of up to 256 KiB.

        Raises:
            MeshError: `NOT_FOUND` where there is none.
        """
        path = normalise_path(path)
        key = key_of(tenant, path)
        response = await self._run(
            lambda client: client.get_object(self._bucket, key, offset=offset, length=length), path
        )
        chunks = response.stream(_CHUNK_BYTES)
        loop = asyncio.get_running_loop()
        reading: asyncio.Future[bytes | None] | None = None
        try:
            while True:
                # A thread is taken for each chunk, not for the whole: callers that read slowly would hold them all.
                reading = loop.run_in_executor(self._threads, next, chunks, None)
                try:
                    chunk = await asyncio.shield(reading)
                except Exception as error:
                    raise unavailable("The object store broke off", reason="OBJECTS_UNAVAILABLE") from error
                if chunk is None:
                    return
                yield chunk
        finally:
            await asyncio.shield(asyncio.ensure_future(self._let_go(response, reading)))

    async def _let_go(self, response: Any, reading: asyncio.Future[bytes | None] | None) -> None:
        if reading is not None:
            await asyncio.wait({reading})

        def close() -> None:
            response.close()
            response.release_conn()

        await asyncio.get_running_loop().run_in_executor(self._threads, close)

    async def stat(self, tenant: str, path: str) -> ObjectInfo | None:
        """Return what the store knows of an object; None where there is none."""
        path = normalise_path(path)
        key = key_of(tenant, path)
        try:
            return _info(path, await self._run(lambda client: client.stat_object(self._bucket, key), path))
        except MeshError as error:
            if error.reason == "OBJECT_NOT_FOUND":
                return None
            raise

    async def list(self, tenant: str, prefix: str = "", limit: int = 1000, start_after: str = "") -> list[ObjectInfo]:
        """List objects in the order of their paths.

        Args:
            tenant: Tenant they belong to.
            prefix: Beginning of their paths; empty for all.
            limit: How many at most.
            start_after: Only paths after this one.
        """
        root = root_of(tenant)
        full = root + normalise_prefix(prefix)

        def list_(client: Any) -> list[ObjectInfo]:
            after = root + normalise_path(start_after) if start_after else None
            return list(_take(limit, client.list_objects(self._bucket, full, recursive=True, start_after=after), root))

        return await self._run(list_)

    async def walk(self, tenant: str, prefix: str = "", page: int = 1000) -> AsyncIterator[ObjectInfo]:
        """List all objects, page by page; concurrent deletes and writes do not disturb the rest.

        Args:
            tenant: Tenant they belong to.
            prefix: Beginning of their paths; empty for all.
            page: How many are asked for at once.

        Yields:
            The objects in the order of their paths.

        Raises:
            MeshError: `UNAVAILABLE` where the store does not answer.
        """
        after = ""
        while True:
            found = await self.list(tenant, prefix, limit=page, start_after=after)
            for info in found:
                yield info
            if len(found) < page:
                return
            after = found[-1].path

    async def tenants(self) -> Sequence[str]:
        """Every tenant that has an object, by name.

        Raises:
            MeshError: `UNAVAILABLE` where the store does not answer.
        """

        def tenants(client: Any) -> list[str]:
            # Not recursive: the store groups the keys by their next part, whatever lies below it.
            folders = client.list_objects(self._bucket, TENANTS)
            names = (str(item.object_name).removeprefix(TENANTS).rstrip("/") for item in folders if item.is_dir)
            return [name for name in names if valid_tenant(name)]

        return await self._run(tenants)

    async def delete(self, tenant: str, path: str, *, expected: str | None = None) -> None:
        """Delete an object; one that is gone already is no error.

        Args:
            tenant: Tenant it belongs to.
            path: Its path.
            expected: ETag that it must still have; None for any.

        Raises:
            MeshError: `CONFLICT` with the reason `OBJECT_CHANGED` where the object is not as expected.
        """
        path = normalise_path(path)
        key = key_of(tenant, path)
        await self._run(lambda client: client.remove_object(self._bucket, key), path, expected)

    async def delete_prefix(self, tenant: str, prefix: str) -> Sequence[str]:
        """Delete all objects below a folder.

        Args:
            tenant: Tenant they belong to.
            prefix: The folder; `a/b` does not touch `a/bc`.

        Returns:
            The paths that were deleted.
        """
        root = root_of(tenant)
        folder = f"{root}{normalise_path(prefix)}/"

        def delete(client: Any) -> list[str]:
            from minio.deleteobjects import DeleteObject  # noqa: PLC0415 -- loaded with the client

            names = [str(item.object_name) for item in client.list_objects(self._bucket, folder, recursive=True)]
            errors = list(client.remove_objects(self._bucket, [DeleteObject(name) for name in names]))
            if errors:
                _log.warning("objects_not_deleted", count=len(errors), code=errors[0].code)
                raise unavailable("Some objects could not be deleted", reason="OBJECTS_UNAVAILABLE")
            return [name.removeprefix(root) for name in names]

        return await self._run(delete)

    async def copy(self, tenant: str, source: str, dest: str) -> ObjectInfo:
        """Copy an object within its tenant, inside the store.

        Raises:
            MeshError: `NOT_FOUND` where there is no source.
        """
        source, dest = normalise_path(source), normalise_path(dest)
        from_key, to_key = key_of(tenant, source), key_of(tenant, dest)

        def copy(client: Any) -> ObjectInfo:
            from minio.commonconfig import CopySource  # noqa: PLC0415 -- loaded with the client

            client.copy_object(self._bucket, to_key, CopySource(self._bucket, from_key))
            return _info(dest, client.stat_object(self._bucket, to_key))

        return await self._run(copy, source)

    async def presign(self, tenant: str, path: str, expires_seconds: float) -> str:
        """Return a signed address that anyone may read the object by, for a while.

        Args:
            tenant: Tenant it belongs to.
            path: Its path.
            expires_seconds: How long the address is good for, 7 days at most.
        """
        key = key_of(tenant, normalise_path(path))
        lifetime = timedelta(seconds=max(1, int(expires_seconds)))
        return str(await self._run(lambda client: client.presigned_get_object(self._bucket, key, expires=lifetime)))

    async def _run(self, work: Callable[[Any], _T], path: str = "", expected: str | None = None) -> _T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._guarded, work, path, expected)

    def _guarded(self, work: Callable[[Any], _T], path: str, expected: str | None) -> _T:
        try:
            return work(self._clients.usual() if expected is None else self._clients.on_condition(expected))
        except MeshError:
            raise
        except Exception as error:
            told = translated(error, path)
            if told is None:
                raise
            raise told from error


def _take(limit: int, items: Iterator[Any], root: str) -> Iterator[ObjectInfo]:
    for count, item in enumerate(items):
        if count >= limit:
            return
        yield _info(str(item.object_name).removeprefix(root), item)


def _info(path: str, item: Any) -> ObjectInfo:
    modified = item.last_modified or datetime.now(UTC)
    return ObjectInfo(path, int(item.size or 0), _bare(item.etag), str(item.content_type or ""), modified)


def _bare(etag: str | None) -> str:
    return (etag or "").strip('"')


def open_configured(settings: MeshSettings, stack: AsyncExitStack) -> ObjectStore | None:
    """Open the store until the stack ends; None, and a line in the log, where none is configured."""
    if not settings.s3_endpoint:
        _log.warning("object_store_not_configured")
        return None
    store = ObjectStore.from_settings(settings)
    stack.push_async_callback(store.close)
    return store
