"""Files inside of definitions: rows hold paths, the workflow owns the objects, and nothing is left over."""

import asyncio
import base64
import io
from typing import Any

import pytest
from atelier.workflows.v1 import workflow_pb2, workflows_service_pb2
from google.protobuf.json_format import MessageToDict
from PIL import Image

from meshkit.channel import call_metadata
from meshkit.errors import ErrorKind, MeshError, unavailable
from meshkit.objects import ObjectStore
from services.workflows.config import WorkflowsSettings
from services.workflows.files import folder_of
from tests.integration.workflows.conftest import Mesh, Settings, create, noop


def picture() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(out, "PNG")
    return out.getvalue()


DATA = base64.b64encode(picture()).decode()


def adjust(name: str, image: str, **more: Any) -> dict[str, Any]:
    config = {"input_image": image, "target_width": 16, "target_height": 16}
    return {"id": name, "task_type": "TASK_TYPE_IMAGE_ADJUSTER", "config": config, **more}


@pytest.fixture
async def objects(shared: Settings, nats_url: str, mesh: Mesh) -> Any:
    del mesh
    store = ObjectStore.from_settings(WorkflowsSettings(**shared(nats_url)))
    yield store
    await store.close()


async def stored(objects: ObjectStore, prefix: str = "workflows/") -> list[str]:
    return [one.path for one in await objects.list("acme", prefix)]


async def sweep(mesh: Mesh) -> None:
    mesh.running.maintenance._settings = mesh.running.maintenance._settings.model_copy(
        update={"file_sweep_delay_seconds": 0.0}
    )
    await mesh.running.maintenance.sweep_files()


async def noted(mesh: Mesh) -> int:
    async with mesh.running.database.connection() as conn:
        row = await (await conn.execute("SELECT count(*) FROM file_sweeps")).fetchone()
    assert row is not None
    return int(row[0])


def path_of(workflow: workflow_pb2.WorkflowPublic, step: int = 0) -> str:
    return str(MessageToDict(workflow.steps[step].config)["input_image"])


async def test_a_file_of_a_step_is_the_workflows_until_it_is_cleaned_up(mesh: Mesh, objects: ObjectStore) -> None:
    stub = mesh.workflows()
    await objects.put("acme", "staging/upload", picture(), "image/png")
    steps = (adjust("a", DATA), adjust("b", "staging:staging/upload"), noop("c"))
    made = (await stub.CreateWorkflow(create(*steps))).workflow
    paths = [path_of(made, 0), path_of(made, 1)]
    assert paths == [f"workflows/{made.id}/0-input_image.png", f"workflows/{made.id}/1-input_image.png"]
    assert await stored(objects) == paths
    assert await stored(objects, "staging/") == []
    assert await objects.get("acme", paths[0]) == await objects.get("acme", paths[1]) == picture()
    async with mesh.running.database.connection() as conn:
        [(definition,)] = await (await conn.execute("SELECT definition FROM steps WHERE step_id = 'a'")).fetchall()
    assert DATA.encode() not in bytes(definition)
    await mesh.until(made.id, lambda found: found.steps[2].status == workflow_pb2.STEP_STATUS_COMPLETED)
    async with mesh.tasks.database.connection() as conn:
        rows = await (await conn.execute("SELECT body FROM tasks WHERE task_type = 'IMAGE_ADJUSTER'")).fetchall()
    bodies = b"".join(bytes(body) for (body,) in rows)
    assert len(rows) == 2
    assert all(path.encode() in bodies for path in paths)

    await sweep(mesh)
    assert await stored(objects) == paths, "they have an owner"
    assert await noted(mesh) == 0
    await stub.CancelWorkflow(workflows_service_pb2.CancelWorkflowRequest(workflow_id=made.id))
    request = workflows_service_pb2.CleanupWorkflowRequest(workflow_id=made.id, cleanup_tasks=False)
    report = (await stub.CleanupWorkflow(request)).cleanup
    assert sorted(report.deleted_paths) == paths
    assert await stored(objects) == []


async def test_a_refused_definition_leaves_no_file(mesh: Mesh, objects: ObjectStore) -> None:
    stub = mesh.workflows()
    for steps in (
        (adjust("a", DATA), adjust("b", "data:image/png;base64,aGVsbG8=")),
        (adjust("a", DATA), noop("b", "nobody")),
    ):
        with pytest.raises(MeshError) as raised:
            await stub.CreateWorkflow(create(*steps))
        assert raised.value.kind is ErrorKind.INVALID
        assert raised.value.violations[0].path.startswith("workflow.steps[1]")
    assert await stored(objects) == []


async def test_repeated_creates_at_once_make_one_workflow_with_one_file(mesh: Mesh, objects: ObjectStore) -> None:
    await objects.put("acme", "staging/upload", picture(), "image/png")
    stub, key = mesh.workflows(), call_metadata(idempotency_key="once")
    request = create(adjust("a", "staging:staging/upload"), adjust("b", DATA), start=False)
    answers = await asyncio.gather(*(stub.CreateWorkflow(request, metadata=key) for _ in range(6)))
    [ident] = {one.workflow.id for one in answers}
    assert await stored(objects) == [f"workflows/{ident}/0-input_image.png", f"workflows/{ident}/1-input_image.png"]
    again = await stub.CreateWorkflow(request, metadata=key)
    assert again.workflow.id == ident


async def test_a_process_that_dies_before_the_commit_leaves_its_files_to_the_sweeper(
    mesh: Mesh, objects: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub = mesh.workflows()

    async def dies(*_: object, **__: object) -> None:
        raise asyncio.CancelledError

    with monkeypatch.context() as patched:
        patched.setattr("services.workflows.postgres.store.PostgresWorkflowStore.create", dies)
        with pytest.raises(MeshError):
            await stub.CreateWorkflow(create(adjust("a", DATA)))
    assert len(await stored(objects)) == 1
    assert await noted(mesh) == 1
    await sweep(mesh)
    assert await stored(objects) == []
    assert await noted(mesh) == 0


async def test_files_of_a_cleaned_up_workflow_go_although_the_store_was_away(
    mesh: Mesh, objects: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub = mesh.workflows()
    made = (await stub.CreateWorkflow(create(adjust("a", DATA), start=False))).workflow

    async def away(*_: object, **__: object) -> None:
        raise unavailable("The object store is away")

    with monkeypatch.context() as patched:
        patched.setattr(ObjectStore, "delete_prefix", away)
        request = workflows_service_pb2.CleanupWorkflowRequest(workflow_id=made.id, cleanup_tasks=False)
        assert (await stub.CleanupWorkflow(request)).workflow.is_deleted
    assert await stored(objects) == [path_of(made)]
    await sweep(mesh)
    assert await stored(objects, folder_of(made.id)) == []
