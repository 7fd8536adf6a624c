import asyncio
import base64
import gzip
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import BinaryIO, cast

import pytest
from PIL import Image

from meshkit.errors import ErrorKind, MeshError, not_found, too_large, unavailable
from meshkit.fetcher import Fetcher
from meshkit.images.limits import ImageLimits
from meshkit.objects import ObjectStore
from meshkit.worker.handlers import InputRef
from meshkit.worker.inputs import Inputs
from meshkit.worker.lora_cache import LoraCache
from tests.unit.image_checks import InProcessChecks


def png(size: int = 4) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), "red").save(buffer, "PNG")
    return buffer.getvalue()


class Store:
    def __init__(self) -> None:
        self.objects: dict[tuple[str, str], bytes] = {}
        self.away = False
        self.asked: list[str] = []
        self.together: asyncio.Barrier | None = None

    async def copy_into(self, tenant: str, path: str, file: BinaryIO, max_bytes: int) -> None:
        self.asked.append(path)
        if self.together is not None:
            async with asyncio.timeout(60):
                await self.together.wait()
        if self.away:
            raise unavailable("away")
        if (tenant, path) not in self.objects:
            raise not_found("Object", path)
        if len(self.objects[tenant, path]) > max_bytes:
            raise too_large(f"{path} is too large")
        file.write(self.objects[tenant, path])


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def inputs(store: Store, tmp_path: Path) -> Inputs:
    objects = cast("ObjectStore", store)
    loras = LoraCache(objects, tmp_path / "loras", max_bytes=1000, max_file_bytes=1000)
    return Inputs(objects, Fetcher(), loras, InProcessChecks(), max_bytes=10_000, timeout_seconds=1)


async def fetched(inputs: Inputs, folder: Path, source: str) -> bytes:
    async with inputs.fetched("acme", [InputRef("reference", source, "image")], folder) as files:
        assert files["reference"].parent == folder
        return files["reference"].read_bytes()


async def test_an_image_comes_from_a_path_in_storage(store: Store, inputs: Inputs, tmp_path: Path) -> None:
    store.objects["acme", "uploads/a.png"] = png()
    assert await fetched(inputs, tmp_path, "uploads/a.png") == png()


async def test_an_image_that_is_not_plain_is_made_plain_for_work(store: Store, inputs: Inputs, tmp_path: Path) -> None:
    deep = io.BytesIO()
    Image.new("F", (4, 4), 0.5).save(deep, "TIFF")
    store.objects["acme", "uploads/a.tiff"] = deep.getvalue()
    with Image.open(io.BytesIO(await fetched(inputs, tmp_path, "uploads/a.tiff"))) as made:
        assert (made.format, made.mode, made.getpixel((0, 0))) == ("PNG", "RGB", (128, 128, 128))
    store.objects["acme", "uploads/a.png"] = png()
    assert await fetched(inputs, tmp_path, "uploads/a.png") == png(), "a plain one stays as it is"


@pytest.mark.parametrize("prefix", ["", "data:image/png;base64,"])
async def test_an_image_comes_as_base64_or_as_a_data_url(inputs: Inputs, tmp_path: Path, prefix: str) -> None:
    assert await fetched(inputs, tmp_path, prefix + base64.b64encode(png()).decode()) == png()


@pytest.mark.parametrize(
    "source",
    [
        "uploads/missing.png",
        "../other/uploads/a.png",
        "/etc/passwd",
        "http://127.0.0.1/a.png",
        "http://169.254.169.254/latest/meta-data",
        "data:text/plain,hello",
        base64.b64encode(b"no image at all").decode(),
        base64.b64encode(png()[:-20]).decode(),
    ],
)
async def test_what_is_no_image_of_this_tenant_is_refused(
    store: Store, inputs: Inputs, tmp_path: Path, source: str
) -> None:
    store.objects["other", "uploads/a.png"] = png()
    with pytest.raises(MeshError) as caught:
        await fetched(inputs, tmp_path, source)
    assert caught.value.kind is ErrorKind.INVALID


async def test_a_store_that_is_away_is_no_fault_of_the_caller(store: Store, inputs: Inputs, tmp_path: Path) -> None:
    store.away = True
    with pytest.raises(MeshError) as caught:
        await fetched(inputs, tmp_path, "uploads/a.png")
    assert caught.value.kind is ErrorKind.UNAVAILABLE


async def test_two_images_are_fetched_at_a_time_and_the_first_error_stops_the_rest(
    store: Store, inputs: Inputs, tmp_path: Path
) -> None:
    store.together = asyncio.Barrier(2)
    for name in ("a.png", "b.png", "e.png"):
        store.objects["acme", name] = png()
    refs = [InputRef(name, f"{name}.png", "image") for name in "abcdef"]
    with pytest.raises(MeshError, match=r"There is no such image") as caught:
        async with inputs.fetched("acme", refs, tmp_path):
            pass
    assert caught.value.violations[0].path == "c"
    assert [sorted(store.asked[:2]), sorted(store.asked[2:])] == [["a.png", "b.png"], ["c.png", "d.png"]]


async def test_an_image_above_the_limit_is_not_fetched(store: Store, tmp_path: Path) -> None:
    checks = InProcessChecks(limits=ImageLimits(max_bytes=15_000))
    objects, loras = cast("ObjectStore", store), cast("LoraCache", None)
    inputs = Inputs(objects, Fetcher(), loras, checks, max_bytes=10_000, timeout_seconds=1)
    store.objects["acme", "a.png"] = bytes(20_000)
    for source in ("a.png", "data:;base64," + base64.b64encode(bytes(11_000)).decode()):
        with pytest.raises(MeshError) as caught:
            await fetched(inputs, tmp_path, source)
        assert caught.value.kind is ErrorKind.TOO_LARGE
    photo = png() + bytes(12_000)
    store.objects["acme", "b.png"] = photo
    assert await fetched(inputs, tmp_path, "b.png") == photo, "what is stored may be larger than what is sent"


@asynccontextmanager
async def answering(body: bytes, *headers: str) -> AsyncIterator[str]:
    """The address of a server that gives every request this answer."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        head = "\r\n".join(["HTTP/1.1 200 OK", "connection: close", f"content-length: {len(body)}", *headers])
        writer.write(head.encode() + b"\r\n\r\n" + body)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/a"


@pytest.fixture
def remote(store: Store, tmp_path: Path) -> Inputs:
    loras = LoraCache(cast("ObjectStore", store), tmp_path / "loras", max_bytes=1000, max_file_bytes=1000)
    fetcher = Fetcher(["127.0.0.0/8"])
    return Inputs(cast("ObjectStore", store), fetcher, loras, InProcessChecks(), max_bytes=10_000, timeout_seconds=5)


@pytest.mark.parametrize(
    "headers",
    [
        ["content-type: application/octet-stream"],
        ["content-type: binary/octet-stream"],
        [],
        ["content-type: IMAGE/PNG; charset=binary"],
        ["content-type: image/jpeg"],
    ],
    ids=["bytes", "S3's bytes", "no type", "upper case", "another image's type"],
)
async def test_a_picture_at_an_address_is_known_by_its_content(
    remote: Inputs, tmp_path: Path, headers: list[str]
) -> None:
    async with answering(png(), *headers) as address:
        assert await fetched(remote, tmp_path, address) == png()


async def test_a_picture_that_is_sent_compressed_is_unpacked(remote: Inputs, tmp_path: Path) -> None:
    async with answering(gzip.compress(png()), "content-type: image/png", "content-encoding: gzip") as address:
        assert await fetched(remote, tmp_path, address) == png()


@pytest.mark.parametrize("headers", [["content-type: text/html"], ["content-type: application/octet-stream"], []])
async def test_a_page_at_an_address_is_no_picture_whatever_its_type(
    remote: Inputs, tmp_path: Path, headers: list[str]
) -> None:
    async with answering(b"<html></html>", *headers) as address:
        with pytest.raises(MeshError) as caught:
            await fetched(remote, tmp_path, address)
    assert caught.value.kind is ErrorKind.INVALID
