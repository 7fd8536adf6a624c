import asyncio
from datetime import timedelta

import grpc
import pytest
from atelier.tasks.v1 import enums_pb2, tasks_service_pb2, worker_service_pb2
from prometheus_client import REGISTRY

from meshkit.errors import ErrorKind, MeshError
from services.tasks.scheduling import scheduler
from tests.integration.tasks.conftest import (
    Mesh,
    StartMesh,
    Worker,
    age_session,
    completion,
    duration,
    noop,
    outcomes,
    ref,
    until,
)

PENDING = enums_pb2.TASK_STATUS_PENDING
EXECUTING = enums_pb2.TASK_STATUS_EXECUTING
FAILED = enums_pb2.TASK_STATUS_FAILED


async def age_missing(mesh: Mesh, seconds: float) -> None:
    await mesh.execute("UPDATE tasks SET missing_since = missing_since - %s * interval '1 s'", seconds)


async def test_repeated_poll_returns_the_same_leases(mesh: Mesh) -> None:
    for _ in range(3):
        await mesh.create()
    worker = await mesh.worker()
    first = await worker.lease(2)
    again = await worker.lease(2, repeat=True)
    assert [ref(lease) for lease in first] == [ref(lease) for lease in again]
    following = await worker.lease(2)
    assert len(following) == 1
    [[acknowledged]] = await mesh.rows("SELECT acknowledged FROM sessions")
    assert acknowledged == 1


async def test_poll_out_of_step_is_refused(mesh: Mesh) -> None:
    worker = await mesh.worker()
    worker.sequence = 4
    with pytest.raises(MeshError) as error:
        await worker.lease(wait=0)
    assert error.value.kind is ErrorKind.NOT_FOUND


@pytest.fixture
def only_woken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds that begin by themselves, every second, begin never: a poll gets what it is woken for, or nothing."""
    monkeypatch.setattr(scheduler, "POLL_SECONDS", 3600.0)


@pytest.mark.usefixtures("only_woken")
async def test_poll_waits_for_a_task_and_is_woken(mesh: Mesh) -> None:
    worker = await mesh.worker()
    polling = asyncio.create_task(worker.lease())
    await until(lambda: _registered(mesh))
    task = await mesh.create()
    [lease] = await polling
    assert lease.job_id == task.id


@pytest.mark.parametrize("closed", [True, False], ids=["swept", "not yet swept"])
async def test_parked_poll_of_an_ended_session_gets_no_lease(mesh: Mesh, closed: bool) -> None:
    worker = await mesh.worker()
    polling = asyncio.create_task(worker.lease(wait=10))
    await until(lambda: _registered(mesh))
    await age_session(mesh, worker)
    if closed:
        await mesh.running.maintenance.expire()
    task = await mesh.create()
    with pytest.raises(MeshError) as gone:
        await polling
    assert gone.value.kind is ErrorKind.NOT_FOUND
    [lease] = await (await mesh.worker(name="w/1")).lease()
    assert (lease.job_id, lease.attempt) == (task.id, 1)


async def test_poll_that_was_overtaken_elsewhere_gets_no_lease(mesh: Mesh) -> None:
    worker = await mesh.worker()
    polling = asyncio.create_task(worker.lease(wait=10))
    await until(lambda: _registered(mesh))
    await mesh.execute("UPDATE sessions SET sequence = 2, acknowledged = 1 WHERE id = %s", worker.session)
    task = await mesh.create()
    with pytest.raises(MeshError):
        await polling
    assert (await mesh.get(task.id)).status == PENDING


async def test_draining_worker_that_polls_is_given_nothing_and_keeps_its_session(mesh: Mesh) -> None:
    held = await mesh.create()
    worker = await mesh.worker()
    [lease] = await worker.lease()
    polling = asyncio.create_task(worker.lease(wait=1.5))
    await until(lambda: _registered(mesh, sequence=2))
    await worker.heartbeat(lease, draining=True)
    task = await mesh.create()
    assert await polling == [], "a poll that was parked before"
    assert await worker.lease(wait=0.2) == [], "a poll that comes after"
    assert (await mesh.get(task.id)).status == PENDING
    await worker.complete(lease)
    assert (await mesh.get(held.id)).status == enums_pb2.TASK_STATUS_COMPLETED
    await worker.heartbeat(draining=False)
    [late] = await worker.lease()
    assert late.job_id == task.id


async def test_draining_worker_takes_nothing_from_another_in_the_same_round(mesh: Mesh) -> None:
    draining, other = await mesh.worker(), await mesh.worker(name="w/1")
    await draining.heartbeat(draining=True)
    parked = asyncio.create_task(draining.lease(wait=1.5))
    polling = asyncio.create_task(other.lease(count=2, wait=10))
    await until(lambda: _registered(mesh, 2))
    task = await mesh.create()
    [lease] = await polling
    assert lease.job_id == task.id
    assert await parked == []


async def test_slots_are_those_of_workers_that_take_work(mesh: Mesh) -> None:
    first, second = await mesh.worker(queues=("inference", "fal")), await mesh.worker(name="w/1")

    async def slots(queue: str) -> float | None:
        await mesh.running.maintenance.measure()
        return REGISTRY.get_sample_value("atelier_tasks_queue_slots", {"queue": queue})

    assert (await slots("inference"), await slots("fal")) == (8, 4)
    await second.heartbeat(draining=True)
    assert await slots("inference") == 4
    await first.close()
    assert (await slots("inference"), await slots("fal")) == (0, 0)


async def test_poll_without_work_comes_back_empty(mesh: Mesh) -> None:
    worker = await mesh.worker()
    assert await worker.lease(wait=0.1) == []
    assert await worker.lease(wait=0) == []


async def test_lease_whose_response_was_lost_goes_back_for_free(mesh: Mesh) -> None:
    task = await mesh.create()
    worker = await mesh.worker()
    await worker.lease()
    await worker.heartbeat()
    assert (await mesh.get(task.id)).status == EXECUTING, "one heartbeat alone gives nothing up"
    await age_missing(mesh, 6)
    await worker.heartbeat()
    waiting = await mesh.get(task.id)
    assert (waiting.status, waiting.retry_count, waiting.is_resumed) == (PENDING, 0, False)
    assert await outcomes(mesh, task.id) == ["RELEASED"]
    [lease] = await worker.lease()
    assert lease.attempt == 2


async def test_heartbeat_that_names_a_lease_acknowledges_it(mesh: Mesh) -> None:
    await mesh.create()
    worker = await mesh.worker()
    [lease] = await worker.lease()
    await worker.heartbeat(lease)
    [[acknowledged]] = await mesh.rows("SELECT acknowledged FROM sessions")
    assert acknowledged == 1


async def test_lease_that_a_living_worker_forgot_costs_its_attempt(mesh: Mesh) -> None:
    task = await mesh.create()
    worker = await mesh.worker()
    [lease] = await worker.lease()
    await worker.heartbeat(lease)
    await worker.heartbeat()
    await age_missing(mesh, 6)
    await worker.heartbeat()
    assert (await mesh.get(task.id)).status == EXECUTING
    await age_missing(mesh, mesh.settings.lease_ttl_seconds + 5)
    await worker.heartbeat()
    again = await mesh.get(task.id)
    assert (again.status, again.retry_count) == (PENDING, 1)


async def test_expired_session_requeues_until_the_task_has_failed(mesh: Mesh) -> None:
    task = await mesh.create()
    for attempt in range(1, 5):
        worker = await mesh.worker(name=f"w/{attempt}")
        [lease] = await worker.lease()
        await worker.heartbeat(lease)
        await age_session(mesh, worker)
        await mesh.running.maintenance.expire()
        with pytest.raises(MeshError) as lost:
            await worker.complete(lease)
        assert lost.value.reason == "LEASE_LOST"
        with pytest.raises(MeshError) as gone:
            await worker.heartbeat(lease)
        assert gone.value.kind is ErrorKind.NOT_FOUND
    failed = await mesh.get(task.id)
    assert failed.status == FAILED
    assert failed.error_category == enums_pb2.ERROR_CATEGORY_RESOURCE
    assert (failed.retry_count, failed.is_resumed, failed.resume_attempt_count) == (3, True, 3)
    assert failed.HasField("last_resume_attempt")
    assert len(failed.errors) == 4
    assert await outcomes(mesh, task.id) == ["EXPIRED"] * 4


async def test_unacknowledged_lease_of_a_lost_worker_costs_nothing(mesh: Mesh) -> None:
    task = await mesh.create()
    worker = await mesh.worker()
    await worker.lease()
    await age_session(mesh, worker)
    await mesh.running.maintenance.expire()
    waiting = await mesh.get(task.id)
    assert (waiting.status, waiting.retry_count) == (PENDING, 0)
    assert await outcomes(mesh, task.id) == ["RELEASED"]


async def test_task_that_kills_every_worker_unacknowledged_does_not_go_round_for_ever(mesh: Mesh) -> None:
    task = await mesh.create()
    for n in range(20):
        worker = await mesh.worker(name=f"w/{n}")
        if not await worker.lease(wait=0):
            break
        await age_session(mesh, worker)
        await mesh.running.maintenance.expire()
    assert (await mesh.get(task.id)).status == FAILED


async def test_attempt_beyond_its_time_limit_is_ended(mesh: Mesh) -> None:
    task = await mesh.create()
    worker = await mesh.worker()
    [lease] = await worker.lease()
    limit = lease.timeout.ToTimedelta()
    # It may have waited that long behind another one of its worker, and then have run that long.
    await mesh.execute("UPDATE tasks SET leased_at = now() - %s", 2 * limit)
    await mesh.running.maintenance.expire()
    assert (await mesh.get(task.id)).status == EXECUTING
    await mesh.execute("UPDATE tasks SET leased_at = now() - %s", 2 * limit + timedelta(seconds=31))
    await mesh.running.maintenance.expire()
    assert (await mesh.get(task.id)).retry_count == 1
    [attempt] = await mesh.attempts(task.id)
    assert attempt.error_category == enums_pb2.ERROR_CATEGORY_TIMEOUT
    assert [item.attempt for item in await worker.heartbeat(lease)] == [1]


async def test_released_lease_goes_back_for_free(mesh: Mesh) -> None:
    task = await mesh.create()
    worker = await mesh.worker()
    [lease] = await worker.lease()
    await worker.release(lease)
    waiting = await mesh.get(task.id)
    assert (waiting.status, waiting.retry_count) == (PENDING, 0)


async def test_closed_session_gives_back_what_it_held(mesh: Mesh) -> None:
    task = await mesh.create()
    worker = await mesh.worker()
    await worker.lease()
    await worker.close()
    assert (await mesh.get(task.id)).status == PENDING
    with pytest.raises(MeshError) as error:
        await worker.lease(wait=0)
    assert error.value.kind is ErrorKind.NOT_FOUND


async def test_session_of_another_subject_is_not_found(mesh: Mesh) -> None:
    await mesh.create()
    worker = await mesh.worker(subject="one")
    [lease] = await worker.lease()
    thief = Worker(mesh.workers("two"), worker.session, worker.sequence)
    for call in (
        thief.lease(wait=0),
        thief.complete(lease),
        thief.complete_many(completion(lease)),
        thief.fail(lease),
        thief.heartbeat(lease),
        thief.report(lease, 1),
        thief.release(lease),
        thief.close(),
    ):
        with pytest.raises(MeshError) as error:
            await call
        assert error.value.kind is ErrorKind.NOT_FOUND
    await worker.complete(lease)


async def test_worker_token_is_bound_to_its_queues(mesh: Mesh) -> None:
    stub = mesh.workers(queues=("inference",))
    request = worker_service_pb2.OpenSessionRequest(
        name="w", queues=["fal"], slots=1, task_types=[enums_pb2.TASK_TYPE_NOOP]
    )
    with pytest.raises(MeshError) as error:
        await stub.OpenSession(request)
    assert error.value.kind is ErrorKind.FORBIDDEN
    request.queues[:] = ["inference"]
    await stub.OpenSession(request)


async def test_worker_gets_only_what_it_serves(mesh: Mesh) -> None:
    await mesh.create()
    other = await mesh.worker(types=(enums_pb2.TASK_TYPE_GENERATION,))
    assert await other.lease(wait=0.1) == []
    elsewhere = await mesh.worker(queues=("fal",))
    assert await elsewhere.lease(wait=0.1) == []
    both = await mesh.worker(queues=("fal", "inference"))
    assert len(await both.lease()) == 1


async def test_worker_of_several_queues_is_served_from_each(mesh: Mesh) -> None:
    worker = await mesh.worker(queues=("fal", "inference"))
    for queue in ("fal", "inference", "fal"):
        await mesh.create(noop(queue_name=queue))
        [lease] = await worker.lease()
        assert lease.queue_name == queue


async def test_leases_of_a_poll_that_went_away_are_taken_back(mesh: Mesh) -> None:
    worker = await mesh.worker()
    call = asyncio.create_task(
        worker.stub.Lease(
            worker_service_pb2.LeaseRequest(session_id=worker.session, sequence=1, max_leases=1, wait=duration(10))
        )
    )
    await until(lambda: _registered(mesh))
    call.cancel()
    with pytest.raises((asyncio.CancelledError, MeshError, grpc.aio.AioRpcError)):
        await call
    task = await mesh.create()
    other = await mesh.worker(name="other")
    [lease] = await other.lease(wait=5)
    assert lease.job_id == task.id


async def test_priority_orders_within_a_tenant(mesh: Mesh) -> None:
    low, high, middle = [await mesh.create(noop(priority=priority)) for priority in (-5, 3, 0)]
    worker = await mesh.worker()
    order = [(await worker.lease())[0].job_id for _ in range(3)]
    assert order == [high.id, middle.id, low.id]


async def test_two_replicas_share_one_queue(start_mesh: StartMesh) -> None:
    one = await start_mesh()
    two = await start_mesh()
    workers = [await one.worker(name="a"), await two.worker(name="b")]
    created = {(await (one if n % 2 else two).create()).id for n in range(40)}

    async def drain(worker: Worker) -> list[str]:
        taken: list[str] = []
        while leases := await worker.lease(3, wait=0.3):
            for lease in leases:
                await worker.complete(lease)
                taken.append(lease.job_id)
        return taken

    taken = await asyncio.gather(*(drain(worker) for worker in workers))
    assert sorted([*taken[0], *taken[1]]) == sorted(created)


@pytest.mark.usefixtures("only_woken")
async def test_other_replica_is_woken_by_news(start_mesh: StartMesh) -> None:
    one = await start_mesh()
    two = await start_mesh()
    worker = await two.worker()
    polling = asyncio.create_task(worker.lease())
    await until(lambda: _registered(two))
    while not polling.done():  # news is not kept for who subscribes later: a busy machine may take its time
        await one.create()
        await asyncio.wait({polling}, timeout=1)
    assert len(await polling) == 1


async def test_everything_works_without_nats(start_mesh: StartMesh) -> None:
    mesh = await start_mesh(nats_url="")
    worker = await mesh.worker()
    polling = asyncio.create_task(worker.lease(wait=10))
    task = await mesh.create()
    [lease] = await polling
    await worker.complete(lease)
    assert (await mesh.get(task.id)).status == enums_pb2.TASK_STATUS_COMPLETED
    [[unpublished]] = await mesh.rows("SELECT count(*) FROM outbox")
    assert unpublished == 3


async def test_warm_adapter_is_preferred_within_one_priority(mesh: Mesh) -> None:
    cold = await mesh.create()
    warm = await mesh.create()
    await mesh.execute("UPDATE tasks SET warm_keys = '{a.safetensors}' WHERE id = %s", warm.id)
    worker = await mesh.worker()
    [lease] = await worker.lease(loras=("loras/a.safetensors",))
    assert lease.job_id == warm.id
    [lease] = await worker.lease(loras=("loras/a.safetensors",))
    assert lease.job_id == cold.id


async def _registered(mesh: Mesh, sessions: int = 1, sequence: int = 1) -> bool:
    rows = await mesh.rows("SELECT FROM sessions WHERE sequence >= %s", sequence)
    return len(rows) >= sessions


async def test_what_a_poll_is_given_stays_below_what_an_answer_carries(start_mesh: StartMesh) -> None:
    mesh = await start_mesh(max_message_bytes=1024 * 1024)
    tasks = [await mesh.create(noop(noop={"payload": "x" * 60_000})) for _ in range(8)]
    other = await mesh.create(tenant="other")
    worker = await mesh.worker()
    given: list[worker_service_pb2.Lease] = []
    while len(given) < 9:
        leases = await worker.lease(16)
        assert leases, "nothing that an answer carries waits for ever"
        assert len(leases) < 8
        assert sum(lease.ByteSize() for lease in leases) < 512 * 1024
        given += leases
    assert {lease.job_id for lease in given} == {task.id for task in tasks} | {other.id}


async def test_a_task_that_no_answer_carries_fails_alone_with_its_reason(start_mesh: StartMesh) -> None:
    mesh = await start_mesh()
    large = await mesh.create(noop(noop={"payload": "x" * 60_000}))
    small = [await mesh.create(tenant=name) for name in ("acme", "other")]
    # Its limit was lowered since, or an earlier release took more.
    again = await start_mesh(max_message_bytes=64 * 1024)
    worker = await again.worker()
    given: list[str] = []
    async with asyncio.timeout(60):
        while len(given) < 2:
            leases = await worker.lease(4)
            given += [lease.job_id for lease in leases]
            for lease in leases:
                await worker.complete(lease)
    assert set(given) == {task.id for task in small}
    failed = await mesh.get(large.id)
    assert failed.status == FAILED
    assert failed.error_category == enums_pb2.ERROR_CATEGORY_VALIDATION
    assert "the most that a worker is sent" in failed.errors[-1]
    assert [attempt.outcome for attempt in await mesh.attempts(large.id)] == [tasks_service_pb2.ATTEMPT_OUTCOME_FAILED]
