from typing import Any
from uuid import uuid4

import pytest
from atelier.tasks.v1 import enums_pb2, task_pb2, tasks_service_pb2
from google.protobuf.field_mask_pb2 import FieldMask

from meshkit.catalog import TASK_TYPES
from meshkit.errors import ErrorKind, MeshError
from services.tasks.catalog import TASK_TYPES_WITH_HANDLERS
from tests.integration.tasks.conftest import Mesh, completion, noop

CreateTask: Any = task_pb2.CreateTask
CANCELLED = enums_pb2.TASK_STATUS_CANCELLED


async def update(mesh: Mesh, task: task_pb2.Task, *paths: str, stub: Any = None, **values: Any) -> task_pb2.Task:
    request = tasks_service_pb2.UpdateTaskRequest(
        task_id=task.id, update=task_pb2.TaskUpdate(**values), update_mask=FieldMask(paths=paths or list(values))
    )
    return (await (stub or mesh.tasks()).UpdateTask(request)).task  # type: ignore[no-any-return]  # stubs are untyped here


async def created(mesh: Mesh, tenant: str = "acme", **members: Any) -> task_pb2.Task:
    spec = CreateTask(origin_instance="t", generation={"prompt": "a dress"}, **members)
    return await mesh.create(spec, tenant=tenant)


async def test_caller_changes_priority_config_and_reference_text(mesh: Mesh) -> None:
    task = await mesh.create(noop(origin_reference="old"))
    changed = await update(mesh, task, priority=7, config={"a": 1}, origin_reference="new")
    assert (changed.priority, changed.config["a"], changed.origin_reference) == (7, 1, "new")
    assert changed.version == task.version + 1


async def test_named_and_unset_member_is_cleared(mesh: Mesh) -> None:
    task = await mesh.create(noop(origin_reference="old", config={"a": 1}, priority=3))
    changed = await update(mesh, task, "origin_reference", "config", "priority")
    assert not changed.HasField("origin_reference")
    assert not changed.HasField("config")
    assert changed.priority == 0


async def test_priority_change_moves_a_waiting_task(mesh: Mesh) -> None:
    first, second = await mesh.create(), await mesh.create()
    await update(mesh, second, priority=1)
    worker = await mesh.worker()
    assert [lease.job_id for lease in await worker.lease(2)] == [second.id, first.id]


async def test_status_may_be_set_to_cancelled_only(mesh: Mesh) -> None:
    task = await mesh.create()
    with pytest.raises(MeshError) as error:
        await update(mesh, task, status=enums_pb2.TASK_STATUS_COMPLETED)
    assert error.value.kind is ErrorKind.FORBIDDEN
    cancelled = await update(mesh, task, status=CANCELLED, priority=2)
    assert (cancelled.status, cancelled.priority) == (CANCELLED, 2)
    [[pending]] = await mesh.rows("SELECT pending FROM queue_tenants")
    assert pending == 0


async def test_operator_gives_up_a_waiting_task_and_nothing_more(mesh: Mesh) -> None:
    task = await mesh.create()
    operator = mesh.tasks("ops", ("operator",))
    with pytest.raises(MeshError) as error:
        await update(mesh, task, stub=operator, status=enums_pb2.TASK_STATUS_COMPLETED)
    assert error.value.kind is ErrorKind.CONFLICT
    failed = await update(mesh, task, stub=operator, status=enums_pb2.TASK_STATUS_FAILED, errors=["given up"])
    assert failed.status == enums_pb2.TASK_STATUS_FAILED
    assert list(failed.errors) == ["given up"]
    assert failed.completed_at == failed.updated_at, "when it was given up, not when it was changed before"
    [[pending]] = await mesh.rows("SELECT pending FROM queue_tenants")
    assert pending == 0


async def test_scheduler_members_need_an_operator(mesh: Mesh) -> None:
    task = await mesh.create()
    for values in ({"retry_count": 2}, {"executor_type": "x"}, {"is_resumed": True}, {"queue_name": "fal"}):
        with pytest.raises(MeshError) as error:
            await update(mesh, task, **values)
        assert error.value.kind is ErrorKind.FORBIDDEN
    moved = await update(mesh, task, stub=mesh.tasks("ops", ("operator",)), queue_name="fal", executor_type="x")
    assert (moved.queue_name, moved.executor_type) == ("fal", "x")
    worker = await mesh.worker(queues=("fal",))
    assert len(await worker.lease()) == 1


async def test_callers_change_the_labels_of_their_tasks_at_any_time(mesh: Mesh) -> None:
    task = await mesh.create(noop(origin_zone="eu"))
    labels = {"origin_instance": "shop", "origin_zone": "us", "origin_reference": "order 7"}
    changed = await update(mesh, task, **labels)
    assert {name: getattr(changed, name) for name in labels} == labels
    worker = await mesh.worker()
    [lease] = await worker.lease()
    assert (await update(mesh, task, origin_zone="asia")).origin_zone == "asia"
    await worker.complete(lease)
    assert not (await update(mesh, task, "origin_zone")).HasField("origin_zone")
    assert (await update(mesh, task, origin_instance="other")).origin_instance == "other"
    for values, mask in (({}, ("origin_instance",)), ({"origin_instance": ""}, ())):
        with pytest.raises(MeshError) as error:
            await update(mesh, task, *mask, **values)
        assert [one.path for one in error.value.violations] == ["update.origin_instance"]
    with pytest.raises(MeshError) as error:
        await update(mesh, task, stub=mesh.tasks("other"), origin_zone="eu")
    assert error.value.kind is ErrorKind.NOT_FOUND


async def test_what_a_result_warns_of_stays_with_its_task(mesh: Mesh) -> None:
    task, worker = await mesh.create(), await mesh.worker()
    [lease] = await worker.lease()
    item = completion(lease)
    item.result.noop.SetInParent()
    item.result.warnings.append("The prompt is 3 tokens longer than the model reads.")
    assert await worker.complete_many(item) == ["TAKEN"]
    for told in (await mesh.get(task.id), await update(mesh, task, priority=3), await mesh.get(task.id)):
        assert list(told.warnings) == ["The prompt is 3 tokens longer than the model reads."]


async def test_fixed_members_never_change(mesh: Mesh) -> None:
    task = await mesh.create()
    operator = mesh.tasks("ops", ("operator",))
    for values in (
        {"origin_tenant_id": "x"},
        {"task_type": enums_pb2.TASK_TYPE_GENERATION},
        {"created_at": {"seconds": 1}},
    ):
        with pytest.raises(MeshError) as error:
            await update(mesh, task, stub=operator, **values)
        assert error.value.kind is ErrorKind.INVALID


@pytest.mark.parametrize("executing", [False, True])
async def test_task_sent_back_whole_changes_nothing(mesh: Mesh, executing: bool) -> None:
    task: Any = await mesh.create()
    if executing:
        worker = await mesh.worker()
        await worker.lease()
        task = await mesh.get(task.id)
    values = task_pb2.TaskUpdate()
    for field in values.DESCRIPTOR.fields:
        other = task.DESCRIPTOR.fields_by_name.get(field.name)
        if other is None or field.is_repeated or not (not other.has_presence or task.HasField(field.name)):
            continue
        if field.message_type is not None:
            getattr(values, field.name).CopyFrom(getattr(task, field.name))
        else:
            setattr(values, field.name, getattr(task, field.name))
    values.created_at.FromMilliseconds(task.created_at.ToMilliseconds())
    values.task_type = enums_pb2.TASK_TYPE_NOOP
    paths = [field.name for field, _ in values.ListFields()]
    request = tasks_service_pb2.UpdateTaskRequest(task_id=task.id, update=values, update_mask=FieldMask(paths=paths))
    again = (await mesh.tasks().UpdateTask(request)).task
    assert again.status == task.status
    assert again.created_at == task.created_at


async def test_inputs_change_while_pending_only(mesh: Mesh) -> None:
    tenant = f"t{uuid4().hex}"
    await mesh.running.objects.put(tenant, "loras/styles/ink.safetensors", b"x")
    task = await created(mesh, tenant)
    stub = mesh.tasks(tenant)
    changed = await update(
        mesh,
        task,
        stub=stub,
        style_model_path="styles/ink.safetensors",
        style_lora_weight=0.5,
        reference_image_path="https://example.com/a.png",
    )
    assert changed.generation.style_model_path == "styles/ink.safetensors"
    assert changed.generation.reference_image_path == "https://example.com/a.png"
    for bad in ({"style_model_path": "styles/none"}, {"reference_image_path": "none.png"}):
        with pytest.raises(MeshError) as error:
            await update(mesh, task, stub=stub, **bad)
        assert error.value.kind is ErrorKind.INVALID
    worker = await mesh.worker(types=(enums_pb2.TASK_TYPE_GENERATION,))
    [lease] = await worker.lease()
    assert lease.task.generation.style_model_path == lease.spec.generation.style_model_path
    with pytest.raises(MeshError) as late:
        await update(mesh, task, stub=stub, style_lora_weight=0.7)
    assert late.value.kind is ErrorKind.CONFLICT


async def test_member_of_another_type_is_refused(mesh: Mesh) -> None:
    task = await mesh.create()
    with pytest.raises(MeshError) as error:
        await update(mesh, task, subject_model_path="a")
    assert error.value.kind is ErrorKind.INVALID


async def test_cleanup_deletes_files_and_hides_the_row(mesh: Mesh) -> None:
    tenant = f"t{uuid4().hex}"
    task = await mesh.create(tenant=tenant)
    worker = await mesh.worker()
    [lease] = await worker.lease()
    stub = mesh.tasks(tenant)
    with pytest.raises(MeshError) as error:
        await stub.CleanupTask(tasks_service_pb2.CleanupTaskRequest(task_id=task.id))
    assert error.value.kind is ErrorKind.CONFLICT
    path = f"{lease.result_prefix}result.bin"
    await mesh.running.objects.put(tenant, path, b"x")
    await worker.complete(lease, path)
    cleaned = await stub.CleanupTask(tasks_service_pb2.CleanupTaskRequest(task_id=task.id))
    assert list(cleaned.deleted_paths) == [path]
    assert cleaned.task.is_deleted
    assert await mesh.running.objects.list(tenant) == []
    assert list((await stub.ListTasks(tasks_service_pb2.ListTasksRequest())).tasks) == []
    hidden = (await stub.ListTasks(tasks_service_pb2.ListTasksRequest(include_deleted=True))).tasks
    assert [item.id for item in hidden] == [task.id]
    assert (await mesh.get(task.id, tenant)).is_deleted


async def test_delete_removes_files_and_row(mesh: Mesh) -> None:
    tenant = f"t{uuid4().hex}"
    task = await mesh.create(tenant=tenant)
    worker = await mesh.worker()
    [lease] = await worker.lease()
    stub = mesh.tasks(tenant)
    request = tasks_service_pb2.DeleteTaskRequest(task_id=task.id)
    with pytest.raises(MeshError) as error:
        await stub.DeleteTask(request)
    assert error.value.kind is ErrorKind.CONFLICT
    path = f"{lease.result_prefix}result.bin"
    await mesh.running.objects.put(tenant, path, b"x")
    await worker.complete(lease, path)
    deleted = (await stub.DeleteTask(request)).task
    assert deleted.id == task.id
    assert await mesh.running.objects.list(tenant) == []
    with pytest.raises(MeshError) as gone:
        await mesh.get(task.id, tenant)
    assert gone.value.kind is ErrorKind.NOT_FOUND
    assert await mesh.rows("SELECT FROM attempts") == []


def of_type(name: str) -> task_pb2.CreateTask:
    """A task of any type, whose pictures lie elsewhere."""
    spec = TASK_TYPES[name]
    made = task_pb2.CreateTask(origin_instance="tests")
    detail: Any = getattr(made, spec.detail)
    detail.SetInParent()
    for image in spec.inputs:
        address = "https://pics.example/a.png"
        if not image.kept.many:
            setattr(detail, image.kept.field, address)
        elif name != "LLM_INTERACTION":  # the local model sees no pictures
            getattr(detail, image.kept.field).append(address)
    for field, value in {"prompt": "a red dress", "upscale_factor": 2.0, "aspect_ratio": 1.0, "mode": "pad"}.items():
        if field in detail.DESCRIPTOR.fields_by_name:
            setattr(detail, field, value)
    return made


@pytest.mark.parametrize("name", sorted(TASK_TYPES_WITH_HANDLERS))
async def test_all_that_lies_in_a_tasks_folder_goes_with_it_whatever_its_type(mesh: Mesh, name: str) -> None:
    tenant = f"t{uuid4().hex}"
    made, files = of_type(name), ("inputs/base.png", "1/image.png", "1/clip.mp4", "2/debug-0.png")
    task, kept = await mesh.create(made, tenant=tenant), await mesh.create(made, tenant=tenant)
    for one in (task, kept):
        for file in files:
            await mesh.running.objects.put(tenant, f"{TASK_TYPES[name].folder(one.id)}{file}", b"x")
    await mesh.tasks(tenant).DeleteTask(tasks_service_pb2.DeleteTaskRequest(task_id=task.id))
    left = {info.path for info in await mesh.running.objects.list(tenant)}
    assert left == {f"{TASK_TYPES[name].folder(kept.id)}{file}" for file in files}


async def test_waiting_task_is_cancelled_before_it_is_deleted(mesh: Mesh) -> None:
    task = await mesh.create()
    await mesh.tasks().DeleteTask(tasks_service_pb2.DeleteTaskRequest(task_id=task.id))
    worker = await mesh.worker()
    assert await worker.lease(wait=0) == []
    subjects = [row[0] for row in await mesh.rows("SELECT subject FROM outbox ORDER BY id")]
    assert [subject.rpartition(".")[2] for subject in subjects] == ["created", "cancelled"]


async def test_objects_of_lost_attempts_are_swept(mesh: Mesh) -> None:
    tenant = f"t{uuid4().hex}"
    task = await mesh.create(tenant=tenant)
    worker = await mesh.worker()
    [first] = await worker.lease()
    await mesh.running.objects.put(tenant, f"{first.result_prefix}result.bin", b"loser")
    await worker.release(first)
    [second] = await worker.lease()
    kept = f"{second.result_prefix}result.bin"
    await mesh.running.objects.put(tenant, kept, b"winner")
    await mesh.running.objects.put(tenant, f"noops/{task.id}/inputs/a.png", b"input")
    await worker.complete(second, kept)
    await mesh.running.maintenance.sweep_objects()
    assert len(await mesh.running.objects.list(tenant)) == 3, "a lost attempt may still be writing"
    await mesh.execute("UPDATE object_sweeps SET due_at = now() - interval '1 hour'")
    await mesh.running.maintenance.sweep_objects()
    assert {info.path for info in await mesh.running.objects.list(tenant)} == {kept, f"noops/{task.id}/inputs/a.png"}
    assert await mesh.rows("SELECT FROM object_sweeps") == []
