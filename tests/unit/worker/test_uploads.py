import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import pytest
from atelier.inference.v1.child_pb2 import ChildFile, ChildOutput
from atelier.tasks.v1.background_removal_pb2 import BackgroundRemovalTaskPublic
from atelier.tasks.v1.noop_pb2 import NoopTaskPublic
from atelier.tasks.v1.task_pb2 import TaskResult
from atelier.tasks.v1.worker_service_pb2 import Lease

from meshkit.errors import MeshError, invalid, unavailable
from meshkit.objects import ObjectInfo, ObjectStore
from meshkit.worker.handlers import TaskFailed
from meshkit.worker.uploads import Uploads, name_files

LEASE = Lease(job_id="j", attempt=1, tenant="acme", result_prefix="noops/j/1/")
FILE = ChildFile(name="a.png", content_type="image/png")


class Store:
    """Remembers what it was given; writes last as long as the test says."""

    def __init__(self) -> None:
        self.objects: set[str] = set()
        self.begun = 0
        self.go = asyncio.Event()
        self.go.set()
        self.errors: list[MeshError] = []

    async def put(self, tenant: str, path: str, data: Path, content_type: str) -> ObjectInfo:
        self.begun += 1
        await self.go.wait()
        if self.errors:
            raise self.errors.pop(0)
        self.objects.add(f"{tenant}:{path}")
        return ObjectInfo(path, 1, "", content_type, datetime.now(UTC))

    async def delete(self, tenant: str, path: str) -> None:
        self.objects.discard(f"{tenant}:{path}")


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def uploads(store: Store) -> Uploads:
    return Uploads(cast("ObjectStore", store), LEASE)


@pytest.fixture
def folder(tmp_path: Path) -> str:
    (tmp_path / "a.png").write_bytes(b"png")
    return str(tmp_path)


async def test_what_is_discarded_is_deleted(store: Store, uploads: Uploads, folder: str) -> None:
    stored = await uploads.put(folder, FILE)
    assert (stored.path, store.objects) == ("noops/j/1/a.png", {"acme:noops/j/1/a.png"})
    await uploads.discard()
    assert not store.objects


async def test_what_is_kept_stays(store: Store, uploads: Uploads, folder: str) -> None:
    await uploads.put(folder, FILE)
    uploads.keep()
    await uploads.discard()
    assert store.objects


async def test_a_write_that_goes_on_after_its_attempt_was_stopped_is_deleted_too(
    store: Store, uploads: Uploads, folder: str
) -> None:
    store.go.clear()
    putting = asyncio.ensure_future(uploads.put(folder, FILE))
    while not store.begun:  # noqa: ASYNC110 -- a few turns of the loop
        await asyncio.sleep(0)
    putting.cancel()
    discarding = asyncio.ensure_future(uploads.discard())
    await asyncio.sleep(0.01)
    assert putting.cancelled()
    assert not discarding.done()
    store.go.set()
    await discarding
    assert store.begun == 1
    assert not store.objects


async def test_a_store_that_is_away_is_asked_again(store: Store, uploads: Uploads, folder: str) -> None:
    store.errors = [unavailable("away")]
    await uploads.put(folder, FILE)
    assert (store.begun, len(store.objects)) == (2, 1)


async def test_a_refusal_is_final(store: Store, uploads: Uploads, folder: str) -> None:
    store.errors = [invalid("path", "no")]
    with pytest.raises(TaskFailed):
        await uploads.put(folder, FILE)
    assert store.begun == 1


@pytest.mark.parametrize("name", ["../a.png", "missing.png", "link.png"])
async def test_only_plain_files_of_the_folder_are_stored(
    store: Store, uploads: Uploads, folder: str, name: str
) -> None:
    (Path(folder) / "link.png").symlink_to("/etc/hostname")
    with pytest.raises(TaskFailed):
        await uploads.put(folder, ChildFile(name=name))
    assert not store.begun


def test_a_files_path_is_set_where_the_result_has_a_field_for_it() -> None:
    output = ChildOutput(
        result=TaskResult(noop=NoopTaskPublic()),
        files=[ChildFile(name="a.png", field="result_path"), ChildFile(name="notes.txt")],
    )
    assert name_files(output, "noops/j/1/").noop.result_path == "noops/j/1/a.png"


def test_files_of_a_list_are_named_in_their_places_whatever_order_they_come_in() -> None:
    output = ChildOutput(
        result=TaskResult(background_remove=BackgroundRemovalTaskPublic()),
        files=[
            ChildFile(name="2.png", field="result_image_paths", index=2),
            ChildFile(name="0.png", field="result_image_paths", index=0),
        ],
    )
    named = name_files(output, "backgrounds/j/1/").background_remove
    assert list(named.result_image_paths) == ["backgrounds/j/1/0.png", "", "backgrounds/j/1/2.png"]


def test_an_item_that_failed_at_the_end_of_a_list_keeps_its_place() -> None:
    output = ChildOutput(
        result=TaskResult(background_remove=BackgroundRemovalTaskPublic(result_image_paths=["", ""])),
        files=[ChildFile(name="0.png", field="result_image_paths", index=0)],
    )
    named = name_files(output, "p/").background_remove
    assert list(named.result_image_paths) == ["p/0.png", ""]
