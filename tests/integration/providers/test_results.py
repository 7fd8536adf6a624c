"""What providers made, as files: fetched under guard, decoded, of exactly the size that was asked for."""

import base64
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from PIL import Image

from meshkit.fetcher import Fetcher
from meshkit.images.checks import ImageChecks
from services.inference.providers.errors import Fault, ProviderError
from services.inference.providers.results import ProviderResults, data_url, size_of
from tests.providers.base import BROKEN, PlainServer, Reply, jpeg, png


@pytest.fixture
async def server() -> AsyncIterator[PlainServer]:
    async with PlainServer(lambda asked: Reply(404)) as running:
        yield running


@pytest.fixture
async def results(server: PlainServer) -> AsyncIterator[ProviderResults]:
    checks = ImageChecks()
    yield ProviderResults(Fetcher([server.host]), checks, max_bytes=100_000, seconds=20.0)
    await checks.close()


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        image.load()
        return image


async def test_a_picture_of_the_asked_size_is_kept_as_it_is(
    server: PlainServer, results: ProviderResults, tmp_path: Path
) -> None:
    data = png(64, 48)
    url = server.serve_file("a.png", data)
    made = await results.picture("fal", url, tmp_path / "image.png", size=(64, 48))
    assert (made.width, made.height) == (64, 48)
    assert made.path.read_bytes() == data
    assert names(tmp_path) == ["image.png"]


@pytest.mark.parametrize("data", [png(60, 50), jpeg(128, 96), png(32, 24, (9, 9, 9, 120), "RGBA")])
async def test_another_picture_is_brought_to_the_size(results: ProviderResults, tmp_path: Path, data: bytes) -> None:
    made = await results.picture("fal", data, tmp_path / "image.png", size=(64, 48))
    image = opened(made.path)
    assert (image.format, image.size) == ("PNG", (64, 48))


async def test_a_data_url_is_a_picture_as_well(results: ProviderResults, tmp_path: Path) -> None:
    url = "data:image/jpeg;base64," + base64.b64encode(jpeg(10, 20)).decode()
    made = await results.picture("fal", url, tmp_path / "image.png")
    assert (opened(made.path).format, opened(made.path).size) == ("PNG", (10, 20))


async def test_the_transparency_of_the_input_is_kept(results: ProviderResults, tmp_path: Path) -> None:
    base = tmp_path / "base.png"
    base.write_bytes(png(10, 10, (1, 2, 3, 100), "RGBA"))
    made = await results.picture("fal", png(40, 40), tmp_path / "image.png", alpha_of=base)
    image = opened(made.path)
    assert (image.mode, image.getchannel("A").getextrema()) == ("RGBA", (100, 100))


@pytest.mark.parametrize("data", [b"no picture", png()[:60], b""])
async def test_a_picture_that_is_none_is_an_empty_answer(
    server: PlainServer, results: ProviderResults, tmp_path: Path, data: bytes
) -> None:
    url = server.serve_file("a.png", data)
    with pytest.raises(ProviderError) as failed:
        await results.picture("fal", url, tmp_path / "image.png")
    assert failed.value.fault is Fault.EMPTY
    assert names(tmp_path) == []


async def test_an_address_within_the_mesh_is_not_fetched(results: ProviderResults, tmp_path: Path) -> None:
    async with PlainServer(lambda asked: Reply(200, png())) as inner:
        for url in (f"{inner.url}/a.png", "http://169.254.169.254/latest", "file:///etc/passwd", "nonsense", ""):
            with pytest.raises(ProviderError) as failed:
                await results.picture("fal", url, tmp_path / "image.png")
            assert failed.value.fault is Fault.EMPTY
        assert inner.connections == 0


async def test_what_is_not_delivered_now_is_asked_for_again(
    server: PlainServer, results: ProviderResults, tmp_path: Path
) -> None:
    url = server.serve_file("a.png", png())
    server.misbehave(BROKEN)
    await results.picture("fal", url, tmp_path / "image.png")
    server.misbehave(BROKEN, times=9)
    with pytest.raises(ProviderError) as failed:
        await results.picture("fal", url, tmp_path / "image.png")
    assert failed.value.fault is Fault.BROKEN


async def test_a_file_that_is_too_large_is_not_taken(
    server: PlainServer, results: ProviderResults, tmp_path: Path
) -> None:
    url = server.serve_file("a.bin", b"x" * 200_000, "application/octet-stream")
    with pytest.raises(ProviderError) as failed:
        await results.fetch("fal", url)
    assert failed.value.fault is Fault.EMPTY


async def test_pictures_leave_as_data_urls(tmp_path: Path) -> None:
    path = tmp_path / "input.png"
    path.write_bytes(png(30, 20))
    assert base64.b64decode((await data_url(path)).removeprefix("data:image/png;base64,")) == path.read_bytes()
    assert await size_of(path) == (30, 20)
