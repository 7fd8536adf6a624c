import json
import struct
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import pytest
from atelier.tasks.v1.enums_pb2 import TASK_TYPE_GENERATION
from atelier.tasks.v1.generation_pb2 import CreateGenerationTask
from atelier.tasks.v1.task_pb2 import CreateTask, Task

from meshkit.fetcher import Fetcher
from meshkit.objects import ObjectInfo, ObjectStore
from services.inference.inputs import AttemptFolders, Inputs
from services.inference.lora_cache import LoraCache
from services.inference.preparing import Preparer
from services.inference.tasktypes.generation import GenerationHandler


def safetensors() -> bytes:
    header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(4)


class Store:
    def __init__(self) -> None:
        self.etags: dict[tuple[str, str], str] = {}

    async def stat(self, tenant: str, path: str) -> ObjectInfo | None:
        etag = self.etags.get((tenant, path))
        return None if etag is None else ObjectInfo(path, 100, etag, "", datetime.now(UTC))

    async def download(self, tenant: str, path: str, dest: Path) -> None:
        assert (tenant, path) in self.etags
        dest.write_bytes(safetensors())  # noqa: ASYNC240 -- a few bytes, and nothing else runs


@pytest.fixture
def store() -> Store:
    return Store()


async def batch_keys(store: Store, folder: Path, *tenants: str) -> set[object]:
    objects = cast("ObjectStore", store)
    loras = LoraCache(objects, folder / "loras", max_bytes=10_000, max_file_bytes=1000)
    folders = AttemptFolders(folder / "attempts")
    folders.open()
    preparer = Preparer(
        {TASK_TYPE_GENERATION: GenerationHandler()},
        Inputs(objects, Fetcher(), loras, max_bytes=1000, timeout_seconds=1),
        folders,
    )
    spec = CreateTask(generation=CreateGenerationTask(prompt="a dress", product_model_path="dress.safetensors"))
    async with AsyncExitStack() as stack:
        stack.callback(folders.close)
        return {
            (await stack.enter_async_context(preparer.prepared(spec, Task(), tenant, lambda _: None))).batch_key
            for tenant in tenants
        }


async def test_loras_of_one_path_and_two_tenants_are_never_in_one_batch(store: Store, tmp_path: Path) -> None:
    store.etags = {("acme", "loras/dress.safetensors"): "1", ("rival", "loras/dress.safetensors"): "1"}
    assert len(await batch_keys(store, tmp_path, "acme", "rival")) == 2


async def test_a_lora_that_all_tenants_share_keeps_their_tasks_together(store: Store, tmp_path: Path) -> None:
    store.etags = {("shared", "loras/dress.safetensors"): "1"}
    [key] = await batch_keys(store, tmp_path, "acme", "rival", "acme")
    assert key is not None
