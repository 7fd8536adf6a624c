"""Inputs of every kind of task: one image, lists of images, old and new names of a field."""

import base64
import io
from typing import Any, BinaryIO
from uuid import UUID, uuid4

import pytest
from atelier.tasks.v1 import task_pb2
from PIL import Image

from meshkit.catalog import TASK_TYPES
from meshkit.errors import ErrorKind, MeshError, not_found
from meshkit.fetcher import Fetcher
from meshkit.images.limits import ImageLimits
from meshkit.objects import ObjectInfo
from services.tasks.api.creation import keep_paths, show_paths
from services.tasks.inputs.validator import AcceptedInput, InputValidator
from tests.unit.image_checks import InProcessChecks

CreateTask: Any = task_pb2.CreateTask
Task: Any = task_pb2.Task
TENANT = "acme"
ADDRESS = "https://example.com/a.png"


class Objects:
    """The object store's part that inputs need, in a dict."""

    def __init__(self, **objects: bytes) -> None:
        self.objects: dict[tuple[str, str], bytes] = {(TENANT, path): data for path, data in objects.items()}

    def paths(self) -> list[str]:
        return [path for _, path in self.objects]

    async def stat(self, tenant: str, path: str) -> ObjectInfo | None:
        data = self.objects.get((tenant, path))
        return None if data is None else ObjectInfo(path, len(data), "", "", None)  # type: ignore[arg-type]  # its age is not asked for

    async def get(self, tenant: str, path: str) -> bytes:
        if (tenant, path) not in self.objects:
            raise not_found("Object", path)
        return self.objects[tenant, path]

    async def copy_into(self, tenant: str, path: str, file: BinaryIO, max_bytes: int) -> None:
        data = await self.get(tenant, path)
        assert len(data) <= max_bytes
        file.write(data)

    async def put(self, tenant: str, path: str, data: bytes, content_type: str = "") -> None:
        assert content_type.startswith("image/")
        self.objects[tenant, path] = data

    async def copy(self, tenant: str, source: str, dest: str) -> None:
        self.objects[tenant, dest] = await self.get(tenant, source)

    async def delete(self, tenant: str, path: str) -> None:
        self.objects.pop((tenant, path), None)


def png(color: str = "red") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (4, 4), color).save(out, "PNG")
    return out.getvalue()


def encoded(color: str = "red") -> str:
    return base64.b64encode(png(color)).decode()


class Case:
    """One task on its way through the validator."""

    def __init__(self, task_type: str, objects: Objects | None = None, /, **members: Any) -> None:
        self.objects = objects or Objects()
        self.spec = TASK_TYPES[task_type]
        self.detail = getattr(CreateTask(**{self.spec.detail: members}), self.spec.detail)
        self.validator = InputValidator(self.objects, Fetcher(), InProcessChecks(), "shared")  # type: ignore[arg-type]  # the part it needs
        self.id: UUID = uuid4()

    async def accepted(self) -> list[AcceptedInput]:
        return await self.validator.accept(self.spec, self.detail, TENANT, self.id)

    async def shown(self) -> Any:
        """The public message, after the inputs were written."""
        accepted = await self.accepted()
        await self.validator.write(TENANT, accepted)
        await self.validator.settle(TENANT, accepted)
        keep_paths(self.detail, self.spec, accepted)
        public = getattr(Task(), self.spec.detail)
        show_paths(public, self.spec, accepted)
        return public

    async def refusal(self) -> tuple[str, str]:
        """Path and kind of what is refused."""
        with pytest.raises(MeshError) as error:
            await self.accepted()
        assert error.value.kind is ErrorKind.INVALID
        return error.value.violations[0].path, error.value.violations[0].type

    def inputs(self, name: str) -> str:
        return f"{self.spec.folder(self.id)}inputs/{name}"


# -- EDITING: a list that takes every form -----------------------------------------------------------------------------


async def test_each_item_of_a_list_becomes_an_object_of_its_own() -> None:
    objects = Objects(**{"staging/up": png("blue"), "generations/a/1/image.png": png()})
    case = Case(
        "EDITING",
        objects,
        base_image=ADDRESS,
        reference_images=[
            encoded("green"),
            "staging:staging/up",
            ADDRESS,
            "generations/a/1/image.png",
            f"data:image/png;base64,{encoded('white')}",
        ],
    )
    shown = await case.shown()
    assert list(shown.reference_images) == [
        case.inputs("reference-0.png"),
        case.inputs("reference-1.png"),
        ADDRESS,
        "generations/a/1/image.png",
        case.inputs("reference-4.png"),
    ]
    assert shown.reference_image_path == shown.reference_images[0]
    assert shown.base_image_path == ADDRESS
    written = {path: case.objects.objects[TENANT, path] for path in shown.reference_images if path in objects.paths()}
    assert written == {
        case.inputs("reference-0.png"): png("green"),
        case.inputs("reference-1.png"): png("blue"),
        "generations/a/1/image.png": png(),
        case.inputs("reference-4.png"): png("white"),
    }
    assert "staging/up" not in objects.paths(), "what became an input leaves its staging place"


async def test_stored_request_holds_paths_in_the_fields_of_today() -> None:
    case = Case("EDITING", base_image_data=encoded(), reference_image_data=encoded("blue"))
    await case.shown()
    assert {field.name for field, _ in case.detail.ListFields()} == {"base_image", "reference_images"}
    assert case.detail.base_image == case.inputs("base.png")
    assert list(case.detail.reference_images) == [case.inputs("reference-0.png")]


@pytest.mark.parametrize(
    ("item", "kind"),
    [
        ("%%% not base64", None),
        (base64.b64encode(b"not an image").decode(), None),
        ("http://169.254.169.254/latest", None),
        ("../other/x.png", None),
        ("generations/none.png", "unknown_object"),
        ("staging:staging/none", "unknown_upload"),
        ("staging:generations/x.png", "unknown_upload"),
    ],
)
async def test_item_that_does_not_hold_is_named_by_its_index(item: str, kind: str | None) -> None:
    case = Case("EDITING", base_image=ADDRESS, reference_images=[encoded(), ADDRESS, item, encoded()])
    path, found = await case.refusal()
    assert path == "task.editing.reference_images[2]"
    assert kind is None or found == kind
    assert case.objects.paths() == [], "judging writes nothing"


async def test_an_upload_above_the_bound_of_the_door_is_refused_unread() -> None:
    objects = Objects(**{"staging/up": png() + bytes(5000)})
    case = Case("PHOTO_DETECTION", objects, input_image="staging:staging/up")
    assert [item.staged for item in await case.accepted()] == ["staging/up"]
    size = len(objects.objects[TENANT, "staging/up"])
    checks = InProcessChecks(limits=ImageLimits(max_bytes=size - 1))
    case.validator = InputValidator(case.objects, Fetcher(), checks, "shared")  # type: ignore[arg-type]  # as above
    with pytest.raises(MeshError, match=rf"^task.photo_detection.input_image has {size} bytes, at most") as caught:
        await case.accepted()
    assert caught.value.kind is ErrorKind.TOO_LARGE


@pytest.mark.parametrize(
    ("members", "counts"),
    [
        ({"base_image": "new.png", "base_image_data": "%%%", "base_image_url": "none.png"}, "new.png"),
        ({"base_image_data": encoded(), "base_image_url": "none.png"}, None),
        ({"base_image_url": "old.png"}, "old.png"),
    ],
)
async def test_new_name_of_a_field_wins_then_data_then_the_address(members: dict[str, str], counts: str | None) -> None:
    case = Case("EDITING", Objects(**{"new.png": png(), "old.png": png()}), **members)
    shown = await case.shown()
    assert shown.base_image_path == (counts or case.inputs("base.png"))
    assert {field.name for field, _ in case.detail.ListFields()} == {"base_image"}, "nothing of the others is kept"


async def test_new_list_wins_over_the_former_single_references() -> None:
    case = Case(
        "EDITING",
        base_image=ADDRESS,
        reference_images=[ADDRESS, f"{ADDRESS}?2"],
        reference_image_data=encoded(),
        reference_image_url="none.png",
    )
    shown = await case.shown()
    assert list(shown.reference_images) == [ADDRESS, f"{ADDRESS}?2"]
    assert case.objects.paths() == []


async def test_former_single_reference_becomes_the_first_of_the_list() -> None:
    case = Case("EDITING", base_image=ADDRESS, reference_image_url=ADDRESS)
    shown = await case.shown()
    assert (shown.reference_image_path, list(shown.reference_images)) == (ADDRESS, [ADDRESS])
    nothing = await Case("EDITING", base_image=ADDRESS).shown()
    assert not nothing.HasField("reference_image_path")
    assert list(nothing.reference_images) == []


# -- lists of paths and addresses alone --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task_type", "field", "public"),
    [
        ("BACKGROUND_REMOVE", "input_image_paths", "input_image_paths"),
        ("LLM_INTERACTION", "input_images", "input_images"),
    ],
)
async def test_lists_of_paths_keep_their_order(task_type: str, field: str, public: str) -> None:
    given = ["b/2.png", ADDRESS, "a/1.png", "b/2.png"]
    case = Case(task_type, Objects(**{"b/2.png": png(), "a/1.png": png()}), **{field: given})
    shown = await case.shown()
    assert list(getattr(shown, public)) == given
    assert list(getattr(case.detail, field)) == given
    assert not any(item.is_written for item in await case.accepted())


@pytest.mark.parametrize(
    ("task_type", "field"), [("BACKGROUND_REMOVE", "input_image_paths"), ("LLM_INTERACTION", "input_images")]
)
@pytest.mark.parametrize("item", [encoded(), f"data:image/png;base64,{encoded()}", "staging:staging/up", "none.png"])
async def test_lists_of_paths_take_no_data(task_type: str, field: str, item: str) -> None:
    case = Case(task_type, Objects(**{"a.png": png(), "staging/up": png()}), **{field: ["a.png", item]})
    assert await case.refusal() == (f"task.{TASK_TYPES[task_type].detail}.{field}[1]", "unknown_object")


@pytest.mark.parametrize(
    ("task_type", "field"),
    [
        ("REFINE", "base_image_url"),
        ("EDITING", "base_image_url"),
        ("VIDEO_GENERATION", "input_image_url"),
        ("BACKGROUND_REMOVE", "input_image_paths"),
    ],
)
async def test_data_where_a_path_belongs_is_told_as_such_and_not_repeated(task_type: str, field: str) -> None:
    for data in (encoded(), f"data:image/png;base64,{encoded()}"):
        case = Case(task_type, **{field: [data] if field.endswith("paths") else data})
        with pytest.raises(MeshError) as error:
            await case.accepted()
        [violation] = error.value.violations
        assert violation.message == "takes a path in storage or an http(s) address, not an image's data"


# -- types with single inputs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task_type", "members", "path"),
    [
        (
            "GENERATION",
            {"prompt": "x", "reference_image_data": encoded(), "reference_image_url": ADDRESS},
            "task.generation.reference_image_url",
        ),
        (
            "VIDEO_GENERATION",
            {"input_image_data": encoded(), "input_image_url": ADDRESS},
            "task.video_generation.input_image_url",
        ),
    ],
)
async def test_two_sources_are_refused_where_the_type_says_so(task_type: str, members: Any, path: str) -> None:
    assert await Case(task_type, **members).refusal() == (path, "one_source")


async def test_generations_reference_given_as_data_is_kept_as_a_path() -> None:
    case = Case("GENERATION", prompt="x", reference_image_data=encoded())
    shown = await case.shown()
    assert shown.reference_image_path == case.inputs("reference.png")
    assert not case.detail.HasField("reference_image_data")
    assert case.detail.reference_image_url == shown.reference_image_path


@pytest.mark.parametrize("field", ["reference_image_data", "reference_image_url"])
async def test_generations_reference_may_be_an_address_in_either_field(field: str) -> None:
    shown = await Case("GENERATION", prompt="x", **{field: ADDRESS}).shown()
    assert shown.reference_image_path == ADDRESS


async def test_every_input_takes_the_path_of_another_tasks_result() -> None:
    # Workflows give results of earlier steps to whatever field of a later one takes an image.
    for name, spec in TASK_TYPES.items():
        for image in spec.inputs:
            value: Any = ["a/1/image.png"] if image.kept.many else "a/1/image.png"
            case = Case(name, Objects(**{"a/1/image.png": png()}), **{image.kept.field: value})
            [item] = await case.accepted()
            assert (item.input, item.path) == (image, "a/1/image.png")
