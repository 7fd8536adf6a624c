import asyncio
import hashlib
import io
import os
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from meshkit.config import MeshSettings
from meshkit.errors import ErrorKind, MeshError
from meshkit.objects import ObjectStore
from meshkit.s3client import S3Clients, translated
from tests.conftest import S3Store


@pytest.fixture
async def store(s3: S3Store) -> AsyncIterator[ObjectStore]:
    store = ObjectStore(s3.endpoint, s3.access_key, s3.secret_key, bucket=s3.bucket())
    yield store
    await store.close()


async def kind_of(awaitable: object) -> ErrorKind:
    with pytest.raises(MeshError) as caught:
        await awaitable  # type: ignore[misc]  # any awaitable will do
    return caught.value.kind


async def test_what_is_put_is_got(store: ObjectStore) -> None:
    written = await store.put("acme", "a//b.png", b"picture", "image/png")
    assert (written.path, written.size) == ("a/b.png", 7)
    assert await store.get("acme", "a/b.png") == b"picture"
    info = await store.stat("acme", "a/b.png")
    assert info is not None
    assert (info.path, info.size, info.content_type, info.etag) == ("a/b.png", 7, "image/png", written.etag)
    assert info.etag == hashlib.md5(b"picture", usedforsecurity=False).hexdigest()


async def test_an_object_is_overwritten_whole(store: ObjectStore) -> None:
    first = await store.put("acme", "a", b"first and long")
    second = await store.put("acme", "a", b"second")
    assert await store.get("acme", "a") == b"second"
    assert first.etag != second.etag


async def test_an_empty_object_is_an_object(store: ObjectStore) -> None:
    await store.put("acme", "empty", b"")
    assert await store.get("acme", "empty") == b""
    assert [chunk async for chunk in store.stream("acme", "empty")] == []


async def test_what_is_larger_than_the_reader_takes_is_not_read(store: ObjectStore) -> None:
    await store.put("acme", "a", b"x" * 1000)
    assert await store.get("acme", "a", 1000) == b"x" * 1000
    for _ in range(3):  # a connection whose answer was not read serves nobody else
        assert await kind_of(store.get("acme", "a", 999)) is ErrorKind.TOO_LARGE
    assert await store.get("acme", "a") == b"x" * 1000


async def test_an_object_is_copied_into_a_file_in_place_of_what_it_held(store: ObjectStore, tmp_path: Path) -> None:
    content = os.urandom(3_000_000)
    await store.put("acme", "a", content)
    with (tmp_path / "file").open("w+b") as file:
        file.write(b"before" * 1_000_000)
        await store.copy_into("acme", "a", file, len(content))
        assert (file.seek(0), file.read()) == (0, content)
        assert await kind_of(store.copy_into("acme", "a", file, len(content) - 1)) is ErrorKind.TOO_LARGE
        assert await kind_of(store.copy_into("acme", "gone", file)) is ErrorKind.NOT_FOUND
        assert (file.seek(0), file.read()) == (0, content)
    assert await store.get("acme", "a") == content


async def test_what_is_missing_is_not_found(store: ObjectStore, tmp_path: Path) -> None:
    assert await store.stat("acme", "gone") is None
    assert await kind_of(store.get("acme", "gone")) is ErrorKind.NOT_FOUND
    assert await kind_of(store.download("acme", "gone", tmp_path / "x")) is ErrorKind.NOT_FOUND
    assert await kind_of(anext(store.stream("acme", "gone"))) is ErrorKind.NOT_FOUND
    assert await kind_of(store.copy("acme", "gone", "b")) is ErrorKind.NOT_FOUND
    await store.delete("acme", "gone")
    assert os.listdir(tmp_path) == []  # noqa: PTH208 -- a moment's look, no matter by which call


async def test_tenants_do_not_see_each_other(store: ObjectStore) -> None:
    await store.put("acme", "a", b"acme's")
    assert await store.stat("other", "a") is None
    assert await store.list("other") == []
    assert await store.list("acm") == []
    await store.delete("other", "a")
    assert await store.get("acme", "a") == b"acme's"


async def test_tenants_are_those_that_have_objects(store: ObjectStore) -> None:
    assert await store.tenants() == []
    for tenant in ("b", "a@x.org", "b.c"):
        await store.put(tenant, "staging/deep/below", b"x")
        await store.put(tenant, "other", b"x")
    await store.put("gone", "a", b"x")
    await store.delete("gone", "a")
    assert set(await store.tenants()) - {"gone"} == {"a@x.org", "b", "b.c"}, "an emptied one may be told or not"


async def test_a_walk_sees_every_page_while_its_objects_are_deleted(store: ObjectStore) -> None:
    for number in range(7):
        await store.put("acme", f"walk/{number}/a", b"x")
    await store.put("acme", "walking", b"x")
    seen = []
    async for info in store.walk("acme", "walk/", page=3):
        seen.append(info.path)
        await store.delete("acme", info.path)
    assert seen == [f"walk/{number}/a" for number in range(7)]
    assert [info.path async for info in store.walk("acme")] == ["walking"]


async def test_files_go_in_and_out(store: ObjectStore, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(os.urandom(100_000))
    await store.put("acme", "f", tmp_path / "in")
    info = await store.download("acme", "f", tmp_path / "out")
    assert info.size == 100_000
    assert (tmp_path / "out").read_bytes() == (tmp_path / "in").read_bytes()


async def test_slow_readers_do_not_hold_up_the_rest(store: ObjectStore) -> None:
    await store.put("acme", "large", b"x" * 4_000_000)
    readers = [store.stream("acme", "large") for _ in range(24)]
    for reader in readers:
        assert await anext(reader)
    async with asyncio.timeout(60):
        assert await store.stat("acme", "large") is not None
    for reader in readers:
        await reader.aclose()


async def test_a_large_object_streams_in_and_out(store: ObjectStore) -> None:
    data = os.urandom(24 * 1024 * 1024 + 1)

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(data), 1_000_000):
            yield data[start : start + 1_000_000]

    written = await store.put_stream("acme", "big", chunks())
    assert written.size == len(data)
    received = b"".join([chunk async for chunk in store.stream("acme", "big")])
    assert received == data
    part = b"".join([chunk async for chunk in store.stream("acme", "big", offset=1000, length=5000)])
    assert part == data[1000:6000]
    rest = b"".join([chunk async for chunk in store.stream("acme", "big", offset=len(data) - 10)])
    assert rest == data[-10:]


async def test_a_reader_that_leaves_early_leaves_nothing_behind(store: ObjectStore) -> None:
    await store.put("acme", "big", os.urandom(8 * 1024 * 1024))
    for _ in range(20):  # more often than there are threads
        stream = store.stream("acme", "big")
        assert await anext(stream)
        await stream.aclose()
    assert len(await store.get("acme", "big")) == 8 * 1024 * 1024


async def test_an_upload_that_breaks_off_is_no_object(store: ObjectStore) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"x" * 1_000_000
        raise ConnectionResetError("the caller is gone")

    with pytest.raises(ConnectionResetError):
        await store.put_stream("acme", "half", chunks(), 2_000_000)
    assert await store.stat("acme", "half") is None


async def test_an_upload_that_is_cancelled_is_no_object(store: ObjectStore, s3: S3Store) -> None:
    started = asyncio.Event()

    async def chunks() -> AsyncIterator[bytes]:
        yield b"x" * 1_000_000
        started.set()
        await asyncio.Event().wait()

    uploading = asyncio.create_task(store.put_stream("acme", "half", chunks()))
    async with asyncio.timeout(60):
        await started.wait()
    uploading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await uploading
    await store.close()  # waits for its threads
    again = ObjectStore(s3.endpoint, s3.access_key, s3.secret_key, bucket=store._bucket)
    assert await again.stat("acme", "half") is None
    await again.close()


async def test_lists_are_ordered_limited_and_continued(store: ObjectStore) -> None:
    for name in ("a/1", "a/2", "a/3", "ab", "b/1"):
        await store.put("acme", name, name.encode())
    assert [item.path for item in await store.list("acme")] == ["a/1", "a/2", "a/3", "ab", "b/1"]
    assert [item.path for item in await store.list("acme", "a/")] == ["a/1", "a/2", "a/3"]
    assert [item.path for item in await store.list("acme", "a")] == ["a/1", "a/2", "a/3", "ab"]
    assert [item.path for item in await store.list("acme", "a/", limit=2)] == ["a/1", "a/2"]
    assert [item.path for item in await store.list("acme", "a/", start_after="a/2")] == ["a/3"]
    assert (await store.list("acme", "a/", limit=1))[0].size == 3


async def test_a_folder_is_deleted_and_its_namesake_stays(store: ObjectStore) -> None:
    for name in ("t/1", "t/x/2", "tt/3"):
        await store.put("acme", name, b"")
    assert sorted(await store.delete_prefix("acme", "t")) == ["t/1", "t/x/2"]
    assert [item.path for item in await store.list("acme")] == ["tt/3"]
    assert await store.delete_prefix("acme", "t") == []


async def test_an_object_is_copied_within_its_tenant(store: ObjectStore) -> None:
    await store.put("acme", "a", b"data", "image/png")
    copied = await store.copy("acme", "a", "x/b")
    assert (copied.path, copied.size, copied.content_type) == ("x/b", 4, "image/png")
    assert await store.get("acme", "x/b") == b"data"


async def test_a_signed_address_is_good_for_anyone_and_for_this_object_alone(store: ObjectStore) -> None:
    await store.put("acme", "ä b.png", b"data")
    url = await store.presign("acme", "ä b.png", 60)
    async with httpx.AsyncClient() as client:
        assert (await client.get(url)).content == b"data"
        assert (await client.get(url.replace("Signature=", "Signature=0"))).status_code == 403
        assert (await client.get(url.partition("?")[0])).status_code == 403


async def test_names_with_special_characters_pass(store: ObjectStore) -> None:
    for name in ("ü/日本 +&=?#%.png", "a'b\"c", "%2e%2e/x"):
        await store.put("acme", name, name.encode())
        assert await store.get("acme", name) == name.encode()
        assert [item.path for item in await store.list("acme", name)] == [name]
        await store.delete("acme", name)


async def test_making_the_bucket_is_repeatable_and_concurrent(s3: S3Store) -> None:
    settings = MeshSettings(
        s3_endpoint=s3.endpoint, s3_access_key=s3.access_key, s3_secret_key=s3.secret_key, s3_bucket="made-by-test"
    )
    store = ObjectStore.from_settings(settings)
    await asyncio.gather(*(store.ensure_bucket() for _ in range(4)))
    await store.put("acme", "a", b"x")
    await store.close()


async def test_a_wrong_key_and_a_dead_store_are_told_apart(s3: S3Store) -> None:
    wrong = ObjectStore(s3.endpoint, s3.access_key, "wrong" * 8, bucket=s3.bucket())
    assert await kind_of(wrong.put("acme", "a", b"")) is ErrorKind.UNAVAILABLE
    dead = ObjectStore("127.0.0.1:9", "a", "b" * 10)
    assert await kind_of(dead.get("acme", "a")) is ErrorKind.UNAVAILABLE
    await wrong.close()
    await dead.close()


async def test_a_write_on_condition_holds_in_the_moment_of_the_write(store: ObjectStore) -> None:
    async def chunks(data: bytes) -> AsyncIterator[bytes]:
        yield data

    async def put(data: bytes, expected: str) -> bool:
        try:
            await store.put_stream("acme", "a", chunks(data), len(data), expected=expected)
        except MeshError as error:
            return not (error.kind is ErrorKind.CONFLICT and error.reason == "OBJECT_CHANGED")
        return True

    assert sorted(await asyncio.gather(*(put(b"%d" % number, "") for number in range(8)))) == [False] * 7 + [True]
    first = await store.stat("acme", "a")
    assert first is not None
    assert not await put(b"other", "other")
    assert await put(b"second", first.etag)
    assert not await put(b"third", first.etag)
    with pytest.raises(MeshError, match="changed"):
        await store.delete("acme", "a", expected=first.etag)
    second = await store.stat("acme", "a")
    assert second is not None
    await store.delete("acme", "a", expected=second.etag)
    assert await store.stat("acme", "a") is None


@pytest.mark.parametrize(("seconds", "times"), [(0.2, 1), (30.0, 4)])
async def test_a_call_that_has_taken_long_is_not_repeated(seconds: float, times: int) -> None:
    asked = 0

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        while (line := await reader.readline()).strip():
            asked += line.startswith(b"PUT ")
        await reader.readexactly(7)
        await asyncio.sleep(0.3)
        writer.write(b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        clients = S3Clients(
            f"{host}:{port}",
            "key",
            "secret",
            secure=False,
            region="us-east-1",
            threads=1,
            repeat_seconds=seconds,
        )
        with pytest.raises(Exception) as caught:  # noqa: PT011 -- the client's own, which only its module knows
            await asyncio.to_thread(clients.usual().put_object, "bucket", "object", io.BytesIO(b"content"), 7)
    told = translated(caught.value, "object")
    assert told is not None
    assert told.kind is ErrorKind.UNAVAILABLE
    assert asked == times


async def test_a_store_that_is_silent_is_asked_once() -> None:
    asked = 0

    async def be_silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        while (line := await reader.readline()).strip():
            asked += line.startswith(b"PUT ")
        await reader.read()  # until the caller hangs up
        writer.close()

    async with await asyncio.start_server(be_silent, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        clients = S3Clients(
            f"{host}:{port}", "key", "secret", secure=False, region="us-east-1", threads=1, read_seconds=1
        )
        with pytest.raises(Exception) as caught:  # noqa: PT011 -- the client's own, which only its module knows
            await asyncio.to_thread(clients.usual().put_object, "bucket", "object", io.BytesIO(b"content"), 7)
    told = translated(caught.value, "object")
    assert told is not None
    assert told.kind is ErrorKind.UNAVAILABLE
    assert asked == 1
