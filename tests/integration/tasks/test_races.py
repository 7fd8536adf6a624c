"""Two things at once to one task: exactly one of them wins, and everyone is told the same."""

import asyncio
from typing import Any

import pytest
from atelier.tasks.v1 import enums_pb2, tasks_service_pb2
from atelier.tasks.v1.worker_service_pb2 import Lease

from meshkit.errors import Kind, MeshError
from tests.integration.tasks.conftest import Mesh, StartMesh, Worker, noop

CancelTaskRequest = tasks_service_pb2.CancelTaskRequest
CANCELLED = enums_pb2.TASK_STATUS_CANCELLED
COMPLETED = enums_pb2.TASK_STATUS_COMPLETED


async def test_first_terminal_state_wins(mesh: Mesh) -> None:
    stub = mesh.tasks()
    worker = await mesh.worker()
    for _ in range(12):
        task = await mesh.create(stub=stub)
        [lease] = await worker.lease()
        answers: tuple[Any, Any] = await asyncio.gather(
            stub.CancelTask(CancelTaskRequest(task_id=task.id)), worker.complete(lease), return_exceptions=True
        )
        cancelled, completed = answers
        ended = await mesh.get(task.id)
        if ended.status == CANCELLED:
            assert isinstance(completed, MeshError)
            assert completed.reason == "LEASE_LOST"
            assert not isinstance(cancelled, BaseException)
        else:
            assert ended.status == COMPLETED
            assert isinstance(cancelled, MeshError)
            assert cancelled.kind is Kind.CONFLICT
            assert completed is None
        [attempt] = await mesh.attempts(task.id)
        assert attempt.outcome == (
            tasks_service_pb2.ATTEMPT_OUTCOME_CANCELLED
            if ended.status == CANCELLED
            else tasks_service_pb2.ATTEMPT_OUTCOME_COMPLETED
        )


async def test_cancel_and_lease_at_once_agree(mesh: Mesh) -> None:
    stub = mesh.tasks()
    worker = await mesh.worker()
    for _ in range(12):
        task = await mesh.create(stub=stub)
        await asyncio.gather(stub.CancelTask(CancelTaskRequest(task_id=task.id)), worker.lease(wait=0))
        assert (await mesh.get(task.id)).status == CANCELLED
    [[pending]] = await mesh.rows("SELECT pending FROM queue_tenants")
    assert pending == 0


async def test_many_cancels_of_one_task_write_one_event(mesh: Mesh) -> None:
    stub = mesh.tasks()
    task = await mesh.create(stub=stub)
    answers = await asyncio.gather(*(stub.CancelTask(CancelTaskRequest(task_id=task.id)) for _ in range(10)))
    assert {answer.task.version for answer in answers} == {2}
    [[events]] = await mesh.rows("SELECT count(*) FROM outbox WHERE subject LIKE '%%.cancelled'")
    assert events == 1


async def test_expiry_in_every_replica_ends_an_attempt_once(start_mesh: StartMesh) -> None:
    one, two = await start_mesh(), await start_mesh()
    worker = await one.worker()
    tasks = [await one.create() for _ in range(6)]
    leases = await worker.lease(6)
    await worker.heartbeat(*leases)
    await one.execute("UPDATE sessions SET expires_at = now() - interval '1 s'")
    await asyncio.gather(*(mesh.running.upkeep.expire() for mesh in (one, two, one, two)))
    for task in tasks:
        assert (await one.get(task.id)).retry_count == 1
    [[pending]] = await one.rows("SELECT pending FROM queue_tenants")
    assert pending == 6


async def end(worker: Worker, lease: Lease, place: int) -> None:
    """Ends an attempt in one of three ways, if a cancel was not faster."""
    ways: tuple[Any, ...] = (worker.complete, worker.release, lambda held: worker.fail(held, retryable=False))
    try:
        await ways[place](lease)
    except MeshError as error:
        assert error.reason == "LEASE_LOST"  # noqa: PT017


async def test_busy_replicas_never_deadlock_nor_lose_count(start_mesh: StartMesh) -> None:
    replicas = [await start_mesh(), await start_mesh()]
    tenants = ("a", "b", "c")
    stubs = {tenant: [mesh.tasks(tenant) for mesh in replicas] for tenant in tenants}
    stop = asyncio.Event()

    async def work(index: int) -> None:
        worker = await replicas[index % 2].worker(name=f"w/{index}")
        while True:
            leases = await worker.lease(3, wait=0.3)
            if not leases and stop.is_set():
                return
            for place, lease in enumerate(leases):
                await end(worker, lease, place)

    async def call(tenant: str, index: int) -> None:
        for number in range(10):
            stub = stubs[tenant][(index + number) % 2]
            task = await replicas[0].create(noop(priority=number % 3), stub=stub)
            if number % 4 == 0:
                try:
                    await stub.CancelTask(CancelTaskRequest(task_id=task.id))
                except MeshError as error:
                    assert error.kind is Kind.CONFLICT  # noqa: PT017 -- it had ended

    workers = [asyncio.create_task(work(n)) for n in range(4)]
    await asyncio.gather(*(call(tenant, index) for tenant in tenants for index in range(3)))
    stop.set()
    async with asyncio.timeout(60):
        await asyncio.gather(*workers)
    [[open_tasks]] = await replicas[0].rows("SELECT count(*) FROM tasks WHERE completed_at IS NULL")
    assert open_tasks == 0
    assert [row[0] for row in await replicas[0].rows("SELECT pending FROM queue_tenants")] == [0, 0, 0]
    [[unended]] = await replicas[0].rows("SELECT count(*) FROM attempts WHERE outcome IS NULL")
    assert unended == 0


@pytest.mark.parametrize("times", [3])
async def test_lost_database_connections_are_survived(mesh: Mesh, times: int) -> None:
    worker = await mesh.worker()
    for _ in range(times):
        await mesh.create()
        await mesh.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() "
            "AND pid <> pg_backend_pid()"
        )
        leases: list[Lease] = []
        async with asyncio.timeout(15):
            while not leases:
                try:
                    leases = await worker.lease(wait=1)
                except MeshError as error:
                    assert error.kind is Kind.UNAVAILABLE  # noqa: PT017 -- the worker asks again
                    worker.sequence -= 1
        await worker.complete(leases[0])
