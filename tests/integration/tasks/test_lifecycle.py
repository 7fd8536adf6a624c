from uuid import uuid4

import pytest
from atelier.tasks.v1 import enums_pb2, tasks_service_pb2

from meshkit.errors import ErrorKind, MeshError
from tests.integration.tasks.conftest import Mesh, StartMesh, noop

PENDING = enums_pb2.TASK_STATUS_PENDING
EXECUTING = enums_pb2.TASK_STATUS_EXECUTING
COMPLETED = enums_pb2.TASK_STATUS_COMPLETED
FAILED = enums_pb2.TASK_STATUS_FAILED
CANCELLED = enums_pb2.TASK_STATUS_CANCELLED


async def test_task_goes_from_pending_to_completed(mesh: Mesh) -> None:
    task = await mesh.create(noop(priority=2, noop={"steps": 3, "payload": "hello"}, origin_zone="eu"))
    assert task.status == PENDING
    assert (task.priority, task.origin_tenant_id, task.noop.payload, task.version) == (2, "acme", "hello", 1)
    assert task.celery_task_id == task.id

    worker = await mesh.worker()
    [lease] = await worker.lease()
    assert lease.job_id == task.id
    assert lease.attempt == 1
    assert lease.result_prefix == f"noops/{task.id}/1/"
    assert lease.spec.noop.payload == lease.task.noop.payload == "hello"
    running = await mesh.get(task.id)
    assert running.status == EXECUTING
    assert running.executor_instance == "w/0"
    assert running.HasField("started_at")
    [attempt] = await mesh.attempts(task.id)
    assert (attempt.attempt, attempt.executor_instance) == (1, "w/0")
    assert not attempt.HasField("ended_at")

    await worker.complete(lease, f"{lease.result_prefix}result.bin")
    done = await mesh.get(task.id)
    assert done.status == COMPLETED
    assert done.progress == 100
    assert done.noop.result_path == f"noops/{task.id}/1/result.bin"
    assert done.noop.payload == "hello"
    assert done.HasField("completed_at")
    [attempt] = await mesh.attempts(task.id)
    assert attempt.outcome == tasks_service_pb2.ATTEMPT_OUTCOME_COMPLETED


async def test_failed_attempt_is_retried_until_the_limit(mesh: Mesh) -> None:
    task = await mesh.create()
    worker = await mesh.worker()
    for attempt in range(1, 5):
        [lease] = await worker.lease()
        assert lease.attempt == attempt
        requeued = await worker.fail(lease, f"failure {attempt}")
        assert requeued == (attempt < 4)
        await mesh.execute("UPDATE tasks SET not_before = now() WHERE not_before IS NOT NULL")
        await mesh.running.maintenance.promote()
    failed = await mesh.get(task.id)
    assert failed.status == FAILED
    assert failed.retry_count == 3
    assert failed.error_category == enums_pb2.ERROR_CATEGORY_PROVIDER
    assert list(failed.errors) == [f"failure {n}" for n in range(1, 5)]
    assert len(await mesh.attempts(task.id)) == 4


async def test_failure_that_no_retry_could_mend_ends_the_task(mesh: Mesh) -> None:
    task = await mesh.create()
    worker = await mesh.worker()
    [lease] = await worker.lease()
    assert not await worker.fail(lease, retryable=False)
    assert (await mesh.get(task.id)).status == FAILED


async def test_cancel_waiting_task_is_idempotent(mesh: Mesh) -> None:
    task = await mesh.create()
    request = tasks_service_pb2.CancelTaskRequest(task_id=task.id)
    first = (await mesh.tasks().CancelTask(request)).task
    second = (await mesh.tasks().CancelTask(request)).task
    assert first.status == second.status == CANCELLED
    assert first.version == second.version == 2
    worker = await mesh.worker()
    assert await worker.lease(wait=0.0) == []


async def test_cancel_executing_task_fences_its_attempt(mesh: Mesh) -> None:
    task = await mesh.create()
    worker = await mesh.worker()
    [lease] = await worker.lease()
    await mesh.tasks().CancelTask(tasks_service_pb2.CancelTaskRequest(task_id=task.id))
    assert [item.job_id for item in await worker.heartbeat(lease)] == [task.id]
    with pytest.raises(MeshError) as error:
        await worker.complete(lease)
    assert (error.value.kind, error.value.reason) == (ErrorKind.CONFLICT, "LEASE_LOST")
    assert (await mesh.get(task.id)).status == CANCELLED
    await worker.release(lease)
    assert (await mesh.get(task.id)).status == CANCELLED, "a worker that has stopped gives nothing back to the queue"
    assert await worker.heartbeat() == []
    assert await mesh.rows("SELECT outcome FROM attempts") == [("CANCELLED",)]


@pytest.mark.parametrize("ending", ["complete", "fail"])
async def test_cancel_after_the_end_is_a_conflict(mesh: Mesh, ending: str) -> None:
    task = await mesh.create()
    worker = await mesh.worker()
    [lease] = await worker.lease()
    if ending == "complete":
        await worker.complete(lease)
    else:
        await worker.fail(lease, retryable=False)
    with pytest.raises(MeshError) as error:
        await mesh.tasks().CancelTask(tasks_service_pb2.CancelTaskRequest(task_id=task.id))
    assert error.value.kind is ErrorKind.CONFLICT


async def test_unknown_task_is_not_found(mesh: Mesh) -> None:
    with pytest.raises(MeshError) as error:
        await mesh.get(str(uuid4()))
    assert error.value.kind is ErrorKind.NOT_FOUND


async def test_list_is_newest_first_with_paging_and_filters(mesh: Mesh) -> None:
    created = [await mesh.create(noop(origin_zone="eu" if n % 2 else "us")) for n in range(5)]
    stub = mesh.tasks()
    listed = (await stub.ListTasks(tasks_service_pb2.ListTasksRequest())).tasks
    assert [task.id for task in listed] == [task.id for task in reversed(created)]
    page = (await stub.ListTasks(tasks_service_pb2.ListTasksRequest(skip=1, limit=2))).tasks
    assert [task.id for task in page] == [created[3].id, created[2].id]
    zone = (await stub.ListTasks(tasks_service_pb2.ListTasksRequest(origin_zone="eu"))).tasks
    assert [task.id for task in zone] == [created[3].id, created[1].id]
    await stub.CancelTask(tasks_service_pb2.CancelTaskRequest(task_id=created[0].id))
    cancelled = (await stub.ListTasks(tasks_service_pb2.ListTasksRequest(status=CANCELLED))).tasks
    assert [task.id for task in cancelled] == [created[0].id]
    generation = (await stub.ListGenerationTasks(tasks_service_pb2.ListGenerationTasksRequest())).tasks
    assert list(generation) == []


async def test_generation_routes_see_generation_only(mesh: Mesh) -> None:
    task = await mesh.create()
    stub = mesh.tasks()
    for call, request in (
        (stub.GetGenerationTask, tasks_service_pb2.GetGenerationTaskRequest(task_id=task.id)),
        (stub.CancelGenerationTask, tasks_service_pb2.CancelGenerationTaskRequest(task_id=task.id)),
    ):
        with pytest.raises(MeshError) as error:
            await call(request)
        assert error.value.kind is ErrorKind.NOT_FOUND


async def test_a_page_of_large_tasks_is_cut_by_bytes_and_goes_on_by_skip(start_mesh: StartMesh) -> None:
    mesh = await start_mesh(max_message_bytes=512 * 1024)
    created = []
    for _ in range(5):
        task = noop()
        task.config.update({"note": "x" * 60_000})
        created.append(await mesh.create(task))
    stub = mesh.tasks()
    seen: list[str] = []
    while page := (await stub.ListTasks(tasks_service_pb2.ListTasksRequest(skip=len(seen), limit=100))).tasks:
        assert 1 <= len(page) <= 2
        seen += [task.id for task in page]
    assert seen == [task.id for task in reversed(created)]


async def test_a_task_larger_than_a_page_is_listed_alone(start_mesh: StartMesh) -> None:
    mesh = await start_mesh(max_message_bytes=128 * 1024)
    task = noop()
    task.config.update({"note": "x" * 60_000})
    large, small = await mesh.create(task), await mesh.create()
    stub = mesh.tasks()
    pages = [
        [task.id for task in (await stub.ListTasks(tasks_service_pb2.ListTasksRequest(skip=skip))).tasks]
        for skip in range(3)
    ]
    assert pages == [[small.id], [large.id], []]


async def test_the_last_attempts_of_many_are_listed(mesh: Mesh) -> None:
    task = await mesh.create()
    await mesh.execute(
        "INSERT INTO attempts (task_id, attempt, session, executor_instance, started_at, ended_at, outcome) "
        "SELECT id, n, gen_random_uuid(), 'w', now(), now(), 'RELEASED' FROM tasks, generate_series(1, 1005) n"
    )
    assert [attempt.attempt for attempt in await mesh.attempts(task.id)] == list(range(6, 1006))
