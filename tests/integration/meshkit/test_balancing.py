"""A channel over several replicas: calls go on whatever happens to one of them."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from atelier.tasks.v1 import tasks_service_pb2 as tasks
from atelier.tasks.v1.tasks_service_pb2_grpc import TasksServiceStub, add_TasksServiceServicer_to_server
from grpc_health.v1 import health_pb2, health_pb2_grpc

from meshkit import channel as channels
from meshkit import server as servers
from meshkit.auth import TokenIssuer, TokenVerifier
from meshkit.channel import MeshChannel
from meshkit.config import MeshSettings
from meshkit.health import PROCESS, REPLICA, HealthPart, PartStates
from meshkit.server import MeshServer
from tests.integration.meshkit.serving import SECRET, Servicer
from tests.wires import Wire

ID = "00000000-0000-4000-8000-000000000000"
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


class Replica:
    """One of several servers of tasks, with a database that may go away."""

    def __init__(self, **more: Any) -> None:
        self.servicer = Servicer()  # type: ignore[abstract] # the rest stays unserved
        self.connected = True
        settings = MeshSettings(auth_secret=SECRET, **more)
        self.server = MeshServer(
            settings,
            servicers=[(add_TasksServiceServicer_to_server, self.servicer)],
            verifier=TokenVerifier.from_settings(settings),
            parts=PartStates(
                [HealthPart("postgresql", self._ping, every_call=True), HealthPart("object_store", self._away)]
            ),
        )

    @property
    def calls(self) -> int:
        return len(self.servicer.calls)

    async def _ping(self) -> None:
        if not self.connected:
            raise ConnectionError

    async def _away(self) -> None:
        raise ConnectionError


@pytest.fixture
async def replicas() -> AsyncIterator[tuple[Replica, Replica]]:
    first, second = Replica(), Replica()
    await asyncio.gather(first.server.start(), second.server.start())
    yield first, second
    await asyncio.gather(first.server.stop(0), second.server.stop(0))


def over(*addresses: str) -> MeshChannel:
    token = TokenIssuer(SECRET).issue("alice", "acme", ("read",), 600)
    return MeshChannel(f"ipv4:{','.join(addresses)}", lambda: token)


async def get(channel: MeshChannel, times: int = 1) -> None:
    stub = channel.stub(TasksServiceStub)
    for _ in range(times):
        await stub.GetTask(tasks.GetTaskRequest(task_id=ID), wait_for_ready=True, timeout=30)


async def until_it_gets_calls(channel: MeshChannel, replica: Replica) -> None:
    before = replica.calls
    while replica.calls == before:
        await get(channel)
        await asyncio.sleep(0.01)


async def until_it_gets_none(channel: MeshChannel, replica: Replica) -> None:
    before = -1
    while replica.calls != before:
        before = replica.calls
        await get(channel, 4)
        await asyncio.sleep(0.01)


async def test_calls_are_spread_and_go_on_when_a_replica_stops(replicas: tuple[Replica, Replica]) -> None:
    first, second = replicas
    async with over(first.server.address, second.server.address) as channel:
        await until_it_gets_calls(channel, first)
        await until_it_gets_calls(channel, second)
        stopping = asyncio.create_task(first.server.stop(60))
        while not stopping.done():
            await get(channel)  # none is refused, and none holds the stop up, nor does the stream that watches
        left = first.calls
        await get(channel, 10)
        assert first.calls == left
        assert second.calls >= 10


async def test_a_replica_without_its_database_gets_no_calls_until_it_is_back(
    replicas: tuple[Replica, Replica],
) -> None:
    first, second = replicas
    async with over(first.server.address, second.server.address) as channel:
        await until_it_gets_calls(channel, first)
        await until_it_gets_calls(channel, second)
        first.connected = False
        await until_it_gets_none(channel, first)
        first.connected = True
        await until_it_gets_calls(channel, first)


async def test_calls_at_a_replica_that_loses_its_database_are_made_at_another(
    replicas: tuple[Replica, Replica],
) -> None:
    first, second = replicas
    arrived = asyncio.Event()

    async def waits(_request: Any, _context: Any) -> tasks.GetTaskResponse:
        arrived.set()
        await asyncio.Event().wait()  # for an answer of the database that never comes
        raise AssertionError

    async with over(first.server.address, second.server.address) as channel:
        await until_it_gets_calls(channel, first)
        await until_it_gets_calls(channel, second)
        first.servicer.behave = waits
        calls = [asyncio.create_task(get(channel)) for _ in range(6)]
        await arrived.wait()
        first.connected = False
        await asyncio.gather(*calls)  # far within the deadline of 30 s, or they fail
        assert first.server.calls == 0


async def test_a_replica_that_stands_still_loses_its_calls_to_another(
    replicas: tuple[Replica, Replica], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channels, "_SPREAD_KEEPALIVE_MS", (2_000, 500))  # servers take no ping sooner
    first, second = replicas
    host, _, port = first.server.address.rpartition(":")
    wire = Wire(host, int(port))
    await wire.open()
    async with over(wire.address, second.server.address) as channel:
        await until_it_gets_calls(channel, first)
        await until_it_gets_calls(channel, second)
        wire.cut()  # as the kernel of a stopped process: it takes what comes, and nothing follows
        stood, served = first.calls, second.calls
        # Reads that wait for it are repeated at the other one before their deadline.
        await asyncio.gather(*(get(channel) for _ in range(10)))
        assert first.calls == stood
        assert second.calls == served + 10
    await wire.close()


async def test_connections_are_renewed_under_calls_and_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "_CONNECTION_AGE_MS", 200)
    replica, peers = Replica(), set[str]()
    goes_on = asyncio.Event()

    async def watched(request: Any, _context: Any) -> AsyncIterator[tasks.WatchTaskResponse]:
        yield tasks.WatchTaskResponse()
        await goes_on.wait()
        yield tasks.WatchTaskResponse()

    def answered(request: Any, context: Any) -> tasks.GetTaskResponse:
        peers.add(context.peer())
        return tasks.GetTaskResponse()

    await replica.server.start()
    async with over(replica.server.address) as channel:
        replica.servicer.behave = watched
        stream: Any = channel.stub(TasksServiceStub).WatchTask(tasks.WatchTaskRequest(task_id=ID))
        await anext(stream)
        replica.servicer.behave = answered
        stub = channel.stub(TasksServiceStub)
        while len(peers) < 4:
            await stub.GetTask(tasks.GetTaskRequest(task_id=ID))  # waits for no connection, and none fails
        goes_on.set()
        await anext(stream)
    await replica.server.stop(0)


async def test_a_replica_that_too_many_watch_is_called_all_the_same() -> None:
    replica = Replica(max_concurrent_calls=2)
    await replica.server.start()
    try:
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(4):
                await get(await stack.enter_async_context(over(replica.server.address)))
        assert replica.calls == 4
    finally:
        await replica.server.stop(0)


async def test_probes_of_the_process_ask_for_none_of_what_it_stands_on(replicas: tuple[Replica, Replica]) -> None:
    replica = replicas[0]
    replica.connected = False
    async with grpc.aio.insecure_channel(replica.server.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)

        async def status(name: str) -> int:
            answer = await health.Check(health_pb2.HealthCheckRequest(service=name))
            return int(answer.status)

        assert [await status(""), await status(PROCESS), await status(REPLICA)] == [NOT_SERVING, SERVING, NOT_SERVING]
        replica.connected = True
        await asyncio.sleep(1.1)  # what was asked a moment ago is not asked again
        # Calls that need no object are served while the store is away.
        assert [await status(""), await status(PROCESS), await status(REPLICA)] == [NOT_SERVING, SERVING, SERVING]
