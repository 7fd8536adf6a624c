import base64
import contextlib
import io
import json
import struct
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, cast

import pytest
from atelier.tasks.v1.background_removal_pb2 import CreateBackgroundRemovalTask
from atelier.tasks.v1.editing_pb2 import CreateEditingTask
from atelier.tasks.v1.enums_pb2 import (
    ERROR_CATEGORY_RESOURCE,
    ERROR_CATEGORY_VALIDATION,
    TASK_TYPE_GENERATION,
    TASK_TYPE_IMAGE_ADJUSTER,
    TASK_TYPE_NOOP,
)
from atelier.tasks.v1.generation_pb2 import CreateGenerationTask
from atelier.tasks.v1.image_adjuster_pb2 import CreateImageAdjusterTask
from atelier.tasks.v1.noop_pb2 import CreateNoopTask
from atelier.tasks.v1.task_pb2 import CreateTask, Task
from PIL import Image

from meshkit.errors import not_found
from meshkit.fetcher import Fetcher
from meshkit.objects import ObjectInfo, ObjectStore
from meshkit.worker.folders import AttemptFolders
from meshkit.worker.handlers import InputRef, TaskFailed, image_refs
from meshkit.worker.inputs import Inputs
from meshkit.worker.lora_cache import LoraCache
from meshkit.worker.pairs import Pair, pair_of
from meshkit.worker.preparer import InputNames, JobPreparer
from meshkit.worker.runner import Job
from services.inference.tasktypes import load_handlers
from services.inference.tasktypes.generation import GenerationHandler
from tests.unit.image_checks import InProcessChecks


def safetensors() -> bytes:
    header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(4)


class Store:
    def __init__(self, stored: Mapping[str, bytes] | None = None) -> None:
        self.stored = dict(stored or {})
        self.etags = {("acme", path): "1" for path in self.stored}

    async def copy_into(self, tenant: str, path: str, file: BinaryIO, max_bytes: int) -> None:
        if (tenant, path) not in self.etags:
            raise not_found("Object", path)
        assert len(self.stored[path]) <= max_bytes
        file.write(self.stored[path])

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
    folders = AttemptFolders.open(folder / "attempts")
    handler, pair = GenerationHandler(), Pair(TASK_TYPE_GENERATION)
    preparer = JobPreparer(
        {pair: handler},
        Inputs(objects, Fetcher(), loras, InProcessChecks(), max_bytes=1000, timeout_seconds=1),
        folders,
        {pair: handler.batch_key},
    )
    spec = CreateTask(generation=CreateGenerationTask(prompt="a dress", product_model_path="dress.safetensors"))
    async with AsyncExitStack() as stack:
        stack.callback(folders.close)
        return {
            (await stack.enter_async_context(preparer.prepared(pair, spec, Task(), tenant, lambda _: None))).batch_key
            for tenant in tenants
        }


async def test_loras_of_one_path_and_two_tenants_are_never_in_one_batch(store: Store, tmp_path: Path) -> None:
    store.etags = {("acme", "loras/dress.safetensors"): "1", ("rival", "loras/dress.safetensors"): "1"}
    assert len(await batch_keys(store, tmp_path, "acme", "rival")) == 2


async def test_a_lora_that_all_tenants_share_keeps_their_tasks_together(store: Store, tmp_path: Path) -> None:
    store.etags = {("shared", "loras/dress.safetensors"): "1"}
    [key] = await batch_keys(store, tmp_path, "acme", "rival", "acme")
    assert key is not None


async def test_data_goes_to_the_child_as_a_file_and_not_in_the_frame(tmp_path: Path) -> None:
    picture = io.BytesIO()
    Image.effect_noise((96, 96), 90).save(picture, "PNG")
    data = base64.b64encode(picture.getvalue()).decode()
    assert len(data) > 4096
    spec = CreateTask(image_adjuster=CreateImageAdjusterTask(input_image=data, target_width=64, target_height=80))
    async with prepared(tmp_path, spec) as job:
        file = Path(job.payload.inputs["input"])
        assert file.read_bytes() == picture.getvalue()  # noqa: ASYNC240 -- a few bytes, and nothing else runs
        assert job.payload.spec.image_adjuster.input_image == "input"
        assert job.payload.spec.image_adjuster.target_height == 80
        assert job.payload.ByteSize() < 1024
    assert spec.image_adjuster.input_image == data, "the caller's message is left as it is"


class ListHandler:
    """Names each image of a list, as a handler of EDITING or BACKGROUND_REMOVE does."""

    def inputs(self, spec: CreateTask, task: Task) -> Sequence[InputRef]:
        if spec.HasField("editing"):
            base = InputRef("base", task.editing.base_image_path or spec.editing.base_image, "image")
            return [base, *image_refs("reference", spec.editing.reference_images)]
        return image_refs("input", spec.background_remove.input_image_paths)


async def test_items_of_a_list_are_inputs_of_their_own_and_their_bytes_stay_out_of_the_frame(tmp_path: Path) -> None:
    pictures = []
    for side in (96, 97, 98):
        picture = io.BytesIO()
        Image.effect_noise((side, side), 90).save(picture, "PNG")
        pictures.append(picture.getvalue())
    base, first, second = (base64.b64encode(picture).decode() for picture in pictures)
    editing = CreateEditingTask(prompt="p", base_image=base, reference_images=[first, second])
    spec = CreateTask(editing=editing)
    async with prepared(tmp_path, spec, ListHandler()) as job:
        files = job.payload.inputs
        kept = [Path(files[name]).read_bytes() for name in ("base", "reference[0]", "reference[1]")]  # noqa: ASYNC240 -- a few bytes
        assert kept == pictures
        assert job.payload.spec.editing.base_image == "base"
        assert list(job.payload.spec.editing.reference_images) == ["reference[0]", "reference[1]"]
        assert job.payload.spec.editing.prompt == "p"
        assert job.payload.ByteSize() < 1024
    assert list(spec.editing.reference_images) == [first, second], "the caller's message is left as it is"


async def test_paths_in_a_list_stay_as_they_are(tmp_path: Path) -> None:
    paths = ["uploads/a.png", "uploads/b.png"]
    spec = CreateTask(background_remove=CreateBackgroundRemovalTask(input_image_paths=paths))
    picture = io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "PNG")
    async with prepared(tmp_path, spec, ListHandler(), dict.fromkeys(paths, picture.getvalue())) as job:
        assert sorted(job.payload.inputs) == ["input[0]", "input[1]"]
        assert list(job.payload.spec.background_remove.input_image_paths) == paths


async def test_an_item_that_is_no_image_fails_the_task_and_is_named(tmp_path: Path) -> None:
    picture = io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "PNG")
    stored = {"a.png": picture.getvalue(), "b.png": b"no image"}
    spec = CreateTask(background_remove=CreateBackgroundRemovalTask(input_image_paths=list(stored)))
    with pytest.raises(TaskFailed) as caught:
        async with prepared(tmp_path, spec, ListHandler(), stored):
            pass
    assert caught.value.category == ERROR_CATEGORY_VALIDATION
    assert caught.value.message.startswith("input[1]: ")


class PatientHandler:
    """Names images that its task can do without, one by one."""

    def inputs(self, spec: CreateTask, task: Task) -> Sequence[InputRef]:
        return image_refs("input", spec.background_remove.input_image_paths, required=False)


async def test_an_item_that_the_task_can_do_without_is_told_of_and_fails_nothing(tmp_path: Path) -> None:
    picture = io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "PNG")
    stored = {"a.png": picture.getvalue(), "b.png": b"no image"}
    paths = [*stored, "gone.png", "http://127.0.0.1:9/a.png"]
    spec = CreateTask(background_remove=CreateBackgroundRemovalTask(input_image_paths=paths))
    async with prepared(tmp_path, spec, PatientHandler(), stored) as job:
        assert list(job.payload.inputs) == ["input[0]"]
        refused = job.payload.refused_inputs
        assert sorted(refused) == ["input[1]", "input[2]", "input[3]"]
        assert all(reason.startswith(name) for name, reason in refused.items())
        assert refused["input[2]"] == "input[2]: There is no such image in storage."


async def test_a_task_whose_servers_are_all_away_is_tried_again(tmp_path: Path) -> None:
    spec = CreateTask(background_remove=CreateBackgroundRemovalTask(input_image_paths=["http://127.0.0.1:9/a.png"]))
    with pytest.raises(TaskFailed) as caught:
        async with prepared(tmp_path, spec, PatientHandler(), fetcher=Fetcher(allow_private=["127.0.0.0/8"])):
            pass
    assert (caught.value.category, caught.value.retryable) == (ERROR_CATEGORY_RESOURCE, True)


async def test_a_task_that_no_frame_carries_is_refused_as_invalid(tmp_path: Path) -> None:
    spec = CreateTask(noop=CreateNoopTask(payload="x" * (33 << 20)))
    with pytest.raises(TaskFailed) as caught:
        async with prepared(tmp_path, spec):
            pass
    assert (caught.value.category, caught.value.retryable) == (ERROR_CATEGORY_VALIDATION, False)


async def test_a_large_job_shares_no_frame(tmp_path: Path) -> None:
    small = CreateTask(generation=CreateGenerationTask(prompt="a dress"))
    large = CreateTask(generation=CreateGenerationTask(prompt="a dress" * (100 << 10)))
    async with prepared(tmp_path, small) as job, prepared(tmp_path, large) as other:
        assert job.batch_key is not None
        assert other.batch_key is None


@contextlib.asynccontextmanager
async def prepared(
    folder: Path,
    spec: CreateTask,
    handler: InputNames | None = None,
    stored: Mapping[str, bytes] | None = None,
    fetcher: Fetcher | None = None,
) -> AsyncIterator[Job]:
    """A job of a handler, of the worker's own where none is given, with what the tenant has stored."""
    objects, pair = cast("ObjectStore", Store(stored or {})), pair_of(spec, Task())
    with tempfile.TemporaryDirectory(dir=folder) as own:
        folders = AttemptFolders.open(Path(own))
        types = (TASK_TYPE_GENERATION, TASK_TYPE_IMAGE_ADJUSTER, TASK_TYPE_NOOP)
        handlers = {Pair(kind): handler for kind, handler in load_handlers(types).items()}
        preparer = JobPreparer(
            handlers if handler is None else {pair: handler},
            Inputs(
                objects,
                fetcher or Fetcher(),
                LoraCache(objects, folder / "loras", max_bytes=1, max_file_bytes=1),
                InProcessChecks(),
                max_bytes=1 << 20,
                timeout_seconds=1,
            ),
            folders,
            {pair: handler.batch_key for pair, handler in handlers.items()},
        )
        async with preparer.prepared(pair, spec, Task(), "acme", lambda _: None) as job:
            yield job
        folders.close()
