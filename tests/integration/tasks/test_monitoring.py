"""Lists, counters, queues and workers as operators see them, compared with what was done and with the rows."""

import asyncio
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from atelier.tasks.v1 import enums_pb2, task_pb2, tasks_service_pb2, worker_service_pb2
from atelier.tasks.v1 import monitoring_service_pb2 as pb
from atelier.tasks.v1.monitoring_service_pb2_grpc import TaskMonitoringServiceStub
from google.protobuf import json_format
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp
from prometheus_client import REGISTRY
from psycopg import sql

from meshkit.errors import ErrorKind, MeshError
from services.tasks.catalog import QUEUES
from services.tasks.postgres.monitoring import PostgresMonitoring
from tests.integration.tasks.conftest import Mesh, Worker, noop, ref


def monitor(mesh: Mesh, tenant: str = "acme", scopes: tuple[str, ...] = ("read",)) -> Any:
    return mesh.channel(mesh.token(tenant, scopes)).stub(TaskMonitoringServiceStub)


async def listed(stub: Any, **members: Any) -> pb.ListMonitoredTasksResponse:
    response = await stub.ListMonitoredTasks(pb.ListMonitoredTasksRequest(**members))
    assert isinstance(response, pb.ListMonitoredTasksResponse)
    return response


def stamp(moment: datetime) -> Timestamp:
    value = Timestamp()
    value.FromDatetime(moment)
    return value


async def fold(mesh: Mesh) -> None:
    await PostgresMonitoring(mesh.running.database).fold()


async def counted(mesh: Mesh, tenant: str = "acme", **which: Any) -> pb.GetTaskStatsResponse:
    """Statistics, which are the same before and after the notes are folded."""
    stub = monitor(mesh, tenant)
    before = await stub.GetTaskStats(pb.GetTaskStatsRequest(**which))
    await fold(mesh)
    after = await stub.GetTaskStats(pb.GetTaskStatsRequest(**which))
    assert before == after
    assert isinstance(after, pb.GetTaskStatsResponse)
    return after


async def run(mesh: Mesh, worker: Worker, count: int = 1) -> list[worker_service_pb2.Lease]:
    leases: list[worker_service_pb2.Lease] = []
    async with asyncio.timeout(60):
        while len(leases) < count:
            leases += await worker.lease(count - len(leases))
    return leases


async def test_an_empty_mesh_counts_to_zero_and_names_every_state(mesh: Mesh) -> None:
    stats = await counted(mesh)
    assert (stats.total_tasks, stats.tasks_last_hour, stats.tasks_last_24h) == (0, 0, 0)
    assert dict(stats.by_status) == {"PENDING": 0, "EXECUTING": 0, "COMPLETED": 0, "FAILED": 0, "CANCELLED": 0}
    assert not stats.by_provider
    assert not stats.by_task_type
    empty = await listed(monitor(mesh))
    assert (empty.total, empty.pages, empty.page, empty.page_size, list(empty.items)) == (0, 0, 1, 50, [])


async def test_rows_go_on_after_the_cursor_and_miss_nothing_while_tasks_are_created(mesh: Mesh) -> None:
    stub = monitor(mesh)
    made = [(await mesh.create(noop(origin_zone="eu"))).id for _ in range(5)]
    await mesh.create(tenant="other")
    found: list[str] = []
    cursor: str | None = None
    sizes = []
    while True:
        page = await stub.ListTaskRows(pb.ListTaskRowsRequest(page_size=2, cursor=cursor, origin_zone="eu"))
        found += [row.id for row in page.items]
        sizes.append(len(page.items))
        await mesh.create(noop(origin_zone="eu"))  # what comes later moves no page
        if not page.HasField("next_cursor"):
            break
        cursor = page.next_cursor
    assert (found, sizes) == (made[::-1], [2, 2, 1])
    everything = await stub.ListTaskRows(pb.ListTaskRowsRequest())
    assert len(everything.items) == 8
    assert not everything.HasField("next_cursor")
    assert {row.status for row in everything.items} == {enums_pb2.TASK_STATUS_PENDING}
    with pytest.raises(MeshError) as refused:
        await stub.ListTaskRows(pb.ListTaskRowsRequest(cursor="next"))
    assert refused.value.kind is ErrorKind.INVALID
    with pytest.raises(MeshError) as refused:
        await stub.ListTaskRows(pb.ListTaskRowsRequest(cursor=f"{'f' * 16}-{'0' * 32}"))
    assert refused.value.kind is ErrorKind.INVALID
    with pytest.raises(MeshError) as refused:
        await stub.ListTaskRows(pb.ListTaskRowsRequest(origin_tenant_id="other"))
    assert refused.value.kind is ErrorKind.FORBIDDEN


async def test_counters_follow_every_change_of_state(mesh: Mesh) -> None:
    worker = await mesh.worker()
    made = [await mesh.create(noop(origin_zone="eu" if index % 2 else None)) for index in range(6)]
    completed, failed, retried, *_ = await run(mesh, worker, 4)
    await worker.complete(completed)
    await worker.fail(failed, retryable=False)
    await worker.fail(retried)
    await mesh.tasks().CancelTask(tasks_service_pb2.CancelTaskRequest(task_id=made[5].id))
    stats = await counted(mesh)
    assert stats.total_tasks == 6
    assert dict(stats.by_status) == {"PENDING": 2, "EXECUTING": 1, "COMPLETED": 1, "FAILED": 1, "CANCELLED": 1}
    assert dict(stats.by_provider) == {"LOCAL": 6}
    assert dict(stats.by_task_type) == {"NOOP": 6}
    assert (stats.tasks_last_hour, stats.tasks_last_24h) == (6, 6)
    assert (await counted(mesh, origin_zone="eu")).total_tasks == 3
    assert (await counted(mesh, origin_instance="another")).total_tasks == 0
    assert (await counted(mesh, "other-tenant")).total_tasks == 0


async def test_a_hidden_task_is_not_counted_and_not_listed_nor_one_that_is_removed(mesh: Mesh) -> None:
    worker = await mesh.worker()
    kept, hidden, removed = [await mesh.create() for _ in range(3)]
    for lease in await run(mesh, worker, 3):
        await worker.complete(lease)
    stub = mesh.tasks()
    await stub.CleanupTask(tasks_service_pb2.CleanupTaskRequest(task_id=hidden.id))
    await stub.DeleteTask(tasks_service_pb2.DeleteTaskRequest(task_id=removed.id))
    assert (await counted(mesh)).total_tasks == 1
    assert (await counted(mesh)).tasks_last_hour == 1
    assert [one.id for one in (await listed(monitor(mesh))).items] == [kept.id]


async def test_a_label_that_changes_moves_the_count(mesh: Mesh) -> None:
    task = await mesh.create(noop(origin_zone="eu"))
    await mesh.tasks().UpdateTask(
        tasks_service_pb2.UpdateTaskRequest(
            task_id=task.id, update=task_pb2.TaskUpdate(origin_zone="us"), update_mask=FieldMask(paths=["origin_zone"])
        )
    )
    assert (await counted(mesh, origin_zone="eu")).total_tasks == 0
    assert (await counted(mesh, origin_zone="us")).total_tasks == 1


async def test_counters_equal_the_rows_after_load_of_all_kinds(mesh: Mesh) -> None:
    worker = await mesh.worker()
    tenants = ("acme", "zeta")

    async def create(index: int) -> None:
        await mesh.create(noop(origin_zone=f"z{index % 3}"), tenants[index % 2])

    async def fold_again_and_again() -> None:
        for _ in range(20):
            await fold(mesh)
            await asyncio.sleep(0.01)

    folding = asyncio.create_task(fold_again_and_again())
    await asyncio.gather(*(create(index) for index in range(120)))
    for index, lease in enumerate(await run(mesh, worker, 90)):
        if index % 5 == 0:
            await worker.fail(lease, retryable=index % 2 == 0)
        elif index % 7 == 0:
            await mesh.tasks(lease.tenant).CancelTask(tasks_service_pb2.CancelTaskRequest(task_id=lease.job_id))
        elif index % 11 == 0:
            await worker.release(lease)
        else:
            await worker.complete(lease)
    await folding
    async with mesh.running.database.connection() as conn:
        cursor = await conn.execute("SELECT tenant, status, count(*) FROM tasks GROUP BY tenant, status")
        truth = {(tenant, status): count for tenant, status, count in await cursor.fetchall()}
    for tenant in tenants:
        stats = await counted(mesh, tenant)
        assert {name: count for name, count in stats.by_status.items() if count} == {
            status: count for (owner, status), count in truth.items() if owner == tenant
        }
        assert stats.tasks_last_hour == stats.total_tasks == 60
    whole = await monitor(mesh, scopes=("read", "support")).GetTaskStats(pb.GetTaskStatsRequest())
    assert whole.total_tasks == 120


async def test_a_page_lists_what_the_filters_name_in_the_order_asked_for(mesh: Mesh) -> None:
    worker = await mesh.worker()
    made = [await mesh.create(noop(priority=index, origin_zone=f"z{index % 2}")) for index in range(5)]
    [lease] = await run(mesh, worker)  # the urgent one
    await worker.complete(lease)
    stub = monitor(mesh)
    first = await listed(stub, page_size=2)
    assert [one.id for one in first.items] == [made[4].id, made[3].id]
    assert (first.total, first.pages) == (5, 3)
    assert [one.id for one in (await listed(stub, page_size=2, page=3)).items] == [made[0].id]
    beyond = await listed(stub, page_size=2, page=9)
    assert (list(beyond.items), beyond.total, beyond.pages) == ([], 5, 3)
    assert [one.id for one in (await listed(stub, origin_zone="z1", sort_order="asc")).items] == [
        made[1].id,
        made[3].id,
    ]
    done = await listed(stub, status=enums_pb2.TASK_STATUS_COMPLETED)
    assert ([one.id for one in done.items], done.total) == ([made[4].id], 1)
    by_priority = await listed(stub, sort_by="priority", sort_order="asc")
    assert [one.id for one in by_priority.items] == [one.id for one in made]
    for order in ("asc", "desc"):  # tasks without a duration come last in both
        ordered = await listed(stub, sort_by="duration_ms", sort_order=order)
        assert ordered.items[0].id == made[4].id
        assert ordered.items[0].duration_ms > 0
        assert not any(one.HasField("duration_ms") for one in ordered.items[1:])


async def test_times_are_inclusive_after_and_exclusive_before(mesh: Mesh) -> None:
    made = [await mesh.create() for _ in range(3)]
    stub, middle = monitor(mesh), made[1].created_at
    after = await listed(stub, created_after=middle)
    assert ({one.id for one in after.items}, after.total) == ({made[1].id, made[2].id}, 2)
    before = await listed(stub, created_before=middle)
    assert ({one.id for one in before.items}, before.total) == ({made[0].id}, 1)


async def test_the_beginning_of_an_id_finds_it(mesh: Mesh) -> None:
    task = await mesh.create()
    await asyncio.sleep(0.002)  # identifiers begin with the millisecond
    await mesh.create()
    stub, ident = monitor(mesh), task.id
    for search in (ident, ident.upper(), ident.replace("-", ""), ident[:13], ident[:12]):
        found = await listed(stub, search=search)
        assert [one.id for one in found.items] == [ident], search
    assert (await listed(stub, search="not hex")).total == 0
    assert (await listed(stub, search=str(uuid4()))).total == 0


@pytest.mark.parametrize("members", [{"page_size": 101}, {"page": 0}, {"sort_by": "prompt"}, {"sort_order": "up"}])
async def test_a_page_that_cannot_be_is_refused(mesh: Mesh, members: dict[str, Any]) -> None:
    with pytest.raises(MeshError) as refused:
        await listed(monitor(mesh), **members)
    assert refused.value.kind is ErrorKind.INVALID


async def test_a_tenant_sees_its_own_and_may_not_name_another(mesh: Mesh) -> None:
    task = await mesh.create()
    with pytest.raises(MeshError) as refused:
        await listed(monitor(mesh), origin_tenant_id="zeta")
    assert refused.value.kind is ErrorKind.FORBIDDEN
    foreign = monitor(mesh, "zeta")
    assert (await listed(foreign)).total == 0
    for call, message in (("GetMonitoredTask", pb.GetMonitoredTaskRequest), ("GetTaskMedia", pb.GetTaskMediaRequest)):
        with pytest.raises(MeshError) as missing:
            await getattr(foreign, call)(message(task_id=task.id))
        assert missing.value.kind is ErrorKind.NOT_FOUND
    support = monitor(mesh, "zeta", ("read", "support"))
    assert (await listed(support, origin_tenant_id="acme")).total == 1


async def test_the_detail_holds_the_members_of_the_type_and_what_concerns_execution(mesh: Mesh) -> None:
    worker = await mesh.worker()
    task = await mesh.create(noop(noop={"payload": "p"}, origin_reference="shop-7", priority=3))
    [lease] = await run(mesh, worker)
    await worker.fail(lease, "the first attempt broke")
    stub = monitor(mesh)
    detail = await stub.GetMonitoredTask(pb.GetMonitoredTaskRequest(task_id=task.id))
    assert detail.id == detail.celery_task_id == task.id
    assert (detail.status, detail.priority, detail.queue_name) == (enums_pb2.TASK_STATUS_PENDING, 3, "inference")
    assert (detail.origin_reference, detail.origin_tenant_id, detail.retry_count) == ("shop-7", "acme", 1)
    assert list(detail.errors) == ["the first attempt broke"]
    data = json_format.MessageToDict(detail.task_data)
    assert data["payload"] == "p"
    assert data["result_path"] is None
    assert "status" not in data
    assert not detail.HasField("duration_ms")
    assert (await listed(stub)).items[0].has_error
    await mesh.execute("UPDATE tasks SET not_before = now() - interval '1 s'")
    await mesh.running.maintenance.promote()
    [again] = await run(mesh, worker)
    await worker.complete(again)
    ended = await stub.GetMonitoredTask(pb.GetMonitoredTaskRequest(task_id=task.id))
    assert ended.duration_ms > 0
    assert (await listed(stub)).items[0].has_error, "an error that another attempt made good is one"
    await mesh.execute("UPDATE tasks SET completed_at = started_at - interval '1 s'")
    written_before = await stub.GetMonitoredTask(pb.GetMonitoredTaskRequest(task_id=task.id))
    assert (written_before.duration_ms, (await listed(stub)).items[0].duration_ms) == (0, 0)


async def test_queues_tell_what_waits_runs_is_reserved_and_was_done(mesh: Mesh) -> None:
    stub = monitor(mesh)
    idle = await stub.GetQueueStats(pb.GetQueueStatsRequest())
    assert {one.name for one in idle.queues} == set(QUEUES)
    assert all((one.depth, one.active_workers, one.active_tasks) == (0, 0, 0) for one in idle.queues)
    assert not any(one.HasField("avg_wait_time_ms") for one in idle.queues)
    worker = await mesh.worker()
    for _ in range(9):
        await mesh.create()
    leases = await run(mesh, worker, 6)  # four slots
    await worker.complete(leases[0])
    await fold(mesh)
    await worker.heartbeat(*leases[1:])
    stats = await stub.GetQueueStats(pb.GetQueueStatsRequest())
    queue = next(one for one in stats.queues if one.name == "inference")
    assert (queue.depth, queue.active_workers, queue.active_tasks, queue.reserved_tasks) == (3, 1, 4, 1)
    assert queue.tasks_completed_last_hour == 1
    assert queue.avg_wait_time_ms > 0
    assert (stats.total_pending, stats.total_active) == (3, 4)
    assert abs(stats.timestamp.ToDatetime(tzinfo=UTC) - datetime.now(UTC)) < timedelta(minutes=1)
    foreign = await monitor(mesh, "zeta").GetQueueStats(pb.GetQueueStatsRequest())
    assert (foreign.total_pending, foreign.total_active) == (0, 0)
    operators = await monitor(mesh, "zeta", ("read", "operator")).GetQueueStats(pb.GetQueueStatsRequest())
    assert operators.total_pending == 3


async def test_a_delayed_retry_counts_as_waiting(mesh: Mesh) -> None:
    worker = await mesh.worker()
    await mesh.create()
    [lease] = await run(mesh, worker)
    assert await worker.fail(lease)
    stats = await monitor(mesh).GetQueueStats(pb.GetQueueStatsRequest())
    assert stats.total_pending == 1


async def test_workers_tell_their_load_and_their_memory(mesh: Mesh) -> None:
    stub = monitor(mesh)
    none = await stub.GetWorkerStats(pb.GetWorkerStatsRequest())
    assert (list(none.workers), none.total_workers, none.total_utilization_pct) == ([], 0, 0.0)
    health = await stub.GetWorkersHealth(pb.GetWorkersHealthRequest())
    assert (health.healthy, health.total_workers, list(health.queues_with_workers)) == (False, 0, [])
    assert set(health.queues_without_workers) == set(QUEUES)

    worker = await mesh.worker(name="pod/0")
    await mesh.worker(name="pod/1")
    for _ in range(5):
        await mesh.create()
    leases = await run(mesh, worker, 5)
    await worker.complete(leases[0])
    await worker.stub.Heartbeat(
        worker_service_pb2.HeartbeatRequest(
            session_id=worker.session,
            held=[ref(lease) for lease in leases[1:]],
            load=worker_service_pb2.WorkerLoad(memory_bytes=250_000_000, completed={"NOOP": 40, "REFINE": 1}),
        )
    )
    stats = await stub.GetWorkerStats(pb.GetWorkerStatsRequest())
    busy, idle = sorted(stats.workers, key=lambda one: one.name)
    assert (busy.name, list(busy.queues), busy.concurrency) == ("pod/0", ["inference"], 4)
    assert (busy.active_tasks, busy.utilization_pct, busy.has_capacity) == (4, 100.0, False)
    assert (busy.tasks_completed_total, busy.memory_mb) == (41, 250.0)
    assert busy.tasks_per_minute == pytest.approx(1 / 5)
    assert (idle.active_tasks, idle.has_capacity, idle.HasField("memory_mb")) == (0, True, False)
    assert (stats.total_workers, stats.total_capacity, stats.total_active) == (2, 8, 4)
    assert (stats.total_utilization_pct, stats.workers_at_capacity) == (50.0, 1)
    health = await stub.GetWorkersHealth(pb.GetWorkersHealthRequest())
    assert (health.healthy, health.total_workers, health.workers_with_capacity) == (True, 2, 1)
    assert list(health.queues_with_workers) == ["inference"]


async def test_a_worker_that_takes_no_work_says_why(mesh: Mesh) -> None:
    stub, worker = monitor(mesh), await mesh.worker()
    for fault in ("", "its process does not start", ""):
        load = worker_service_pb2.WorkerLoad(fault=fault)
        await worker.stub.Heartbeat(worker_service_pb2.HeartbeatRequest(session_id=worker.session, load=load))
        stats = await stub.GetWorkerStats(pb.GetWorkerStatsRequest())
        [told] = stats.workers
        assert (told.fault, told.has_capacity) == (fault, not fault)
        assert stats.total_capacity == (0 if fault else told.concurrency)
        health = await stub.GetWorkersHealth(pb.GetWorkersHealthRequest())
        assert health.healthy is not bool(fault)
        assert list(health.queues_with_workers) == ([] if fault else ["inference"])
        await mesh.running.maintenance.measure()
        slots = REGISTRY.get_sample_value("atelier_tasks_queue_slots", {"queue": "inference"})
        assert slots == (0 if fault else told.concurrency)


async def test_a_mesh_of_busy_or_draining_workers_is_not_healthy(mesh: Mesh) -> None:
    worker = await mesh.worker()
    await worker.heartbeat(draining=True)
    health = await monitor(mesh).GetWorkersHealth(pb.GetWorkersHealthRequest())
    assert (health.healthy, health.total_workers, health.workers_with_capacity) == (False, 1, 0)


async def test_a_closed_session_is_no_worker(mesh: Mesh) -> None:
    worker = await mesh.worker()
    await worker.close()
    assert (await monitor(mesh).GetWorkerStats(pb.GetWorkerStatsRequest())).total_workers == 0


async def test_a_total_that_is_too_long_to_count_is_an_estimate_and_says_so(mesh: Mesh) -> None:
    async with mesh.running.database.transaction() as conn:
        task = await mesh.create()
        columns = [
            row[0]
            for row in await (
                await conn.execute(
                    "SELECT column_name FROM information_schema.columns "
                    "WHERE table_name = 'tasks' AND table_schema = current_schema() AND column_name <> 'id'"
                )
            ).fetchall()
        ]
        names = sql.SQL(", ").join(map(sql.Identifier, columns))
        await conn.execute(
            sql.SQL(
                "INSERT INTO tasks (id, {names}) SELECT gen_random_uuid(), {names} FROM tasks, "
                "generate_series(1, 10500) WHERE id = %s"
            ).format(names=names),
            (task.id,),
        )
        await conn.execute("ANALYZE tasks")
    stub = monitor(mesh)
    told: list[tuple[str, str | bytes]] = []
    after = stamp(datetime.now(UTC) - timedelta(hours=1))
    response = await stub.ListMonitoredTasks(pb.ListMonitoredTasksRequest(created_after=after), trailing=told.extend)
    assert response.total > 10_000
    assert dict(told)["total-is-estimate"] == "true"
    told.clear()
    exact = await stub.ListMonitoredTasks(pb.ListMonitoredTasksRequest(), trailing=told.extend)
    assert exact.total == 10_501
    assert "total-is-estimate" not in dict(told)
    assert Counter(one.id for one in exact.items).most_common(1)[0][1] == 1


async def test_without_workers_every_celery_map_is_null_and_a_tenant_may_not_ask(mesh: Mesh) -> None:
    stub = monitor(mesh, scopes=("read", "support"))
    none = await stub.GetCeleryStats(pb.GetCeleryStatsRequest())
    assert not none.ListFields()
    with pytest.raises(MeshError) as refused:
        await monitor(mesh).GetCeleryStats(pb.GetCeleryStatsRequest())
    assert refused.value.kind is ErrorKind.FORBIDDEN


async def test_celery_maps_hold_what_each_worker_runs_has_reserved_and_waits_for(mesh: Mesh) -> None:
    worker = await mesh.worker(name="pod/0")
    for _ in range(7):
        await mesh.create()
    leases = await run(mesh, worker, 7)  # four slots
    await worker.fail(leases[0])
    await mesh.tasks().CancelTask(tasks_service_pb2.CancelTaskRequest(task_id=leases[1].job_id))
    await worker.release(leases[1])
    stub = monitor(mesh, scopes=("read", "support"))
    stats = json_format.MessageToDict(
        await stub.GetCeleryStats(pb.GetCeleryStatsRequest()), preserving_proto_field_name=True
    )
    name = "celery@pod/0"
    assert {one["id"] for one in stats["active"][name]} == {lease.job_id for lease in leases[2:6]}
    assert {one["id"] for one in stats["reserved"][name]} == {leases[6].job_id}
    assert [one["request"]["id"] for one in stats["scheduled"][name]] == [leases[0].job_id]
    assert stats["revoked"][name] == [leases[1].job_id]
    assert stats["stats"][name]["pool"]["max-concurrency"] == 4
