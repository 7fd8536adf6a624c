"""Lists of images through the service as production composes it, with types on that are off by default."""

import base64
import io
from typing import Any
from uuid import uuid4

import pytest
from atelier.tasks.v1 import enums_pb2, task_pb2, tasks_service_pb2, worker_service_pb2
from PIL import Image

from meshkit.errors import ErrorKind, MeshError
from tests.integration.tasks.conftest import Mesh, StartMesh, ref

CreateTask: Any = task_pb2.CreateTask
TYPES = ("EDITING", "LLM_INTERACTION", "BACKGROUND_REMOVE", "EXPERIMENTAL_FAL")


@pytest.fixture
async def editing(start_mesh: StartMesh) -> Mesh:
    return await start_mesh(served_task_types=TYPES, served_providers=("LOCAL", "FAL_STANDARD", "AI_CORE"))


def png(color: str) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 8), color).save(out, "PNG")
    return out.getvalue()


def encoded(color: str) -> str:
    return base64.b64encode(png(color)).decode()


def edit(**members: Any) -> task_pb2.CreateTask:
    detail = {"prompt": "make it red", "base_image": encoded("white")} | members
    return CreateTask(origin_instance="tests", editing=detail)  # type: ignore[no-any-return]  # stubs are untyped here


async def everything(mesh: Mesh, tenant: str) -> list[str]:
    return [info.path for info in await mesh.running.objects.list(tenant)]


async def test_references_of_every_form_become_paths(editing: Mesh) -> None:
    tenant = f"t{uuid4().hex}"
    await editing.running.objects.put(tenant, "staging/up", png("blue"), "image/png")
    await editing.running.objects.put(tenant, "generations/a/1/image.png", png("red"), "image/png")
    given = [encoded("green"), "staging:staging/up", "https://example.com/a.png", "generations/a/1/image.png"]
    task = await editing.create(edit(reference_images=given), tenant=tenant)
    inputs = f"editings/{task.id}/inputs"
    paths = [f"{inputs}/reference-0.png", f"{inputs}/reference-1.png", *given[2:]]
    for shown in (task.editing, (await editing.get(task.id, tenant)).editing):
        assert list(shown.reference_images) == paths
        assert shown.reference_image_path == paths[0]
        assert shown.base_image_path == f"{inputs}/base.png"
        assert (shown.width, shown.height) == (1024, 1024)
        assert shown.seed >= 0
    assert await everything(editing, tenant) == sorted([f"{inputs}/base.png", *paths[:2], paths[3]])
    assert await editing.running.objects.get(tenant, paths[1]) == png("blue")
    [[spec, body, sweeps]] = await editing.rows("SELECT spec, body, (SELECT count(*) FROM object_sweeps) FROM tasks")
    stored = task_pb2.CreateTask.FromString(spec).editing
    assert stored.base_image == f"{inputs}/base.png"
    assert list(stored.reference_images) == paths
    assert stored.seed == task.editing.seed
    for data in ("green", "white"):
        assert encoded(data).encode() not in spec + body
    assert sweeps == 0


async def test_worker_is_given_the_paths_and_reports_a_list(editing: Mesh) -> None:
    tenant = f"t{uuid4().hex}"
    for name in ("a.png", "b.png"):
        await editing.running.objects.put(tenant, name, png("red"), "image/png")
    given = CreateTask(origin_instance="t", background_remove={"input_image_paths": ["b.png", "a.png"]})
    task = await editing.create(given, tenant=tenant)
    worker = await editing.worker(types=(enums_pb2.TASK_TYPE_BACKGROUND_REMOVE,))
    [lease] = await worker.lease()
    assert list(lease.spec.background_remove.input_image_paths) == ["b.png", "a.png"]
    assert list(lease.task.background_remove.input_image_paths) == ["b.png", "a.png"]
    result = task_pb2.TaskResult()
    made = f"{lease.result_prefix}0.png"
    result.background_remove.result_image_paths.extend([made, ""])
    await worker.stub.Complete(
        worker_service_pb2.CompleteRequest(
            session_id=worker.session,
            ref=ref(lease),
            result=result,
            objects=[worker_service_pb2.ResultObject(path=made)],
        )
    )
    after = await editing.get(task.id, tenant)
    assert after.status == enums_pb2.TASK_STATUS_COMPLETED
    assert list(after.background_remove.result_image_paths) == [made, ""]


@pytest.mark.parametrize(
    ("task", "path"),
    [
        (edit(reference_images=["https://a.example/1.png", encoded("red"), "%%%"]), "reference_images[2]"),
        (edit(reference_images=["https://a.example/1.png", "http://127.0.0.1/x"]), "reference_images[1]"),
        (edit(reference_images=[encoded("red"), "none/at/all.png"]), "reference_images[1]"),
        (edit(reference_images=[""]), "reference_images[0]"),
        (edit(reference_images=["https://a.example/1.png"] * 17), "reference_images"),
        (edit(base_image=""), "base_image"),
    ],
)
async def test_bad_item_is_named_and_leaves_nothing_behind(editing: Mesh, task: task_pb2.CreateTask, path: str) -> None:
    tenant = f"t{uuid4().hex}"
    with pytest.raises(MeshError) as error:
        await editing.create(task, tenant=tenant)
    assert error.value.kind is ErrorKind.INVALID
    assert [violation.path for violation in error.value.violations] == [f"task.editing.{path}"]
    assert await everything(editing, tenant) == []
    assert await editing.rows("SELECT FROM tasks") == []


async def test_lists_without_data_refuse_it(editing: Mesh) -> None:
    tenant = f"t{uuid4().hex}"
    for task, path in (
        (
            CreateTask(origin_instance="t", background_remove={"input_image_paths": [encoded("red")]}),
            "input_image_paths",
        ),
        (
            CreateTask(
                origin_instance="t",
                provider_type=enums_pb2.PROVIDER_TYPE_AI_CORE,
                llm_interaction={"prompt": "?", "input_images": [encoded("red")]},
            ),
            "input_images",
        ),
    ):
        with pytest.raises(MeshError) as error:
            await editing.create(task, tenant=tenant)
        assert error.value.violations[0].path == f"task.{task.WhichOneof('detail')}.{path}[0]"


async def test_workflow_of_an_edit_is_a_services_to_name(editing: Mesh) -> None:
    foreign, own = str(uuid4()), str(uuid4())
    task = await editing.create(edit(workflow_id=foreign))
    assert not task.editing.HasField("workflow_id")
    assert not task.HasField("workflow_id")
    [[spec, body, workflow]] = await editing.rows("SELECT spec, body, workflow_id FROM tasks")
    assert foreign.encode() not in spec + body
    assert workflow is None
    service = editing.tasks("acme", ("mesh",), subject="workflows")
    named = await editing.create(edit(workflow_id=foreign), stub=service, workflow_id=own)
    assert (named.workflow_id, named.editing.workflow_id) == (own, own)


async def test_files_of_a_list_go_with_their_task(editing: Mesh) -> None:
    tenant = f"t{uuid4().hex}"
    task = await editing.create(edit(reference_images=[encoded("red"), encoded("blue")]), tenant=tenant)
    assert len(await everything(editing, tenant)) == 3
    await editing.tasks(tenant).DeleteTask(tasks_service_pb2.DeleteTaskRequest(task_id=task.id))
    assert await everything(editing, tenant) == []


async def test_what_an_installation_serves_is_configuration(editing: Mesh) -> None:
    answer = await editing.tasks().GetCatalog(tasks_service_pb2.GetCatalogRequest())
    names = [enums_pb2.TaskType.Name(number).removeprefix("TASK_TYPE_") for number in answer.task_types]
    assert names == list(TYPES)
    assert [one.provider_type for one in answer.providers] == [
        enums_pb2.PROVIDER_TYPE_AI_CORE,
        enums_pb2.PROVIDER_TYPE_FAL_STANDARD,
        enums_pb2.PROVIDER_TYPE_LOCAL,
    ]
    with pytest.raises(MeshError) as error:
        await editing.create(CreateTask(origin_instance="t", generation={"prompt": "x"}))
    assert "EDITING, LLM_INTERACTION, BACKGROUND_REMOVE, EXPERIMENTAL_FAL" in error.value.message


async def test_provider_must_execute_the_type(editing: Mesh) -> None:
    fal = await editing.create(CreateTask(origin_instance="t", experimental_fal={"fal_app_id": "fal-ai/flux"}))
    assert (fal.provider_type, fal.queue_name) == (enums_pb2.PROVIDER_TYPE_FAL_STANDARD, "fal")
    for task, path in (
        (
            CreateTask(
                origin_instance="t",
                experimental_fal={"fal_app_id": "fal-ai/flux"},
                provider_type=enums_pb2.PROVIDER_TYPE_LOCAL,
            ),
            "task.provider_type",
        ),
        (
            CreateTask(
                origin_instance="t",
                llm_interaction={"prompt": "?"},
                fallback_provider_type=enums_pb2.PROVIDER_TYPE_FAL_STANDARD,
            ),
            "task.fallback_provider_type",
        ),
    ):
        with pytest.raises(MeshError) as error:
            await editing.create(task)
        assert [(one.path, one.type) for one in error.value.violations] == [(path, "provider_type_unfit")]


async def test_application_of_an_experimental_task_changes_while_it_waits(editing: Mesh) -> None:
    task = await editing.create(CreateTask(origin_instance="t", experimental_fal={"fal_app_id": "fal-ai/flux"}))
    values: Any = task_pb2.TaskUpdate
    answer = await editing.tasks().UpdateTask(
        tasks_service_pb2.UpdateTaskRequest(
            task_id=task.id, update=values(fal_app_id="fal-ai/other", fal_parameters={"steps": 8})
        )
    )
    assert answer.task.experimental_fal.fal_app_id == "fal-ai/other"
    [[spec]] = await editing.rows("SELECT spec FROM tasks")
    stored = task_pb2.CreateTask.FromString(spec).experimental_fal
    assert (stored.fal_app_id, stored.fal_parameters["steps"]) == ("fal-ai/other", 8)
