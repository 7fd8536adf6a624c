import json
import os
import struct
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest

from meshkit.errors import ErrorKind, MeshError
from meshkit.objects import ObjectInfo, ObjectStore
from meshkit.worker.lora_cache import LoraCache, check_safetensors


def safetensors(payload: bytes = b"\0" * 8, **changes: Any) -> bytes:
    entry = {"dtype": "F32", "shape": [len(payload) // 4], "data_offsets": [0, len(payload)], **changes}
    header = json.dumps({"__metadata__": {"format": "pt"}, "w": entry}).encode()
    return struct.pack("<Q", len(header)) + header + payload


class Store:
    """What the cache asks of an object store."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str], tuple[str, bytes]] = {}
        self.downloads = 0

    async def stat(self, tenant: str, path: str) -> ObjectInfo | None:
        if (found := self.objects.get((tenant, path))) is None:
            return None
        return ObjectInfo(path, len(found[1]), found[0], "", datetime.now(UTC))

    async def download(self, tenant: str, path: str, dest: Path) -> None:
        self.downloads += 1
        dest.write_bytes(self.objects[tenant, path][1])  # noqa: ASYNC240 -- a few bytes


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def cache(store: Store, tmp_path: Path) -> LoraCache:
    return LoraCache(cast("ObjectStore", store), tmp_path / "loras", max_bytes=300, max_file_bytes=10_000)


async def test_a_file_is_fetched_once_and_keeps_its_local_path(store: Store, cache: LoraCache) -> None:
    store.objects["acme", "loras/styles/a.safetensors"] = ("1", safetensors())
    paths = []
    for _ in range(3):
        async with cache.lend("acme", "styles/a.safetensors") as path:
            paths.append(path)
            assert path.read_bytes() == safetensors()
    assert len(set(paths)) == 1
    assert store.downloads == 1


async def test_the_path_that_an_upload_prints_names_the_same_file(store: Store, cache: LoraCache) -> None:
    store.objects["acme", "loras/styles/a.safetensors"] = ("1", safetensors())
    printed = "/data/models/loras/styles/a.safetensors"
    async with cache.lend("acme", "styles/a.safetensors") as one, cache.lend("acme", printed) as other:
        assert one == other


async def test_a_path_that_was_written_anew_is_fetched_anew(store: Store, cache: LoraCache) -> None:
    store.objects["acme", "loras/a.safetensors"] = ("1", safetensors())
    async with cache.lend("acme", "a.safetensors") as old:
        store.objects["acme", "loras/a.safetensors"] = ("2", safetensors(b"\1" * 8))
        async with cache.lend("acme", "a.safetensors") as new:
            assert new != old
            assert new.read_bytes() == safetensors(b"\1" * 8)


async def test_a_tenants_own_file_goes_before_the_shared_one(store: Store, cache: LoraCache) -> None:
    store.objects["shared", "loras/a.safetensors"] = ("1", safetensors(b"\1" * 8))
    async with cache.lend("acme", "a.safetensors") as path:
        assert path.read_bytes() == safetensors(b"\1" * 8)
    store.objects["acme", "loras/a.safetensors"] = ("1", safetensors())
    async with cache.lend("acme", "a.safetensors") as path:
        assert path.read_bytes() == safetensors()


async def test_another_tenants_file_does_not_exist(store: Store, cache: LoraCache) -> None:
    store.objects["other", "loras/a.safetensors"] = ("1", safetensors())
    with pytest.raises(MeshError) as caught:
        async with cache.lend("acme", "a.safetensors"):
            pass
    assert caught.value.kind is ErrorKind.INVALID


@pytest.mark.parametrize("path", ["../../other/loras/a.safetensors", "/etc/passwd", "a\0b", "a/../../b"])
async def test_a_path_does_not_lead_out_of_the_library(cache: LoraCache, path: str) -> None:
    with pytest.raises(MeshError):
        async with cache.lend("acme", path):
            pass


async def test_files_that_are_not_in_use_are_evicted_the_longest_unused_first(
    store: Store, cache: LoraCache, tmp_path: Path
) -> None:
    for name in "abc":
        store.objects["acme", f"loras/{name}.safetensors"] = ("1", safetensors(name.encode() * 8))
    async with cache.lend("acme", "a.safetensors") as used:
        os.utime(used, (1, 1))
        async with cache.lend("acme", "b.safetensors") as unused:
            pass
        os.utime(unused, (2, 2))
        async with cache.lend("acme", "c.safetensors"):
            assert used.exists()
            assert not unused.exists()


async def test_what_is_no_safetensors_file_is_not_lent_and_not_kept(
    store: Store, cache: LoraCache, tmp_path: Path
) -> None:
    store.objects["acme", "loras/a.safetensors"] = ("1", b"\x80\x04\x95pickled, whatever its name says")
    with pytest.raises(MeshError) as caught:
        async with cache.lend("acme", "a.safetensors"):
            pass
    assert caught.value.kind is ErrorKind.INVALID
    assert not list((tmp_path / "loras").iterdir())


async def test_a_file_above_the_limit_is_not_fetched(store: Store, cache: LoraCache) -> None:
    store.objects["acme", "loras/a.safetensors"] = ("1", safetensors(bytes(20_000)))
    with pytest.raises(MeshError) as caught:
        async with cache.lend("acme", "a.safetensors"):
            pass
    assert caught.value.kind is ErrorKind.TOO_LARGE
    assert store.downloads == 0


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 7,
        struct.pack("<Q", 1 << 60) + b"{}",
        struct.pack("<Q", 4) + b"nope",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 2) + b"{}" + b"hidden",
        safetensors() + b"trailing",
        safetensors(data_offsets=[0, 4]),
        safetensors(data_offsets=[4, 12]),
        safetensors(data_offsets=["0", "8"]),
        safetensors(data_offsets=None),
        struct.pack("<Q", 200_000) + b"[" * 200_000,
    ],
)
def test_a_header_describes_exactly_the_bytes_that_follow(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "x"
    file.write_bytes(content)
    with pytest.raises(MeshError):
        check_safetensors(file, "x")


def test_a_well_formed_file_passes(tmp_path: Path) -> None:
    file = tmp_path / "x"
    file.write_bytes(safetensors())
    check_safetensors(file, "x")
