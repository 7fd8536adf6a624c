"""Jobs of other services: leased and ended as tasks are, and no tasks to callers."""

import asyncio
from typing import Any
from uuid import uuid4

import pytest
from atelier.events.v1 import events_pb2
from atelier.tasks.v1 import enums_pb2, jobs_service_pb2, tasks_service_pb2, worker_service_pb2
from atelier.tasks.v1.jobs_service_pb2_grpc import JobsServiceStub
from atelier.tasks.v1.worker_service_pb2 import ServedPair

from meshkit.errors import ErrorKind, MeshError
from tests.integration.tasks.conftest import Mesh, StartMesh, Worker, age_session, duration, noop
from tests.integration.tasks.test_tenancy import OF_A_TASK, call, named, request_of

TRAINING = worker_service_pb2.JOB_KIND_TRAINING


def jobs(mesh: Mesh) -> Any:
    return mesh.channel(mesh.token("", ("mesh",), subject="training")).stub(JobsServiceStub)


async def create(mesh: Mesh, tenant: str = "acme", *, job_id: str = "", **more: Any) -> Any:
    values: dict[str, Any] = {"queue_name": "training", "timeout": duration(600), "expected_seconds": 30.0} | more
    request = jobs_service_pb2.CreateJobRequest(job_id=job_id or str(uuid4()), kind=TRAINING, tenant=tenant, **values)
    return (await jobs(mesh).CreateJob(request)).job


async def get(mesh: Mesh, job_id: str) -> Any:
    [job] = (await jobs(mesh).GetJobs(jobs_service_pb2.GetJobsRequest(job_ids=[job_id]))).jobs
    return job


async def trainer(mesh: Mesh, name: str = "t/0") -> Worker:
    return await mesh.worker(queues=("training",), types=(), pairs=(ServedPair(job_kind=TRAINING),), name=name)


async def events(mesh: Mesh) -> list[tuple[str, Any]]:
    rows = await mesh.rows("SELECT subject, payload FROM outbox WHERE subject LIKE '%%job%%' ORDER BY id")
    return [(subject.rpartition(".")[2], events_pb2.JobEvent.FromString(payload)) for subject, payload in rows]


async def test_a_job_is_leased_by_a_trainer_and_ends_with_its_report(mesh: Mesh) -> None:
    job = await create(mesh, traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
    assert (job.status, job.attempt, job.tenant) == (enums_pb2.TASK_STATUS_PENDING, 0, "acme")
    worker = await trainer(mesh)
    [lease] = await worker.lease()
    assert (lease.job_id, lease.attempt, lease.kind, lease.tenant) == (job.job_id, 1, TRAINING, "acme")
    assert lease.traceparent.endswith("-01")
    assert lease.timeout.seconds == 600
    assert not lease.result_prefix
    assert (await get(mesh, job.job_id)).status == enums_pb2.TASK_STATUS_EXECUTING
    await worker.complete(lease, seconds=12.0)
    ended = await get(mesh, job.job_id)
    assert ended.status == enums_pb2.TASK_STATUS_COMPLETED
    assert ended.HasField("completed_at")
    [(what, event)] = await events(mesh)
    assert (what, event.job_id, event.status, event.attempt) == ("ended", job.job_id, ended.status, 1)


async def test_a_job_that_exists_is_returned_as_it_stands(mesh: Mesh) -> None:
    job = await create(mesh)
    worker = await trainer(mesh)
    await worker.lease()
    again = await create(mesh, job_id=job.job_id, priority=7)
    assert (again.status, again.priority) == (enums_pb2.TASK_STATUS_EXECUTING, 0)
    with pytest.raises(MeshError) as foreign:
        await create(mesh, "globex", job_id=job.job_id)
    assert foreign.value.kind is ErrorKind.CONFLICT


async def test_a_task_and_a_job_never_share_an_identifier(mesh: Mesh) -> None:
    task, job = await mesh.create(), await create(mesh)
    with pytest.raises(MeshError) as as_job:
        await create(mesh, job_id=task.id)
    assert as_job.value.kind is ErrorKind.CONFLICT
    with pytest.raises(MeshError) as as_task:
        await mesh.create(stub=mesh.tasks("acme", ("mesh",)), task_id=job.job_id)
    assert as_task.value.kind is ErrorKind.CONFLICT


async def test_a_cancel_ends_a_job_and_tells_its_worker(mesh: Mesh) -> None:
    waiting, running = await create(mesh), await create(mesh)
    await jobs(mesh).CancelJob(jobs_service_pb2.CancelJobRequest(job_id=waiting.job_id))
    worker = await trainer(mesh)
    [lease] = await worker.lease(4)
    assert lease.job_id == running.job_id
    cancelled = (await jobs(mesh).CancelJob(jobs_service_pb2.CancelJobRequest(job_id=running.job_id))).job
    assert cancelled.status == enums_pb2.TASK_STATUS_CANCELLED
    assert [ref.job_id for ref in await worker.heartbeat(lease)] == [running.job_id]
    with pytest.raises(MeshError):
        await worker.complete(lease)
    again = (await jobs(mesh).CancelJob(jobs_service_pb2.CancelJobRequest(job_id=running.job_id))).job
    assert again.version == cancelled.version
    assert [what for what, _ in await events(mesh)] == ["ended", "ended"]
    assert await mesh.rows("SELECT * FROM object_sweeps") == []


async def test_a_lost_trainer_queues_its_job_again_and_a_failed_job_says_why(mesh: Mesh) -> None:
    job = await create(mesh)
    first = await trainer(mesh)
    [lease] = await first.lease()
    await first.heartbeat(lease)
    await age_session(mesh, first)
    await mesh.running.maintenance.expire()
    requeued = await get(mesh, job.job_id)
    assert (requeued.status, requeued.attempt) == (enums_pb2.TASK_STATUS_PENDING, 1)
    second = await trainer(mesh, "t/1")
    [lease] = await second.lease()
    assert lease.attempt == 2
    assert not await second.fail(lease, "The dataset holds one picture", retryable=False)
    failed = await get(mesh, job.job_id)
    assert failed.status == enums_pb2.TASK_STATUS_FAILED
    assert failed.error_message == "The dataset holds one picture"
    assert failed.error_category == enums_pb2.ERROR_CATEGORY_PROVIDER
    assert [what for what, _ in await events(mesh)] == ["requeued", "ended"]


async def lose(mesh: Mesh, number: int, progress: float) -> None:
    """Lease the only job, get so far, and be lost."""
    worker = await trainer(mesh, f"t/{number}")
    [lease] = await worker.lease()
    await worker.heartbeat(lease)
    await mesh.execute("UPDATE tasks SET progress = %s", progress)
    await age_session(mesh, worker)
    await mesh.running.maintenance.expire()


async def test_a_job_that_got_further_each_time_outlives_any_number_of_losses(start_mesh: StartMesh) -> None:
    mesh = await start_mesh(max_retries=2)
    job = await create(mesh)
    for number in range(6):
        await lose(mesh, number, 10.0 * (number + 1))
        assert (await get(mesh, job.job_id)).status == enums_pb2.TASK_STATUS_PENDING
    [[retries]] = await mesh.rows("SELECT retry_count FROM tasks")
    assert retries == 1
    # It stands still: the last loss above was the first of three in a row.
    await lose(mesh, 6, 60.0)
    assert (await get(mesh, job.job_id)).status == enums_pb2.TASK_STATUS_PENDING
    await lose(mesh, 7, 60.0)
    failed = await get(mesh, job.job_id)
    assert (failed.status, failed.attempt) == (enums_pb2.TASK_STATUS_FAILED, 8)


async def test_jobs_are_served_by_priority_and_a_change_of_it_counts(mesh: Mesh) -> None:
    low, high = await create(mesh, priority=0), await create(mesh, priority=1)
    changed = jobs_service_pb2.SetJobPriorityRequest(job_id=low.job_id, priority=5)
    assert (await jobs(mesh).SetJobPriority(changed)).job.priority == 5
    worker = await trainer(mesh)
    order = [(await worker.lease())[0].job_id for _ in range(2)]
    assert order == [low.job_id, high.job_id]
    await jobs(mesh).CancelJob(jobs_service_pb2.CancelJobRequest(job_id=low.job_id))
    changed.priority = 9
    assert (await jobs(mesh).SetJobPriority(changed)).job.priority == 5, "what has ended stays as it is"


async def test_a_tenant_with_a_long_job_waits_for_those_with_short_ones(mesh: Mesh) -> None:
    for _ in range(2):
        await create(mesh, "long", expected_seconds=1000.0)
    worker = await trainer(mesh)
    assert [lease.tenant for lease in await worker.lease()] == ["long"]
    for _ in range(3):
        await create(mesh, "short", expected_seconds=10.0)
    order = [(await worker.lease())[0].tenant for _ in range(4)]
    assert order == ["short", "short", "short", "long"]
    [[charged]] = await mesh.rows("SELECT max(charged) FROM tasks WHERE tenant = 'short'")
    assert charged == 10.0


async def test_no_worker_of_tasks_is_given_a_job_and_no_trainer_a_task(mesh: Mesh) -> None:
    await create(mesh)
    await mesh.create(noop(queue_name="training"))
    tasks = await mesh.worker(queues=("training", "inference"))
    assert [lease.kind for lease in await tasks.lease(4)] == [worker_service_pb2.JOB_KIND_TASK]
    assert [lease.kind for lease in await (await trainer(mesh)).lease(4)] == [TRAINING]


async def test_jobs_count_against_no_limit_of_tasks(start_mesh: StartMesh) -> None:
    mesh = await start_mesh(tenant_waiting_tasks=1)
    await asyncio.gather(*(create(mesh) for _ in range(3)))
    await mesh.create(noop(queue_name="training"))
    limits = (await mesh.tasks().GetLimits(tasks_service_pb2.GetLimitsRequest())).limits
    assert [limit.used for limit in limits if limit.name == "waiting_tasks"] == [1]


@named([method for method in OF_A_TASK if method.name != "CreateTask"])
async def test_a_job_is_no_task_to_callers(mesh: Mesh, method: Any) -> None:
    job = await create(mesh)
    with pytest.raises(MeshError) as missing:
        await call(mesh.tasks("acme", ("operator",)), method, request_of(method, job.job_id))
    assert missing.value.kind is ErrorKind.NOT_FOUND
    assert (await get(mesh, job.job_id)).version == 1
    assert not (await mesh.tasks("acme", ("support",)).ListTasks(tasks_service_pb2.ListTasksRequest())).tasks


@pytest.mark.parametrize(
    "wrong",
    [
        {"queue_name": "inference"},
        {"kind": worker_service_pb2.JOB_KIND_TASK},
        {"tenant": "../x"},
        {"timeout": duration(0)},
        {"expected_seconds": 0.0},
    ],
)
async def test_a_job_that_cannot_be_is_refused(mesh: Mesh, wrong: dict[str, Any]) -> None:
    request = jobs_service_pb2.CreateJobRequest(
        job_id=str(uuid4()),
        kind=TRAINING,
        tenant="acme",
        queue_name="training",
        timeout=duration(1),
        expected_seconds=1.0,
    )
    for name, value in wrong.items():
        if name == "timeout":
            request.timeout.CopyFrom(value)
        else:
            setattr(request, name, value)
    with pytest.raises(MeshError) as refused:
        await jobs(mesh).CreateJob(request)
    assert refused.value.kind is ErrorKind.INVALID


async def test_services_alone_have_jobs(mesh: Mesh) -> None:
    stub = mesh.channel(mesh.token("acme", ("operator",))).stub(JobsServiceStub)
    with pytest.raises(MeshError) as refused:
        await stub.GetJobs(jobs_service_pb2.GetJobsRequest())
    assert refused.value.kind is ErrorKind.FORBIDDEN
    with pytest.raises(MeshError) as missing:
        await jobs(mesh).CancelJob(jobs_service_pb2.CancelJobRequest(job_id=str(uuid4())))
    assert missing.value.kind is ErrorKind.NOT_FOUND
