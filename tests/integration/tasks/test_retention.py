"""What ended long ago is deleted by the ages of its tenant: rows, files, attempts; what is still needed stays."""

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from atelier.tasks.v1 import (
    jobs_service_pb2,
    retention_pb2,
    task_pb2,
    tasks_service_pb2,
    usage_service_pb2,
    worker_service_pb2,
)
from atelier.tasks.v1 import monitoring_service_pb2 as monitoring
from atelier.tasks.v1 import retention_service_pb2 as pb
from atelier.tasks.v1.jobs_service_pb2_grpc import JobsServiceStub
from atelier.tasks.v1.monitoring_service_pb2_grpc import TaskMonitoringServiceStub
from atelier.tasks.v1.retention_service_pb2_grpc import RetentionServiceStub
from atelier.tasks.v1.usage_service_pb2_grpc import UsageServiceStub

from meshkit.errors import ErrorKind, MeshError
from services.tasks.domain import JobKind
from services.tasks.postgres.monitoring import PostgresMonitoring
from services.tasks.retention.domain import RetentionKind
from tests.conftest import S3Store
from tests.integration.tasks.conftest import SECRET, Mesh, StartMesh, noop, until

TASKS = retention_pb2.RETENTION_KIND_TASKS
DELIVERIES = retention_pb2.RETENTION_KIND_DELIVERIES
USAGE = retention_pb2.RETENTION_KIND_USAGE
QUICK: dict[str, Any] = {"retention_share": 1.0, "object_sweep_delay_seconds": 0.0}


def retention(mesh: Mesh, *scopes: str) -> Any:
    return mesh.channel(mesh.token("ops", scopes or ("operator",))).stub(RetentionServiceStub)


async def keep(mesh: Mesh, kind: int, days: int, tenant: str = "*") -> Any:
    request = pb.SetRetentionRequest(kind=kind, tenant=tenant, days=days)  # type: ignore[arg-type]  # a number
    return (await retention(mesh).SetRetention(request)).age


async def preview(mesh: Mesh, kind: int, **more: Any) -> dict[str, Any]:
    request = pb.PreviewRetentionRequest(kind=kind, **more)  # type: ignore[arg-type]  # a number
    return {line.tenant: line for line in (await retention(mesh).PreviewRetention(request)).lines}


async def prune(mesh: Mesh, kind: RetentionKind = RetentionKind.TASKS) -> None:
    """Makes one pass, and sweeps."""
    while await mesh.running.retention.prunings[kind].run_once():
        pass
    while await mesh.running.maintenance.sweep_objects():
        pass


async def completed(mesh: Mesh, tenant: str = "acme", *, files: int = 1, **members: Any) -> str:
    """Makes a task that has ended, with files in the store."""
    task = await mesh.create(noop(**members), tenant)
    worker = await mesh.worker(name=f"w/{task.id}")
    [lease] = await worker.lease()
    paths = [f"noops/{task.id}/{lease.attempt}/{number}.bin" for number in range(files)]
    for path in paths:
        await mesh.running.objects.put(tenant, path, b"x" * 1000, "application/octet-stream")
    await worker.complete(lease, *paths, seconds=2.0)
    await worker.close()
    return task.id


async def age(mesh: Mesh, days: int, *task_ids: str) -> None:
    """Lets tasks have ended so many days ago; all where none is named."""
    moved = "created_at = created_at - {0}, started_at = started_at - {0}, completed_at = completed_at - {0}".format(
        f"interval '{days} days'"
    )
    chosen = "id = ANY(%s::uuid[])" if task_ids else "%s::text[] IS NOT NULL"
    await mesh.execute(f"UPDATE tasks SET {moved} WHERE {chosen}", list(task_ids))


async def left(mesh: Mesh) -> set[str]:
    return {row[0] for row in await mesh.rows("SELECT id::text FROM tasks")}


async def files(mesh: Mesh, tenant: str = "acme") -> list[str]:
    return [one.path async for one in mesh.running.objects.walk(tenant, "noops/")]


@pytest.fixture
def bucket(s3: S3Store) -> str:
    return s3.bucket()


@pytest.fixture
async def mesh(start_mesh: StartMesh) -> Mesh:
    return await start_mesh(**QUICK)


async def test_nothing_is_deleted_until_an_age_is_set_but_deliveries(mesh: Mesh) -> None:
    task = await completed(mesh)
    await age(mesh, 3000)
    await prune(mesh)
    assert await left(mesh) == {task}
    told = (await retention(mesh, "support").ListRetention(pb.ListRetentionRequest())).ages
    assert {one.kind: (one.tenant, one.days) for one in told} == {
        number: ("*", 30 if number == DELIVERIES else 0) for number in range(1, 6)
    }


async def test_an_old_task_goes_with_its_files_attempts_and_requests(mesh: Mesh) -> None:
    old, young = await completed(mesh, files=3), await completed(mesh)
    await age(mesh, 11, old)
    await age(mesh, 9, young)
    await keep(mesh, TASKS, 10)
    await prune(mesh)
    assert await left(mesh) == {young}
    assert [path.split("/")[1] for path in await files(mesh)] == [young]
    assert await mesh.rows("SELECT task_id::text FROM attempts") == [(young,)]
    assert await mesh.rows("SELECT count(*) FROM object_sweeps") == [(0,)]
    with pytest.raises(MeshError) as error:
        await mesh.get(old)
    assert error.value.kind is ErrorKind.NOT_FOUND
    with pytest.raises(MeshError) as used:
        await mesh.create(noop(), stub=mesh.tasks("acme", ("mesh",)), task_id=old)
    assert used.value.kind is ErrorKind.CONFLICT, "its identifier is given to no other"


async def test_inputs_of_an_old_task_go_although_it_has_no_result(mesh: Mesh) -> None:
    task = await mesh.create()
    path = f"noops/{task.id}/inputs/0.png"
    await mesh.running.objects.put("acme", path, b"x", "image/png")
    named = task_pb2.Task(origin_reference=path).SerializeToString()
    await mesh.execute("UPDATE tasks SET body = body || %s WHERE id = %s", named, task.id)
    await mesh.tasks().CancelTask(tasks_service_pb2.CancelTaskRequest(task_id=task.id))
    await age(mesh, 2)
    await keep(mesh, TASKS, 1)
    await prune(mesh)
    assert (await left(mesh), await files(mesh)) == (set(), [])


async def test_tenants_have_ages_of_their_own(mesh: Mesh) -> None:
    tasks = {tenant: await completed(mesh, tenant) for tenant in ("acme", "short", "long")}
    await age(mesh, 20)
    await keep(mesh, TASKS, 30)
    await keep(mesh, TASKS, 5, "short")
    await keep(mesh, TASKS, 0, "long")
    await prune(mesh)
    assert await left(mesh) == {tasks["acme"], tasks["long"]}
    await age(mesh, 3000)
    await prune(mesh)
    assert await left(mesh) == {tasks["long"]}, "0 keeps for ever"
    removed = await retention(mesh).RemoveRetention(pb.RemoveRetentionRequest(kind=TASKS, tenant="long"))
    assert (removed.age.tenant, removed.age.days) == ("*", 30)
    await prune(mesh)
    assert await left(mesh) == set()


async def test_what_is_still_needed_stays(mesh: Mesh) -> None:
    of_workflow = await completed(mesh)
    await mesh.execute("UPDATE tasks SET workflow_id = %s WHERE id = %s", uuid4(), of_workflow)
    untold = await completed(mesh, webhook_url="https://example.com/hook")
    waits, training = (await mesh.create()).id, str(uuid4())
    await mesh.execute("UPDATE webhook_deliveries SET created_at = now() - interval '100 days'")
    request = jobs_service_pb2.CreateJobRequest(
        job_id=training,
        kind=worker_service_pb2.JOB_KIND_TRAINING,
        tenant="acme",
        queue_name="training",
        expected_seconds=1.0,
    )
    request.timeout.FromSeconds(60)
    jobs = mesh.channel(mesh.token("", ("mesh",))).stub(JobsServiceStub)
    await jobs.CreateJob(request)
    assert await mesh.rows("SELECT kind FROM tasks WHERE id = %s", training) == [(JobKind.TRAINING.value,)]
    await jobs.CancelJob(jobs_service_pb2.CancelJobRequest(job_id=training))
    await age(mesh, 100)
    await keep(mesh, TASKS, 1)
    await prune(mesh)
    assert await left(mesh) == {waits, of_workflow, untold, training}
    await mesh.execute(
        "UPDATE webhook_deliveries SET status = 'FAILED', failure = 'EXHAUSTED', due_at = NULL, ended_at = now()"
    )
    await prune(mesh)
    assert await left(mesh) == {waits, of_workflow, training}
    kept = await jobs.ForgetJobs(jobs_service_pb2.ForgetJobsRequest(job_ids=[training, waits]))
    assert (kept.forgotten, list(kept.kept_ids)) == (1, [waits]), "what has not ended is never forgotten"


async def test_a_held_task_stays_for_a_day(mesh: Mesh) -> None:
    held, other = await completed(mesh), await completed(mesh)
    await age(mesh, 100)
    await keep(mesh, TASKS, 1)
    jobs = mesh.channel(mesh.token("", ("mesh",))).stub(JobsServiceStub)
    foreign = (await mesh.create(tenant="other")).id
    request = jobs_service_pb2.HoldTasksRequest(tenant="acme", task_ids=[held, foreign, str(uuid4())])
    await jobs.HoldTasks(request)
    assert await mesh.rows("SELECT task_id::text FROM task_holds") == [(held,)], "unknown and others' are left out"
    await mesh.tasks("other").DeleteTask(tasks_service_pb2.DeleteTaskRequest(task_id=foreign))
    assert (await preview(mesh, TASKS))["acme"].rows == 1
    await prune(mesh)
    assert await left(mesh) == {held}
    forgotten = await jobs.ForgetJobs(jobs_service_pb2.ForgetJobsRequest(job_ids=[held, other]))
    assert list(forgotten.kept_ids) == [held]
    await mesh.execute("UPDATE task_holds SET held_until = held_until - interval '1 day 1 second'")
    await prune(mesh)
    assert await left(mesh) == set()
    await jobs.HoldTasks(jobs_service_pb2.HoldTasksRequest(tenant="acme", task_ids=[]))
    assert await mesh.rows("SELECT count(*) FROM task_holds") == [(0,)]


async def test_tasks_of_a_workflow_are_forgotten_with_it(mesh: Mesh) -> None:
    workflow = str(uuid4())
    tasks = [await completed(mesh) for _ in range(2)] + [(await mesh.create()).id]
    await mesh.execute("UPDATE tasks SET workflow_id = %s", workflow)
    jobs = mesh.channel(mesh.token("", ("mesh",))).stub(JobsServiceStub)
    answer = await jobs.ForgetJobs(jobs_service_pb2.ForgetJobsRequest(workflow_id=workflow))
    assert (answer.forgotten, list(answer.kept_ids)) == (2, tasks[2:])
    await prune(mesh)
    assert await files(mesh) == []


async def test_old_deliveries_and_usage_go_by_their_ages(mesh: Mesh) -> None:
    await completed(mesh, webhook_url="https://example.com/hook")
    await mesh.running.maintenance.forget()
    [(count,)] = await mesh.rows("SELECT count(*) FROM webhook_deliveries")
    await mesh.execute(
        "UPDATE webhook_deliveries SET status = 'FAILED', failure = 'EXHAUSTED', due_at = NULL, "
        "ended_at = now() - interval '29 days', created_at = now() - interval '31 days'"
    )
    await mesh.execute(
        "INSERT INTO webhook_attempts (delivery_id, number, started_at, duration_seconds) "
        "SELECT id, 1, now(), 1 FROM webhook_deliveries"
    )
    await prune(mesh, RetentionKind.DELIVERIES)
    assert await mesh.rows("SELECT count(*) FROM webhook_deliveries") == [(count,)]
    await mesh.execute("UPDATE webhook_deliveries SET ended_at = now() - interval '31 days'")
    assert (await preview(mesh, DELIVERIES))["acme"].rows == count
    await prune(mesh, RetentionKind.DELIVERIES)
    assert await mesh.rows("SELECT count(*) FROM webhook_attempts") == [(0,)]
    await mesh.execute(
        "INSERT INTO stored_days SELECT (now() AT TIME ZONE 'UTC')::date - n, t, 'NOOP', '', 1, 1 "
        "FROM generate_series(0, 99) n, unnest(ARRAY['acme', 'other']) t"
    )
    await keep(mesh, USAGE, 10, "acme")
    assert (await preview(mesh, USAGE))["acme"].rows == 89
    await prune(mesh, RetentionKind.USAGE)
    kept = await mesh.rows("SELECT tenant, count(*) FROM stored_days GROUP BY 1 ORDER BY 1")
    assert kept == [("acme", 11), ("other", 100)]


async def test_counters_equal_the_truth_and_usage_stays(mesh: Mesh) -> None:
    for tenant in ("acme", "acme", "other"):
        await completed(mesh, tenant)
    await mesh.create()
    usage = mesh.channel(mesh.token("acme", ("read",))).stub(UsageServiceStub)
    before = (await usage.GetUsage(usage_service_pb2.GetUsageRequest())).total
    assert (before.attempts, before.device_seconds) == (2, 4.0)
    await mesh.execute("UPDATE tasks SET completed_at = completed_at - interval '9 days', "
                       "created_at = created_at - interval '9 days', started_at = created_at - interval '9 days' "
                       "WHERE tenant = 'acme' AND completed_at IS NOT NULL")  # fmt: skip
    await keep(mesh, TASKS, 7)
    await prune(mesh)
    figures = mesh.channel(mesh.token("ops", ("support",))).stub(TaskMonitoringServiceStub)
    for _ in range(2):
        stats = await figures.GetTaskStats(monitoring.GetTaskStatsRequest())
        truth = dict(await mesh.rows("SELECT status, count(*) FROM tasks GROUP BY 1"))
        assert {name: count for name, count in stats.by_status.items() if count} == truth
        assert stats.total_tasks == 2
        await PostgresMonitoring(mesh.running.database).fold()
    assert (await usage.GetUsage(usage_service_pb2.GetUsageRequest())).total == before


async def test_a_dry_run_tells_rows_and_bytes_and_deletes_nothing(mesh: Mesh) -> None:
    tasks = {await completed(mesh, files=2) for _ in range(3)}
    await age(mesh, 8)
    assert await preview(mesh, TASKS) == {}
    told = await preview(mesh, TASKS, days=7)
    assert (told["acme"].rows, told["acme"].days, told["acme"].bytes_estimated) == (3, 7, False)
    assert 6000 < told["acme"].bytes < 12000
    assert await preview(mesh, TASKS, days=9) == {}
    assert set(await preview(mesh, TASKS, days=7, tenant="acme")) == {"acme"}
    assert await preview(mesh, TASKS, days=7, tenant="other") == {}
    await prune(mesh)
    assert await left(mesh) == tasks


async def test_bytes_of_many_tasks_are_told_by_the_first_ones(mesh: Mesh) -> None:
    await completed(mesh)
    await mesh.execute(
        "INSERT INTO tasks SELECT r.* FROM tasks t, generate_series(1, 1999) n, "
        "LATERAL jsonb_populate_record(t, jsonb_build_object('id', gen_random_uuid(), 'result_objects', '[]'::jsonb, "
        "'created_at', t.created_at + n * interval '1 ms')) r"
    )
    await age(mesh, 8)
    told = (await preview(mesh, TASKS, days=7))["acme"]
    assert (told.rows, told.bytes_estimated) == (2000, True)
    await keep(mesh, TASKS, 7)
    await prune(mesh)
    assert await left(mesh) == set()


@pytest.mark.parametrize("tenant", ["", "a tenant", "../acme"])
async def test_what_is_no_tenant_is_refused(mesh: Mesh, tenant: str) -> None:
    with pytest.raises(MeshError) as error:
        await keep(mesh, TASKS, 1, tenant)
    assert error.value.kind is ErrorKind.INVALID


async def test_only_an_operator_sets_an_age(mesh: Mesh) -> None:
    for call in ("SetRetention", "RemoveRetention"):
        request = {"SetRetention": pb.SetRetentionRequest, "RemoveRetention": pb.RemoveRetentionRequest}[call]
        for scopes in (("read", "write"), ("support",)):
            with pytest.raises(MeshError) as error:
                await getattr(retention(mesh, *scopes), call)(request(kind=TASKS, tenant="acme", days=1)
                    if call == "SetRetention" else request(kind=TASKS, tenant="acme"))  # fmt: skip
            assert error.value.kind is ErrorKind.FORBIDDEN
    with pytest.raises(MeshError) as error:
        await retention(mesh, "read").PreviewRetention(pb.PreviewRetentionRequest(kind=TASKS))
    assert error.value.kind is ErrorKind.FORBIDDEN


async def test_two_replicas_prune_together(start_mesh: StartMesh) -> None:
    one, other = await start_mesh(**QUICK), await start_mesh(**QUICK)
    await completed(one)
    await one.execute(
        "INSERT INTO tasks SELECT r.* FROM tasks t, generate_series(1, 5000) n, LATERAL jsonb_populate_record(t, "
        "jsonb_build_object('id', gen_random_uuid(), 'result_objects', '[]'::jsonb, "
        "'created_at', t.created_at + n * interval '1 ms')) r"
    )
    await age(one, 8)
    await keep(one, TASKS, 7)
    pruning = [replica.running.retention.prunings[RetentionKind.TASKS] for replica in (one, other)]

    async def pass_through(index: int) -> int:
        batches = 0
        while await pruning[index].run_once():
            batches += 1
        return batches

    batches = await asyncio.gather(pass_through(0), pass_through(1))
    assert min(batches) > 1, "both had their part"
    await prune(one)
    assert (await left(one), await files(one)) == (set(), [])
    assert await one.rows("SELECT count(*) FROM task_ids") == [(5001,)]
    await PostgresMonitoring(one.running.database).fold()
    assert await one.rows("SELECT sum(tasks) FROM task_counts") in ([(0,)], [(None,)])


async def test_identifiers_of_deleted_tasks_are_forgotten_after_a_year(mesh: Mesh) -> None:
    await mesh.execute(
        "INSERT INTO task_ids SELECT gen_random_uuid(), 'acme', now() - n * interval '1 day' "
        "FROM generate_series(1, 400) n"
    )
    while await mesh.running.retention.identifiers.run_once():
        pass
    assert await mesh.rows("SELECT count(*) FROM task_ids WHERE deleted_at > now() - interval '365 days'") == [(364,)]
    assert await mesh.rows("SELECT count(*) FROM task_ids") == [(364,)]


async def test_a_service_that_is_killed_while_it_prunes_leaves_nothing_behind(
    mesh: Mesh, mesh_dsn: str, nats_url: str, s3: S3Store, bucket: str, tmp_path: Path
) -> None:
    await completed(mesh)
    await mesh.execute(
        "INSERT INTO tasks SELECT r.* FROM tasks t, generate_series(1, 1999) n, "
        "LATERAL (SELECT gen_random_uuid() AS id, n AS place) i, "
        "LATERAL jsonb_populate_record(t, jsonb_build_object('id', i.id, 'result_objects', "
        "CASE WHEN i.place %% 10 = 0 THEN jsonb_build_array('noops/' || i.id || '/1/image.png') "
        "ELSE '[]'::jsonb END, 'created_at', t.created_at + n * interval '1 ms')) r"
    )
    named = [row[0] for row in await mesh.rows("SELECT unnest(result_objects) FROM tasks")]
    for path in named:
        await mesh.running.objects.put("acme", path, b"x", "image/png")
    assert len(named) == 200, "every tenth, and the first"
    await age(mesh, 8)
    await keep(mesh, TASKS, 7)
    environment = {
        **os.environ,
        "ATELIER_DATABASE_URL": mesh_dsn,
        "ATELIER_NATS_URL": nats_url,
        "ATELIER_S3_ENDPOINT": s3.endpoint,
        "ATELIER_S3_ACCESS_KEY": s3.access_key,
        "ATELIER_S3_SECRET_KEY": s3.secret_key,
        "ATELIER_S3_BUCKET": bucket,
        "ATELIER_AUTH_SECRET": SECRET,
        "ATELIER_LISTEN": "127.0.0.1:0",
        "ATELIER_OBJECT_SWEEP_DELAY_SECONDS": "0",
        "ATELIER_RETENTION_INTERVAL_SECONDS": "0.2",
        "ATELIER_RETENTION_SHARE": "0.5",
    }

    async def gone() -> int:
        return 200 - len(await files(mesh))

    interrupted = False
    for least in (1, 60):
        with (tmp_path / "log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "services.tasks"), env=environment, stdout=log, stderr=log
            )
        try:

            async def enough(least: int = least) -> bool:
                return await gone() >= least

            await until(enough, 120)
        finally:
            process.send_signal(signal.SIGKILL)
            await process.wait()
        # Each file that is there yet is known by the row of its task, or by the note for the sweeper.
        rows = await left(mesh)
        noted = {row[0] for row in await mesh.rows("SELECT task_id::text FROM object_sweeps")}
        assert {path.split("/")[1] for path in await files(mesh)} <= rows | noted
        interrupted = interrupted or bool(rows | noted)
    assert interrupted, "it was killed in between"
    await prune(mesh)
    assert (await left(mesh), await files(mesh)) == (set(), [])
    assert await mesh.rows("SELECT count(*) FROM attempts") == [(0,)]
    assert await mesh.rows("SELECT count(*) FROM object_sweeps") == [(0,)]
    await PostgresMonitoring(mesh.running.database).fold()
    assert await mesh.rows("SELECT count(*) FROM task_counts WHERE tasks <> 0") == [(0,)]
