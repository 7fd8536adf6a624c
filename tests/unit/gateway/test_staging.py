"""Files that the gateway stages: who deletes what, and when."""

import asyncio
import base64
import io
from functools import partial

import pytest
from PIL import Image

from meshkit.errors import ErrorKind, MeshError, conflict, forbidden, invalid, not_found, unavailable
from meshkit.transcoding.decoding import Upload
from services.gateway.staging import UploadStager
from tests.unit.image_checks import InProcessChecks


class Store:
    """An object store in a dict, slow where a test says so."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str], bytes] = {}
        self.log: list[str] = []
        self.deleting = asyncio.Event()
        self.may_delete = asyncio.Event()
        self.may_delete.set()
        self.full = False

    async def put(self, tenant: str, path: str, data: bytes, content_type: str = "") -> None:
        if self.full and self.objects:
            raise unavailable("full")
        self.log.append("put")
        self.objects[tenant, path] = data

    async def delete(self, tenant: str, path: str) -> None:
        self.deleting.set()
        await self.may_delete.wait()
        self.log.append("delete")
        self.objects.pop((tenant, path), None)


def picture(color: str = "red") -> str:
    out = io.BytesIO()
    Image.new("RGB", (8, 8), color).save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()


class Request:
    """What is left of a request: the names that stand in place of its files."""

    def __init__(self, *pictures: str) -> None:
        self.names: dict[int, str] = {}
        self.uploads = [
            Upload(("body", "files", index), data, partial(self.names.__setitem__, index))
            for index, data in enumerate(pictures)
        ]


def stager(store: Store) -> UploadStager:
    return UploadStager(store, InProcessChecks())


async def test_what_was_accepted_stays_for_the_service_that_took_it() -> None:
    store, request = Store(), Request(picture())
    async with stager(store).staged("acme", request.uploads):
        assert [f"staging:{path}" for _, path in store.objects] == list(request.names.values())
    assert len(store.objects) == 1


@pytest.mark.parametrize(
    ("error", "left"),
    [
        (invalid("task.loras", "Unknown LoRA", "unknown_lora"), 0),
        (forbidden("no"), 0),
        (conflict("used for another request"), 0),
        (not_found("Task", "7"), 0),
        # It may have been accepted, and the answer lost.
        (unavailable("gone"), 2),
        (MeshError(ErrorKind.DEADLINE, "late"), 2),
        (MeshError(ErrorKind.INTERNAL, "broken"), 2),
    ],
    ids=lambda value: value.kind.name if isinstance(value, MeshError) else None,
)
@pytest.mark.parametrize("key", ["", "k"])
async def test_a_refused_request_leaves_nothing_behind(error: MeshError, left: int, key: str) -> None:
    store, request = Store(), Request(picture("red"), picture("blue"))
    with pytest.raises(MeshError) as caught:
        async with stager(store).staged("acme", request.uploads, key=key):
            raise error
    assert caught.value is error
    assert len(store.objects) == left


async def test_what_was_staged_before_the_store_failed_goes_again() -> None:
    store, request = Store(), Request(picture("red"), picture("blue"))
    store.full = True
    with pytest.raises(MeshError, match="full"):
        async with stager(store).staged("acme", request.uploads):
            raise AssertionError("the second file was not stored")
    assert store.log[:2] == ["put", "delete"]
    assert not store.objects


async def test_a_repeated_request_that_was_answered_before_leaves_nothing() -> None:
    store, request = Store(), Request(picture())
    async with stager(store).staged("acme", request.uploads, key="k") as stay:
        stay.unclaimed = True
    assert not store.objects


async def test_a_refused_duplicate_does_not_take_the_file_of_the_one_under_way() -> None:
    store, first, second = Store(), Request(picture()), Request(picture())
    here = stager(store)
    async with here.staged("acme", first.uploads, key="k", request=b"same"):
        with pytest.raises(MeshError, match="y"):
            async with here.staged("acme", second.uploads, key="k", request=b"same"):
                raise invalid("x", "y", "z")
        assert first.names == second.names, "a repeated request reads alike"
        assert len(store.objects) == 1
    assert len(store.objects) == 1


async def test_another_request_under_the_same_key_has_a_file_of_its_own() -> None:
    store, first, second = Store(), Request(picture()), Request(picture())
    here = stager(store)
    async with here.staged("acme", first.uploads, key="k", request=b"one"):
        with pytest.raises(MeshError):
            async with here.staged("acme", second.uploads, key="k", request=b"other"):
                raise conflict("The key was used for another request")
        assert [f"staging:{path}" for _, path in store.objects] == list(first.names.values())


async def test_a_duplicate_that_comes_while_the_file_is_deleted_puts_it_there_again() -> None:
    store, first, second = Store(), Request(picture()), Request(picture())
    here = stager(store)
    store.may_delete.clear()

    async def refused() -> None:
        async with here.staged("acme", first.uploads, key="k", request=b"same"):
            raise invalid("x", "y", "z")

    leaving = asyncio.create_task(refused())
    await store.deleting.wait()

    async def repeated() -> int:
        async with here.staged("acme", second.uploads, key="k", request=b"same"):
            return len(store.objects)

    coming = asyncio.create_task(repeated())
    await asyncio.sleep(0.05)
    store.may_delete.set()
    with pytest.raises(MeshError):
        await leaving
    assert await coming == 1
    assert store.log == ["put", "delete", "put"]


async def test_one_file_named_twice_by_one_request_is_deleted_once() -> None:
    store, request = Store(), Request(picture())
    upload = request.uploads[0]
    with pytest.raises(MeshError):
        async with stager(store).staged("acme", [upload, upload], key="k"):
            raise invalid("x", "y", "z")
    assert store.log == ["put", "put", "delete"]
