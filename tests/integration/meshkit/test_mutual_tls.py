"""Servers and channels of the mesh with certificates, over real sockets."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from atelier.tasks.v1 import task_pb2
from atelier.tasks.v1 import tasks_service_pb2 as tasks
from atelier.tasks.v1.tasks_service_pb2_grpc import TasksServiceStub
from grpc_health.v1 import health_pb2, health_pb2_grpc

from atelier_cli.embedded.process import free_ports
from atelier_cli.health import main
from meshkit.auth import TokenIssuer
from meshkit.certificates import SETTINGS
from meshkit.channel import MeshChannel
from meshkit.config import MeshSettings
from meshkit.errors import ErrorKind
from meshkit.health import PROCESS, REPLICA
from tests.certificates import Authority
from tests.integration.meshkit.serving import SECRET, Mesh, failure

_NAME = "tasks.atelier"
_TASK = "0197c0de-0000-7000-8000-000000000001"


class Place:
    """The files of one process, which may be replaced as a Secret's are."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir()

    def hold(self, authority: Authority, name: str, *trusted: Authority) -> None:
        """Put a new certificate there, and the authorities that it trusts."""
        certificate, key = authority.issue(name, dns=[_NAME])
        shutil.copy(certificate, self._folder / "tls.crt")
        shutil.copy(key, self._folder / "tls.key")
        (self._folder / "ca.crt").write_bytes(b"".join(one.file.read_bytes() for one in trusted or (authority,)))

    @property
    def settings(self) -> dict[str, Any]:
        names = ("tls.crt", "tls.key", "ca.crt")
        return {
            setting.removeprefix("ATELIER_").lower(): self._folder / name
            for setting, name in zip(SETTINGS, names, strict=True)
        }


Channels = Callable[..., MeshChannel]


@pytest.fixture
def ours(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "ours")


@pytest.fixture
def places(tmp_path: Path, ours: Authority) -> tuple[Place, Place]:
    """Those of a server, and those of a client."""
    made = (Place(tmp_path / "server"), Place(tmp_path / "client"))
    for place, name in zip(made, ("server", "client"), strict=True):
        place.hold(ours, name)
    return made


@pytest.fixture
async def mesh(places: tuple[Place, Place]) -> AsyncIterator[Mesh]:
    running = Mesh(**places[0].settings, health_listen="127.0.0.1:0")
    await running.server.start()
    yield running
    await running.server.stop(0)


@pytest.fixture
async def channels(mesh: Mesh) -> AsyncIterator[Channels]:
    token = TokenIssuer(SECRET).issue("alice", "acme", ("read",), 60)
    async with AsyncExitStack() as stack:

        def make(target: str = "", **settings: Any) -> MeshChannel:
            given = MeshSettings(auth_secret=SECRET, **settings)
            channel = MeshChannel.from_settings(given, target or mesh.server.address, lambda: token)
            stack.push_async_callback(channel.close)
            return channel

        yield make


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not holds():  # noqa: ASYNC110 -- nothing tells of it
            await asyncio.sleep(0.02)


async def ask(channel: MeshChannel) -> str:
    answer = await channel.stub(TasksServiceStub).GetTask(tasks.GetTaskRequest(task_id=_TASK), timeout=60)
    return str(answer.task.id)


async def test_one_of_the_mesh_is_served(places: tuple[Place, Place], channels: Channels) -> None:
    assert await ask(channels(**places[1].settings)) == _TASK


async def test_plain_text_and_strangers_are_refused(
    mesh: Mesh, places: tuple[Place, Place], channels: Channels, ours: Authority, tmp_path: Path
) -> None:
    stranger = Place(tmp_path / "stranger")
    stranger.hold(Authority(tmp_path, "theirs"), "stranger", ours)
    for channel in (channels(), channels(**stranger.settings)):
        assert (await failure(ask(channel))).kind is ErrorKind.UNAVAILABLE
    bare = grpc.ssl_channel_credentials(ours.file.read_bytes())
    async with grpc.aio.secure_channel(mesh.server.address, bare) as uncertified:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await health_pb2_grpc.HealthStub(uncertified).Check(health_pb2.HealthCheckRequest(), timeout=60)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    assert mesh.servicer.calls == []
    assert await ask(channels(**places[1].settings)) == _TASK


async def test_a_server_of_another_authority_or_name_gets_no_call(
    mesh: Mesh, places: tuple[Place, Place], channels: Channels, ours: Authority, tmp_path: Path
) -> None:
    deceived = Place(tmp_path / "deceived")
    deceived.hold(ours, "deceived", Authority(tmp_path, "theirs"))
    assert (await failure(ask(channels(**deceived.settings)))).kind is ErrorKind.UNAVAILABLE
    other = channels(**places[1].settings, tls_server_name="workflows.atelier")
    assert (await failure(ask(other))).kind is ErrorKind.UNAVAILABLE
    assert mesh.servicer.calls == []


async def test_replicas_behind_a_list_of_addresses_prove_the_name_of_their_service(
    mesh: Mesh, places: tuple[Place, Place], channels: Channels
) -> None:
    second = Mesh(**places[0].settings)
    await second.server.start()
    try:
        channel = channels(
            f"ipv4:{mesh.server.address},{second.server.address}", **places[1].settings, tls_server_name=_NAME
        )
        while not (mesh.servicer.calls and second.servicer.calls):
            assert await ask(channel) == _TASK
    finally:
        await second.server.stop(0)


async def test_the_name_of_the_address_is_what_replicas_prove(
    mesh: Mesh, places: tuple[Place, Place], channels: Channels, ours: Authority
) -> None:
    target = f"dns:///localhost:{mesh.server.port}"
    assert (await failure(ask(channels(target, **places[1].settings)))).kind is ErrorKind.UNAVAILABLE
    settings = places[0].settings
    certificate, key = ours.issue("named", dns=["localhost"])
    shutil.copy(certificate, settings["tls_certificate"])
    shutil.copy(key, settings["tls_key"])
    assert await ask(channels(target, **places[1].settings)) == _TASK


async def test_a_call_is_judged_by_its_token_whatever_the_certificate_says(
    mesh: Mesh, places: tuple[Place, Place]
) -> None:
    settings = MeshSettings(auth_secret=SECRET, **places[1].settings)
    async with MeshChannel.from_settings(settings, mesh.server.address) as channel:
        assert (await failure(ask(channel))).kind is ErrorKind.UNAUTHENTICATED


async def test_an_authority_is_replaced_while_calls_go_on(
    mesh: Mesh, places: tuple[Place, Place], channels: Channels, ours: Authority, tmp_path: Path
) -> None:
    theirs = Authority(tmp_path, "theirs")
    server, client = places
    channel = channels(**client.settings)
    ended, served = asyncio.Event(), 0

    async def calls() -> None:
        nonlocal served
        while not ended.is_set():
            assert await ask(channel) == _TASK
            served += 1

    async def settled(connection: object) -> None:
        """Wait until calls go over another connection, and some more of them were served."""
        await until(lambda: channel._link is not connection)
        wanted = served + 20
        await until(lambda: served >= wanted)

    callers = [asyncio.create_task(calls()) for _ in range(3)]
    try:
        steps = (
            # Both are trusted, then the new one issues, then the old one is trusted no more.
            (ours, (ours, theirs)),
            (theirs, (ours, theirs)),
            (theirs, (theirs,)),
        )
        for number, (issuer, trusted) in enumerate(steps):
            connection = channel._link
            server.hold(issuer, f"server-{number}", *trusted)
            client.hold(issuer, f"client-{number}", *trusted)
            await settled(connection)
    finally:
        ended.set()
        await asyncio.gather(*callers)
    await until(lambda: not channel._replaced)
    old = Place(tmp_path / "old")
    old.hold(ours, "old", ours, theirs)
    assert (await failure(ask(channels(**old.settings)))).kind is ErrorKind.UNAVAILABLE


async def test_a_stream_goes_on_over_the_connection_that_was_replaced(
    mesh: Mesh, places: tuple[Place, Place], channels: Channels, ours: Authority
) -> None:
    more = asyncio.Event()

    async def behave(_request: object, _context: object) -> AsyncIterator[tasks.WatchTaskResponse]:
        yield tasks.WatchTaskResponse()
        await more.wait()
        yield tasks.WatchTaskResponse()

    mesh.servicer.behave = behave
    channel = channels(**places[1].settings)
    stream: Any = channel.stub(TasksServiceStub).WatchTask(tasks.WatchTaskRequest(task_id=_TASK))
    await anext(stream)
    connection = channel._link
    places[1].hold(ours, "renewed")
    mesh.servicer.behave = lambda request, _context: tasks.GetTaskResponse(task=task_pb2.Task(id=request.task_id))
    while channel._link is connection:
        assert await ask(channel) == _TASK
    more.set()
    assert len([one async for one in stream]) == 1
    await until(lambda: not channel._replaced)


async def test_probes_ask_a_port_that_answers_in_plain_text_and_serves_nothing_else(mesh: Mesh) -> None:
    assert mesh.server.probed_port
    async with grpc.aio.insecure_channel(f"127.0.0.1:{mesh.server.probed_port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for name in (PROCESS, REPLICA):
            answer = await stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=60)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await TasksServiceStub(channel).GetTask(tasks.GetTaskRequest(task_id=_TASK), timeout=60)
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_the_health_command_presents_the_certificate_of_its_process(
    mesh: Mesh, places: tuple[Place, Place], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATELIER_LISTEN", f"0.0.0.0:{mesh.server.port}")
    assert await asyncio.to_thread(main) == 1, "in plain text it learns nothing"
    for setting, file in zip(SETTINGS, places[0].settings.values(), strict=True):
        monkeypatch.setenv(setting, str(file))
    assert await asyncio.to_thread(main) == 0
    monkeypatch.setenv("ATELIER_LISTEN", f"0.0.0.0:{free_ports(1)[0]}")
    monkeypatch.setenv("ATELIER_HEALTH_LISTEN", f"0.0.0.0:{mesh.server.probed_port}")
    assert await asyncio.to_thread(main) == 0
