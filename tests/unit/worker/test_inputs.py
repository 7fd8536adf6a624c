import base64
import io
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import pytest
from PIL import Image

from meshkit.errors import ErrorKind, MeshError, unavailable
from meshkit.fetcher import Fetcher
from meshkit.objects import ObjectInfo, ObjectStore
from meshkit.worker.handlers import InputRef
from meshkit.worker.inputs import Inputs
from meshkit.worker.lora_cache import LoraCache


def png(size: int = 4) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), "red").save(buffer, "PNG")
    return buffer.getvalue()


class Store:
    def __init__(self) -> None:
        self.objects: dict[tuple[str, str], bytes] = {}
        self.away = False

    async def stat(self, tenant: str, path: str) -> ObjectInfo | None:
        if self.away:
            raise unavailable("away")
        found = self.objects.get((tenant, path))
        return None if found is None else ObjectInfo(path, len(found), "1", "", datetime.now(UTC))

    async def get(self, tenant: str, path: str) -> bytes:
        return self.objects[tenant, path]


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def inputs(store: Store, tmp_path: Path) -> Inputs:
    objects = cast("ObjectStore", store)
    loras = LoraCache(objects, tmp_path / "loras", max_bytes=1000, max_file_bytes=1000)
    return Inputs(objects, Fetcher(), loras, max_bytes=10_000, timeout_seconds=1)


async def fetched(inputs: Inputs, folder: Path, source: str) -> bytes:
    async with inputs.fetched("acme", [InputRef("reference", source, "image")], folder) as files:
        assert files["reference"].parent == folder
        return files["reference"].read_bytes()


async def test_an_image_comes_from_a_path_in_storage(store: Store, inputs: Inputs, tmp_path: Path) -> None:
    store.objects["acme", "uploads/a.png"] = png()
    assert await fetched(inputs, tmp_path, "uploads/a.png") == png()


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


async def test_an_image_above_the_limit_is_not_fetched(store: Store, inputs: Inputs, tmp_path: Path) -> None:
    store.objects["acme", "a.png"] = bytes(20_000)
    with pytest.raises(MeshError) as caught:
        await fetched(inputs, tmp_path, "a.png")
    assert caught.value.kind is ErrorKind.TOO_LARGE
