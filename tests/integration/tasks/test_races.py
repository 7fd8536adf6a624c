"""Two things at once to one task: exactly one of them wins, and everyone is told the same."""

import asyncio
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

import pytest
from atelier.tasks.v1 import enums_pb2, tasks_service_pb2
from atelier.tasks.v1.worker_service_pb2 import Lease

from meshkit.errors import ErrorKind, MeshError
from services.tasks.postgres import queries
from services.tasks.scheduling.polls import Poll
from services.tasks.scheduling.scheduler import Scheduler
from tests.integration.tasks.conftest import NOOP, Mesh, StartMesh, Worker, completion, noop, until, waits_for_lock

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
            assert cancelled.kind is ErrorKind.CONFLICT
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
    await asyncio.gather(*(mesh.running.maintenance.expire() for mesh in (one, two, one, two)))
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
        assert error.reason == "LEASE_LOST"  # noqa: PT017 -- either outcome is right


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
                    assert error.kind is ErrorKind.CONFLICT  # noqa: PT017 -- it had ended

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
        async with asyncio.timeout(60):
            while not leases:
                try:
                    leases = await worker.lease(wait=1)
                except MeshError as error:
                    assert error.kind is ErrorKind.UNAVAILABLE  # noqa: PT017 -- the worker asks again
                    worker.sequence -= 1
        await worker.complete(leases[0])


HOLD_COUNTER = "UPDATE queue_tenants SET pending = pending WHERE tenant = %s"


async def test_a_session_that_ends_waits_for_counters_in_their_order(mesh: Mesh) -> None:
    await mesh.create(tenant="z")
    await mesh.create(tenant="a")
    worker = await mesh.worker()
    assert len(await worker.lease(2)) == 2
    # As a group of creates does, which takes them in order.
    async with mesh.running.database.transaction() as group:
        await group.execute(HOLD_COUNTER, ("a",))
        closing = asyncio.create_task(worker.close())
        await until(lambda: waits_for_lock(mesh))
        await group.execute(HOLD_COUNTER, ("z",))
    await closing


@pytest.fixture
def failed_rounds(monkeypatch: pytest.MonkeyPatch) -> list[BaseException]:
    failures: list[BaseException] = []
    failed = Scheduler._failed

    def note(queue: str, polls: Sequence[Poll], error: Exception) -> None:
        failures.append(error)
        failed(queue, polls, error)

    monkeypatch.setattr(Scheduler, "_failed", staticmethod(note))
    return failures


async def test_rounds_for_two_kinds_of_workers_take_counters_in_their_order(
    mesh: Mesh, failed_rounds: list[BaseException]
) -> None:
    workers = [await mesh.worker(types=types) for types in ((NOOP,), (NOOP, enums_pb2.TASK_TYPE_GENERATION))]
    await mesh.execute("INSERT INTO queues VALUES ('inference', 0)")
    polls = [asyncio.create_task(worker.lease(wait=20)) for worker in workers]
    await until(lambda: counts(mesh, "SELECT count(*) FROM sessions WHERE sequence = 1", 2))
    async with mesh.running.database.transaction() as group:
        async with mesh.running.database.transaction() as queue:
            await queue.execute("SELECT FROM queues FOR UPDATE")
            await mesh.create(tenant="z")
            await mesh.create(tenant="a")
            await until(lambda: waits_for_lock(mesh))
            await group.execute(HOLD_COUNTER, ("a",))
        await until(lambda: waits_for_lock(mesh))
        await group.execute(HOLD_COUNTER, ("z",))
    assert [len(leases) for leases in await asyncio.gather(*polls)] == [1, 1]
    assert not failed_rounds


async def test_a_wrong_counter_is_healed_in_the_order_of_counters(
    mesh: Mesh, failed_rounds: list[BaseException]
) -> None:
    await mesh.execute("INSERT INTO queue_tenants VALUES ('inference', 'z', -0.05, 3, 0)")
    await mesh.execute("INSERT INTO queue_lanes VALUES ('inference', 'z', 'NOOP/LOCAL', -0.05, 3)")
    worker = await mesh.worker()
    await mesh.create(tenant="a")
    async with mesh.running.database.transaction() as group:
        await group.execute(HOLD_COUNTER, ("a",))
        poll = asyncio.create_task(worker.lease(2, wait=20))
        await until(lambda: waits_for_lock(mesh))
        await group.execute(HOLD_COUNTER, ("z",))
    assert len(await poll) == 1
    assert not failed_rounds


async def test_progress_takes_sessions_before_tasks(mesh: Mesh) -> None:
    await mesh.create()
    worker = await mesh.worker()
    [lease] = await worker.lease()
    await worker.report(lease, 10.0)
    # As who ends a session does.
    async with mesh.running.database.transaction() as ending:
        await ending.execute("SELECT FROM sessions FOR UPDATE")
        flush = asyncio.create_task(mesh.running.maintenance._sessions._progress.flush())
        await until(lambda: waits_for_lock(mesh))
        await ending.execute("SELECT FROM tasks FOR UPDATE")
    await flush
    assert await counts(mesh, "SELECT acknowledged FROM sessions", 1)


async def test_completions_wait_for_rows_in_the_order_of_their_ids_and_are_taken_then(mesh: Mesh) -> None:
    for _ in range(3):
        await mesh.create()
    worker = await mesh.worker()
    leases = sorted(await worker.lease(3), key=lambda lease: lease.job_id)
    async with mesh.running.database.transaction() as other:
        await other.execute("UPDATE tasks SET progress = 50 WHERE id = %s", (leases[0].job_id,))
        ending = asyncio.create_task(worker.complete_many(*(completion(lease) for lease in reversed(leases))))
        await until(lambda: waits_for_lock(mesh))
        await other.execute("SELECT FROM tasks WHERE id = %s FOR UPDATE NOWAIT", (leases[2].job_id,))
    assert await ending == ["TAKEN"] * 3
    assert await counts(mesh, "SELECT count(*) FROM tasks WHERE status = 'COMPLETED'", 3)


@pytest.mark.parametrize("ending", ["cancel", "complete", "fail"])
async def test_an_end_that_waited_while_its_task_began_is_not_before_the_beginning(mesh: Mesh, ending: str) -> None:
    task = await mesh.create()
    worker = await mesh.worker()
    [lease] = await worker.lease()
    async with mesh.running.database.transaction() as other:
        await other.execute("SELECT FROM tasks FOR UPDATE")
        ends: dict[str, Any] = {
            "cancel": lambda: mesh.tasks().CancelTask(CancelTaskRequest(task_id=task.id)),
            "complete": lambda: worker.complete(lease),
            "fail": lambda: worker.fail(lease, retryable=False),
        }
        ended = asyncio.ensure_future(ends[ending]())
        await until(lambda: waits_for_lock(mesh))
        # As the lease's statement does, which takes the lock first.
        await other.execute("UPDATE tasks SET started_at = statement_timestamp(), leased_at = statement_timestamp()")
    await ended
    found = await mesh.get(task.id)
    assert found.completed_at.ToNanoseconds() >= found.started_at.ToNanoseconds() > 0
    [attempt] = await mesh.attempts(task.id)
    assert attempt.ended_at.ToNanoseconds() >= attempt.started_at.ToNanoseconds() > 0


async def test_an_identifier_is_not_given_again_while_its_task_is_deleted(mesh: Mesh) -> None:
    service = mesh.tasks("acme", ("mesh",), subject="workflows")
    ident = uuid4()
    await mesh.create(stub=service, task_id=str(ident))
    await service.CancelTask(CancelTaskRequest(task_id=str(ident)))
    async with mesh.running.database.transaction() as conn:
        assert await queries.remove(conn, ident)
        again = asyncio.create_task(mesh.create(stub=service, task_id=str(ident)))
        await until(lambda: waits_for_lock(mesh))
    with pytest.raises(MeshError) as refused:
        await again
    assert refused.value.kind is ErrorKind.CONFLICT
    assert await counts(mesh, "SELECT count(*) FROM tasks", 0)


async def counts(mesh: Mesh, query: str, expected: int) -> bool:
    [[found]] = await mesh.rows(query)
    return bool(found == expected)
