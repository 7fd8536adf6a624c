"""Demand in seconds and cordons, on the real database."""

import asyncio
from typing import Any

import pytest
from atelier.tasks.v1 import monitoring_service_pb2, scaling_service_pb2
from atelier.tasks.v1.monitoring_service_pb2_grpc import TaskMonitoringServiceStub
from atelier.tasks.v1.scaling_service_pb2_grpc import ScalingServiceStub

from meshkit.errors import ErrorKind, MeshError
from tests.integration.tasks.conftest import Mesh, StartMesh, Worker, noop, until


def scaling(mesh: Mesh, *scopes: str) -> Any:
    return mesh.channel(mesh.token("acme", scopes or ("mesh",))).stub(ScalingServiceStub)


async def demand(mesh: Mesh) -> Any:
    mesh.running.scaling._read_at = float("-inf")
    response = await scaling(mesh, "support").GetDemand(scaling_service_pb2.GetDemandRequest())
    return next(one for one in response.queues if one.name == "inference")


async def cordon(mesh: Mesh, worker: str = "w") -> Any:
    return await scaling(mesh, "operator").CordonWorker(scaling_service_pb2.CordonWorkerRequest(worker=worker))


async def uncordon(mesh: Mesh, worker: str = "w") -> Any:
    return await scaling(mesh, "operator").UncordonWorker(scaling_service_pb2.UncordonWorkerRequest(worker=worker))


async def mark(mesh: Mesh, *workers: str) -> None:
    request = scaling_service_pb2.NoteMarksRequest(announced=workers)
    assert list((await scaling(mesh).NoteMarks(request)).accepted) == list(workers)
    assert (await demand(mesh)).slots_reported == 8  # an announced mark takes nobody out
    await scaling(mesh).NoteMarks(scaling_service_pb2.NoteMarksRequest(marked=workers))


async def states(mesh: Mesh) -> dict[str, str | None]:
    return dict(await mesh.rows("SELECT name, cordoned FROM sessions WHERE closed_at IS NULL"))


async def leased(worker: Worker, wait: float = 0.05) -> int:
    return len(await worker.lease(4, wait=wait))


async def test_demand_counts_what_waits_and_runs_in_measured_seconds(mesh: Mesh) -> None:
    worker = await mesh.worker()
    for _ in range(6):
        await mesh.create()
    [first, second] = await worker.lease(2)
    assert (await demand(mesh)).running == 2
    await worker.complete(first, seconds=10.0)
    await mesh.running.times.flush()
    # The worker has four slots and one device: an attempt takes a slot for four times its share of the device.
    found = await demand(mesh)
    assert (found.waiting, found.running) == (4, 1)
    assert found.waiting_seconds == pytest.approx(160)
    assert 30 < found.running_seconds <= 40
    assert found.slots_wanted == pytest.approx(1 + 160 / 60)
    assert (found.slots, found.workers, found.cordoned) == (4, 1, 0)
    await worker.complete(second, seconds=10.0)


async def test_demand_knows_the_model_that_a_task_asks_for(mesh: Mesh) -> None:
    worker = await mesh.worker()
    for model, seconds in (("small", 1.0), ("large", 100.0)):
        await mesh.create(noop(config={"model": model}))
        [lease] = await worker.lease()
        await worker.complete(lease, seconds=seconds)
    await mesh.running.times.flush()
    await mesh.create(noop(config={"model": "large"}))
    assert (await demand(mesh)).waiting_seconds == pytest.approx(400)
    await mesh.create(noop(config={"model": "small"}))
    assert (await demand(mesh)).waiting_seconds == pytest.approx(404)


async def test_many_readers_share_one_look_at_the_database(mesh: Mesh) -> None:
    stub, request = scaling(mesh, "support"), scaling_service_pb2.GetDemandRequest()
    await stub.GetDemand(request)
    await mesh.create()
    answers = await asyncio.gather(*(stub.GetDemand(request) for _ in range(20)))
    # It holds for a second, and a busy machine takes longer for all of them.
    assert len({answer.timestamp.ToNanoseconds() for answer in answers}) <= 5


async def test_a_cordoned_worker_is_given_nothing_finishes_what_it_has_and_shows_as_full(mesh: Mesh) -> None:
    worker = await mesh.worker()
    await mesh.create()
    [lease] = await worker.lease()
    [pool] = (await cordon(mesh)).pools
    assert (pool.name, pool.held, pool.cordoned_by) == ("w/0", 1, scaling_service_pb2.CORDONED_BY_OPERATOR)
    await mesh.create()
    assert await leased(worker) == 0
    assert await worker.heartbeat(lease) == []
    await worker.complete(lease)
    stub = mesh.channel(mesh.token("acme")).stub(TaskMonitoringServiceStub)
    [shown] = (await stub.GetWorkerStats(monitoring_service_pb2.GetWorkerStatsRequest())).workers
    assert (shown.has_capacity, shown.cordoned) == (False, True)
    await uncordon(mesh)
    assert await leased(worker, 20) == 1


async def test_a_cordon_holds_for_a_poll_that_waits_already_and_an_uncordon_too(mesh: Mesh) -> None:
    worker = await mesh.worker()
    poll = asyncio.create_task(worker.lease(wait=10.0))
    await until(lambda: _polled(mesh))
    await cordon(mesh)
    task = await mesh.create()
    other = await mesh.worker(name="v/0")
    [lease] = await other.lease()
    assert lease.job_id == task.id
    assert not poll.done()
    await mesh.create()
    await uncordon(mesh)
    assert len(await poll) == 1


async def _polled(mesh: Mesh) -> bool:
    return await mesh.rows("SELECT max(sequence) FROM sessions") == [(1,)]


async def test_a_cordon_is_of_the_worker_and_outlives_its_session(mesh: Mesh) -> None:
    await mesh.worker(name="w/0")
    await mesh.worker(name="w/1")
    await mesh.worker(name="ww/0")
    await cordon(mesh, "w")
    again = await mesh.worker(name="w/1")
    await mesh.create()
    assert await leased(again) == 0
    assert {name for name, by in (await states(mesh)).items() if by} == {"w/0", "w/1"}
    await uncordon(mesh, "w/1")
    assert {name for name, by in (await states(mesh)).items() if by} == {"w/0"}


async def test_who_is_not_alive_cannot_be_cordoned_and_callers_cannot_cordon(mesh: Mesh) -> None:
    with pytest.raises(MeshError, match="Worker nobody not found"):
        await cordon(mesh, "nobody")
    await mesh.worker()
    with pytest.raises(MeshError) as forbidden:
        await scaling(mesh, "read", "write", "admin").CordonWorker(scaling_service_pb2.CordonWorkerRequest(worker="w"))
    assert forbidden.value.kind is ErrorKind.FORBIDDEN


async def test_surplus_is_cordoned_marked_and_only_then_less_is_reported(start_mesh: StartMesh) -> None:
    mesh = await start_mesh(scale_in_seconds=0.01, scale_settle_seconds=0.2)
    busy = await mesh.worker(name="busy/0")
    await mesh.create()
    [lease] = await busy.lease()
    idle = await mesh.worker(name="idle/0")
    assert (await demand(mesh)).slots_reported == 8

    async def settled() -> bool:
        await mesh.running.scaling.scale_in()
        return await states(mesh) == {"busy/0": None, "idle/0": "SCHEDULER"}

    assert not (await scaling(mesh).NoteMarks(scaling_service_pb2.NoteMarksRequest(announced=["idle"]))).accepted
    await until(settled)
    assert (await demand(mesh)).slots_reported == 8
    await mark(mesh, "idle")
    assert (await demand(mesh)).slots_reported == 4
    for _ in range(8):
        await mesh.create()
    # The work is back before the worker was removed: first it is kept, and it gets leases a little later.
    await mesh.execute("UPDATE work_times SET seconds = 600")
    await mesh.execute(
        "INSERT INTO work_times VALUES ('NOOP/LOCAL', '', 600, 1, now()) "
        "ON CONFLICT (lane, model) DO UPDATE SET seconds = 600"
    )
    await mesh.running.scaling.scale_in()
    assert (await states(mesh))["idle/0"] is None
    # It bears the mark yet: as long as it does, none may go.
    assert (await demand(mesh)).slots_reported >= 8
    assert len(await idle.lease()) == 1
    await busy.complete(lease)


async def test_a_worker_that_is_given_work_meanwhile_is_not_cordoned(start_mesh: StartMesh) -> None:
    mesh = await start_mesh(scale_in_seconds=0.01, scale_settle_seconds=0.0)
    busy = await mesh.worker(name="busy/0")
    await mesh.create()
    await busy.lease()
    worker = await mesh.worker()
    await mesh.running.scaling.scale_in()
    await asyncio.sleep(0.02)
    async with mesh.running.database.transaction() as conn:
        # A round that leases to it is under way.
        await conn.execute("SELECT FROM sessions WHERE id = %s FOR SHARE", (worker.session,))
        deciding = asyncio.create_task(mesh.running.scaling.scale_in())
        await until(lambda: _waits(mesh))
        await conn.execute("UPDATE tasks SET lease_session = %s, lease_sequence = 1", (worker.session,))
    await deciding
    assert (await states(mesh))["w/0"] is None


async def _waits(mesh: Mesh) -> bool:
    query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    return bool((await mesh.rows(query))[0][0])
