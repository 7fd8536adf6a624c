import asyncio
import time

from atelier.tasks.v1 import tasks_service_pb2

from tests.integration.tasks.conftest import Mesh, StartMesh, Worker, fill, noop


async def flood(mesh: Mesh, tenant: str, count: int, priority: int = 0) -> list[str]:
    stub = mesh.tasks(tenant)
    tasks = await asyncio.gather(*(mesh.create(noop(priority=priority), stub=stub) for _ in range(count)))
    return [task.id for task in tasks]


async def dispatched(worker: Worker, count: int, batch: int = 1) -> list[str]:
    """Tenants in the order in which they are served."""
    order: list[str] = []
    while len(order) < count:
        leases = await worker.lease(batch)
        assert leases, "work ran out"
        order.extend(lease.tenant for lease in leases)
        for lease in leases:
            await worker.complete(lease, seconds=0.1)
    return order[:count]


async def test_one_task_is_among_the_next_few_of_a_flood(mesh: Mesh) -> None:
    await flood(mesh, "flooder", 200)
    worker = await mesh.worker()
    await dispatched(worker, 20, batch=4)
    await mesh.create(tenant="modest")
    assert "modest" in await dispatched(worker, 3)


async def test_priority_counts_within_a_tenant_only(mesh: Mesh) -> None:
    await flood(mesh, "flooder", 100, priority=1000)
    worker = await mesh.worker()
    await dispatched(worker, 10)
    await mesh.create(noop(priority=-1000), tenant="modest")
    assert "modest" in await dispatched(worker, 3)


async def test_flood_that_is_cancelled_gains_nothing(mesh: Mesh) -> None:
    worker = await mesh.worker()
    ids = await flood(mesh, "flooder", 60)
    await dispatched(worker, 20, batch=4)
    stub = mesh.tasks("flooder")
    cancels = (stub.CancelTask(tasks_service_pb2.CancelTaskRequest(task_id=task_id)) for task_id in ids)
    await asyncio.gather(*cancels, return_exceptions=True)
    await flood(mesh, "modest", 20)
    await flood(mesh, "flooder", 20)
    order = await dispatched(worker, 20)
    assert abs(order.count("modest") - order.count("flooder")) <= 2


async def test_cancelled_executing_tasks_stay_charged(mesh: Mesh) -> None:
    worker = await mesh.worker()
    await flood(mesh, "flooder", 10)
    leases = await worker.lease(10)
    stub = mesh.tasks("flooder")
    for lease in leases:
        await stub.CancelTask(tasks_service_pb2.CancelTaskRequest(task_id=lease.job_id))
    [[virtual_time]] = await mesh.rows("SELECT virtual_time FROM queue_tenants")
    assert virtual_time > 0.9


async def test_weights_of_one_to_three_give_one_to_three(start_mesh: StartMesh) -> None:
    mesh = await start_mesh(tenant_weights={"big": 3.0})
    await flood(mesh, "small", 60)
    await flood(mesh, "big", 60)
    worker = await mesh.worker()
    order = await dispatched(worker, 40, batch=4)
    assert 8 <= order.count("small") <= 12


async def test_requeue_is_not_charged_twice(mesh: Mesh) -> None:
    await mesh.create()
    worker = await mesh.worker()
    [lease] = await worker.lease()
    [[once]] = await mesh.rows("SELECT virtual_time FROM queue_tenants")
    await worker.release(lease)
    await worker.lease()
    [[twice]] = await mesh.rows("SELECT virtual_time FROM queue_tenants")
    assert once == twice > 0


async def test_cost_is_corrected_at_completion(mesh: Mesh) -> None:
    await mesh.create()
    worker = await mesh.worker()
    [lease] = await worker.lease()
    await worker.complete(lease, seconds=7.0)
    [[virtual_time]] = await mesh.rows("SELECT virtual_time FROM queue_tenants")
    assert abs(virtual_time - 7.0) < 1e-6


async def test_many_tenants_cost_no_more_per_lease_than_few(mesh: Mesh) -> None:
    async def seconds_per_lease(tenants: int) -> float:
        await fill(mesh, rows=2000, tenants=tenants)
        worker = await mesh.worker()
        times = []
        for _ in range(40):
            begun = time.perf_counter()
            assert len(await worker.lease(1)) == 1
            times.append(time.perf_counter() - begun)
        return min(times)  # what it takes when nothing else is in its way

    few = await seconds_per_lease(10)
    many = await seconds_per_lease(1000)
    assert many < few * 3 + 0.02, "a cost of each tenant would be a hundredfold"


async def test_counters_match_the_rows_after_a_busy_life(mesh: Mesh) -> None:
    worker = await mesh.worker()
    stub = mesh.tasks()
    for round_number in range(6):
        ids = await flood(mesh, "acme", 8)
        leases = await worker.lease(5)
        await asyncio.gather(
            worker.complete(leases[0]),
            worker.fail(leases[1]),
            worker.release(leases[2], leases[3]),
            stub.CancelTask(tasks_service_pb2.CancelTaskRequest(task_id=leases[4].job_id)),
            stub.CancelTask(tasks_service_pb2.CancelTaskRequest(task_id=ids[-1])),
            return_exceptions=round_number > 0,
        )
        await mesh.running.maintenance.promote()
    [[counted]] = await mesh.rows("SELECT count(*) FROM tasks WHERE status = 'PENDING' AND not_before IS NULL")
    [[tenant]] = await mesh.rows("SELECT pending FROM queue_tenants")
    [[lane]] = await mesh.rows("SELECT pending FROM queue_lanes")
    assert counted == tenant == lane


async def test_wrong_counter_heals(mesh: Mesh) -> None:
    await mesh.create(tenant="real")
    await mesh.execute("INSERT INTO queue_tenants VALUES ('inference', 'ghost', -5, 3, 0)")
    await mesh.execute("INSERT INTO queue_lanes VALUES ('inference', 'ghost', 'NOOP/LOCAL', -5, 3)")
    worker = await mesh.worker()
    [lease] = await worker.lease()
    assert lease.tenant == "real"
    [[pending]] = await mesh.rows("SELECT pending FROM queue_tenants WHERE tenant = 'ghost'")
    assert pending == 0


async def test_a_tenant_that_has_its_share_of_a_worker_is_passed_over_by_its_polls_alone(mesh: Mesh) -> None:
    await flood(mesh, "flooder", 30)
    await flood(mesh, "modest", 2)
    worker, other = await mesh.worker(), await mesh.worker(name="w/1")
    leases, others = await asyncio.gather(worker.lease(4, full=("flooder",)), other.lease(4))
    assert {lease.tenant for lease in leases} <= {"modest"}
    assert len(others) == 4
    again = [] if len(leases) + len(others) == 6 else await worker.lease(4, wait=0.2, full=("flooder",))
    assert {lease.tenant for lease in again} <= {"modest"}
    assert await worker.lease(4, wait=0.2, full=("flooder", "modest")) == []
    assert {lease.tenant for lease in await worker.lease(4)} >= {"flooder"}
