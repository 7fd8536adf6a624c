"""What the service tells of what it stands on."""

import asyncio
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit, urlunsplit

import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from meshkit.errors import MeshError
from meshkit.health import REPLICA
from tests.conftest import NatsControl
from tests.integration.tasks.conftest import Mesh, StartMesh, age_session, until
from tests.wires import wired

States = Callable[[], Awaitable[dict[str, int]]]
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


def health(mesh: Mesh) -> States:
    stub = mesh.channel("").stub(health_pb2_grpc.HealthStub)

    async def states() -> dict[str, int]:
        # As long as the gateway waits.
        answer = await stub.List(health_pb2.HealthListRequest(), timeout=2.0)
        return {name: one.status for name, one in answer.statuses.items()}

    return states


async def becomes(states: States, **wanted: int) -> dict[str, int]:
    found: dict[str, int] = {}

    async def so() -> bool:
        found.clear()
        try:
            found.update(await states())
        except MeshError:  # a busy machine may answer later than the gateway waits, once
            return False
        return all(found.get(name.replace("process", "")) == status for name, status in wanted.items())

    await until(so, 60)
    return found


async def test_all_is_well(mesh: Mesh) -> None:
    found = await becomes(health(mesh), process=SERVING, postgresql=SERVING, nats=SERVING, object_store=SERVING)
    assert set(found.values()) == {SERVING}


async def test_a_database_that_stands_still_is_named_in_bounded_time(mesh: Mesh) -> None:
    states = health(mesh)
    await becomes(states, process=SERVING)
    [[backend]] = await mesh.rows("SELECT pg_backend_pid()")
    postmaster = psutil.Process(backend).parent()
    assert postmaster is not None
    everyone = [postmaster, *postmaster.children(recursive=True)]
    for process in everyone:
        process.suspend()
    try:
        found = await becomes(states, process=NOT_SERVING, postgresql=NOT_SERVING)
        assert found["object_store"] == SERVING
        assert found["atelier.tasks.v1.TasksService"] == NOT_SERVING
    finally:
        for process in everyone:
            process.resume()
    await becomes(states, process=SERVING, postgresql=SERVING)


async def test_without_nats_the_service_serves_and_says_so(start_mesh: StartMesh, nats_server: NatsControl) -> None:
    states = health(await start_mesh(nats_url=nats_server.url))
    await becomes(states, process=SERVING, nats=SERVING)
    nats_server.kill()
    await becomes(states, process=SERVING, nats=NOT_SERVING)
    nats_server.start()
    await becomes(states, nats=SERVING)


async def test_a_store_that_is_away_is_named(start_mesh: StartMesh) -> None:
    mesh = await start_mesh(s3_endpoint="127.0.0.1:9")
    await becomes(health(mesh), process=NOT_SERVING, object_store=NOT_SERVING, postgresql=SERVING)


async def test_a_worker_that_is_lost_is_named_until_it_is_back(mesh: Mesh) -> None:
    states, maintenance = health(mesh), mesh.running.maintenance
    worker, closed = await mesh.worker(name="stuck.host/0"), await mesh.worker(name="gone/0")
    await closed.close()
    await maintenance.measure()
    assert not maintenance.lost
    await age_session(mesh, worker)
    await maintenance.expire()
    await maintenance.measure()
    found = await becomes(states, **{"process": SERVING, "workers/stuck.host/0": NOT_SERVING})
    assert "workers/gone/0" not in found
    await mesh.worker(name="stuck.host/0")
    await maintenance.measure()
    assert "workers/stuck.host/0" not in await becomes(states, process=SERVING)


async def test_calls_outlast_a_database_that_is_slow_and_end_where_it_is_lost(
    start_mesh: StartMesh, mesh_dsn: str
) -> None:
    dsn = urlsplit(mesh_dsn)
    with wired(str(dsn.hostname), int(dsn.port or 0)) as wire:
        netloc = f"{dsn.username}:{dsn.password}@{wire.address}"
        mesh = await start_mesh(database_url=urlunsplit(dsn._replace(netloc=netloc)))
        stub = mesh.tasks()
        await mesh.create(stub=stub)
        # As a channel does that spreads its calls.
        asks = mesh.channel("").stub(health_pb2_grpc.HealthStub)
        watched = asks.Watch(health_pb2.HealthCheckRequest(service=REPLICA))

        async def told(status: int) -> None:
            async for answer in watched:
                if answer.status == status:
                    return

        await told(SERVING)
        wire.cut()
        without_key = asyncio.create_task(mesh.create(stub=stub))
        await told(NOT_SERVING)
        assert not without_key.done()
        wire.mend()
        created = await without_key
        await told(SERVING)
        assert (await mesh.get(created.id)).id == created.id
        assert await mesh.rows("SELECT count(*) FROM tasks") == [(2,)]
        wire.cut()
        lost = asyncio.create_task(mesh.create(stub=stub))
        with pytest.raises(MeshError) as ended:
            await lost  # far within its deadline of 30 s
        assert ended.value.reason == "REPLICA_CUT_OFF"
        wire.mend()
        await told(SERVING)
