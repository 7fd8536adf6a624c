import base64
import io
from typing import Any, cast
from uuid import uuid4

import pytest
from atelier.workflows.v1 import workflow_pb2
from google.protobuf import json_format
from PIL import Image

from meshkit.errors import ErrorKind, MeshError, invalid
from meshkit.images.checks import ImageChecks
from meshkit.objects import ObjectStore
from meshkit.stored_bytes import StoredBytes
from services.workflows.files import StepFiles, folder_of, holds_files, refuse_files

WORKFLOW = uuid4()
INPUTS = folder_of(WORKFLOW)


def png() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (4, 4), "red").save(out, "PNG")
    return out.getvalue()


PNG = base64.b64encode(png()).decode()


class Info:
    format, content_type, size = "PNG", "image/png", 70


class Store:
    def __init__(self, **staged: str) -> None:
        self.staged = staged

    async def stat(self, _: str, path: str) -> Any:
        kind = self.staged.get(path.removeprefix("staging/"))
        if kind is None:
            return None
        info = Info()
        info.content_type = kind
        return info


class Checks:
    async def check(self, _: str, data: bytes, *, path: str) -> Any:
        if not data.startswith(b"\x89PNG"):
            raise invalid(path, "is no image", "image")
        return Info()


def files(most: int = 0, **staged: str) -> StepFiles:
    store = cast("ObjectStore", Store(**staged))
    return StepFiles(store, cast("ImageChecks", Checks()), StoredBytes(store, most))


def definition(task_type: str, config: dict[str, Any], *mapped: str) -> workflow_pb2.CreateWorkflow:
    mappings = [{"from_step": "x", "from_field": "y", "to_field": one} for one in mapped]
    step = {"id": "a", "task_type": f"TASK_TYPE_{task_type}", "config": config, "input_mappings": mappings}
    return json_format.ParseDict({"name": "n", "steps": [step]}, workflow_pb2.CreateWorkflow())


async def accepted(
    workflow: workflow_pb2.CreateWorkflow, taker: StepFiles | None = None
) -> tuple[dict[str, Any], list[str]]:
    found = await (taker or files()).accept(workflow, "acme", WORKFLOW)
    return json_format.MessageToDict(workflow.steps[0].config), [one.path for one in found]


async def test_a_file_becomes_a_path_below_its_workflow() -> None:
    for text in (PNG, f"data:image/png;base64,{PNG}"):
        workflow = definition("EDITING", {"prompt": "x", "base_image": text})
        assert holds_files(workflow)
        config, paths = await accepted(workflow)
        assert paths == [f"{INPUTS}0-base_image.png"]
        assert config == {"prompt": "x", "base_image": paths[0]}


async def test_of_a_list_only_files_are_taken() -> None:
    given = ["looks/a.png", PNG, "https://example.com/b.png", "staging:staging/one"]
    config, paths = await accepted(
        definition("EDITING", {"base_image": "a.png", "reference_images": given}), files(one="image/webp")
    )
    assert paths == [f"{INPUTS}0-reference_images-1.png", f"{INPUTS}0-reference_images-3.webp"]
    assert config["reference_images"] == [given[0], paths[0], given[2], paths[1]]


@pytest.mark.parametrize("path", ["looks/dress", "a.png", "AAAA", "https://example.com/a.png", "looksdress12"])
async def test_a_path_stays_a_path(path: str) -> None:
    workflow = definition("IMAGE_ADJUSTER", {"input_image": path})
    assert await accepted(workflow) == ({"input_image": path}, [])


async def test_what_is_no_picture_is_refused_by_its_place() -> None:
    for text in ("data:image/png;base64,aGk=", "data:,x", "A" * 2000, "staging:staging/gone", "staging:a.png"):
        with pytest.raises(MeshError) as raised:
            await accepted(definition("IMAGE_ADJUSTER", {"input_image": text}))
        assert raised.value.kind is ErrorKind.INVALID
        assert [one.path for one in raised.value.violations] == ["workflow.steps[0].config.input_image"]
    with pytest.raises(MeshError) as raised:
        await accepted(definition("GENERATION", {"reference_image_data": "data:image/png;base64,AAAA"}))
    assert raised.value.violations[0].path == "workflow.steps[0].config.reference_image_data"


async def test_a_member_that_takes_data_alone_hands_its_file_to_the_one_that_takes_paths() -> None:
    config, [path] = await accepted(definition("VIDEO_GENERATION", {"prompt": "x", "input_image_data": PNG}))
    assert config == {"prompt": "x", "input_image_url": path}
    config, [path] = await accepted(definition("EDITING", {"base_image": "a.png", "reference_image_data": PNG}))
    assert config == {"base_image": "a.png", "reference_images": [path]}
    # The former name does not count beside the new one.
    config, _ = await accepted(definition("EDITING", {"base_image": "a.png", "base_image_data": PNG}))
    assert config == {"base_image": "a.png"}


async def test_two_sources_of_which_one_counts_are_refused_as_for_a_task() -> None:
    config = {"prompt": "x", "input_image_data": PNG}
    for workflow in (
        definition("VIDEO_GENERATION", {**config, "input_image_url": "a.png"}),
        definition("VIDEO_GENERATION", config, "input_image_url"),
    ):
        with pytest.raises(MeshError) as raised:
            await accepted(workflow)
        assert raised.value.violations[0].type == "one_source"


def test_without_an_object_store_files_are_refused() -> None:
    refuse_files(definition("IMAGE_ADJUSTER", {"input_image": "a.png"}))
    with pytest.raises(MeshError) as raised:
        refuse_files(definition("IMAGE_ADJUSTER", {"input_image": f"data:image/png;base64,{PNG}"}))
    assert raised.value.violations[0].path == "workflow.steps[0].config.input_image"
