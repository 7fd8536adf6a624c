"""The external scaler, asked over a real socket as KEDA asks."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path

import grpc
import pytest

from meshkit.certificates import CertificateFiles, MeshCertificate
from meshkit.errors import unavailable
from services.monitoring.scaler.answers import QueueState
from services.monitoring.scaler.server import ScalerServer
from services.monitoring.scaler.service import ScalerDesk
from tests.certificates import Authority
from tests.keda import KedaClient

Q = {"queue": "inference", "slots": "4", "scalerAddress": "monitoring:9106"}


class Scheduler:
    """What the scheduler tells; it may be away, or be slow."""

    def __init__(self) -> None:
        self.state = QueueState(0, 0, 0, 0.0, drain_seconds=60, utilization=0.8)
        self.away = False
        self.slow = False
        self.reads = 0
        self.asked = asyncio.Event()

    async def read(self) -> Mapping[str, QueueState]:
        self.reads += 1
        self.asked.set()
        if self.slow:
            await asyncio.Event().wait()
        if self.away:
            raise unavailable("away")
        return {"inference": self.state}

    def has(self, waiting: int, slots: float) -> None:
        self.state = QueueState(waiting, 0, 0, slots, drain_seconds=60, utilization=0.8)


class Clock:
    """Passes a second with each look, so that nothing is answered from memory; or stands still."""

    def __init__(self) -> None:
        self.now = 0.0
        self.stands = False

    def __call__(self) -> float:
        self.now += 0.0 if self.stands else 2.0
        return self.now


@pytest.fixture
def scheduler() -> Scheduler:
    return Scheduler()


@pytest.fixture
def clock() -> Clock:
    return Clock()


Serve = Callable[..., Awaitable[ScalerServer]]


@pytest.fixture
async def serve(scheduler: Scheduler, clock: Clock) -> AsyncIterator[Serve]:
    servers = []

    async def begin(listen: str = "127.0.0.1:0", certificate: MeshCertificate | None = None) -> ScalerServer:
        desk = ScalerDesk(scheduler.read, clock=clock, read_seconds=1.0, watch_seconds=0.02)
        server = ScalerServer(desk, listen, certificate=certificate, grace_seconds=0.2)
        await server.start()
        servers.append(server)
        return server

    yield begin
    for server in servers:
        await server.stop()


Ask = Callable[..., KedaClient]


@pytest.fixture
async def keda() -> AsyncIterator[Ask]:
    clients = []

    def begin(server: ScalerServer, metadata: Mapping[str, str] = Q, **more: object) -> KedaClient:
        client = KedaClient(f"127.0.0.1:{server.port}", metadata, **more)  # type: ignore[arg-type] # passed on
        clients.append(client)
        return client

    yield begin
    for client in clients:
        await client.close()


async def until(client: KedaClient, condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            client.news.clear()
            await client.news.wait()


async def test_a_poll_learns_target_value_and_activity(serve: Serve, keda: Ask, scheduler: Scheduler) -> None:
    client = keda(await serve())
    scheduler.has(waiting=3, slots=18.0)
    poll = await client.poll()
    assert poll.metrics["inference-seconds"] == pytest.approx((192, 864))
    assert poll.active
    assert poll.replicas() == 5
    scheduler.has(waiting=0, slots=0.0)
    assert await client.poll() == type(poll)({"inference-seconds": (192.0, 0.0)}, active=False)


async def test_a_poll_of_many_triggers_is_one_look_at_the_scheduler(
    serve: Serve, keda: Ask, scheduler: Scheduler, clock: Clock
) -> None:
    server = await serve()
    clock.stands = True
    await asyncio.gather(*(keda(server).poll() for _ in range(10)))
    assert scheduler.reads == 1


async def test_what_is_not_known_is_an_error_and_never_zero(serve: Serve, keda: Ask, scheduler: Scheduler) -> None:
    client = keda(await serve())
    scheduler.has(waiting=1, slots=8.0)
    await client.poll()
    for trouble in ("away", "slow"):
        setattr(scheduler, trouble, True)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await client.poll()
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        setattr(scheduler, trouble, False)
    assert (await client.poll()).replicas() == 2


@pytest.mark.parametrize(("metadata", "text"), [({}, "metadata.queue"), ({"queue": "none"}, "Unknown queue")])
async def test_a_trigger_that_does_not_hold_is_refused(
    serve: Serve, keda: Ask, metadata: dict[str, str], text: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError, match=text) as refused:
        await keda(await serve(), metadata).poll()
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_the_stream_tells_at_first_and_each_change_and_nothing_while_nothing_is_known(
    serve: Serve, keda: Ask, scheduler: Scheduler
) -> None:
    client = keda(await serve())
    client.watch()
    await until(client, lambda: client.told == [False])
    scheduler.has(waiting=1, slots=1.25)
    await until(client, lambda: client.told == [False, True])
    scheduler.away = True
    scheduler.has(waiting=0, slots=0.0)
    reads = scheduler.reads
    async with asyncio.timeout(60):
        while scheduler.reads < reads + 3:
            await scheduler.asked.wait()
            scheduler.asked.clear()
    assert (client.told, client.ends) == ([False, True], [])
    scheduler.away = False
    await until(client, lambda: client.told == [False, True, False])


async def test_a_server_that_stops_ends_streams_in_good_order_and_the_client_comes_back(
    serve: Serve, keda: Ask, scheduler: Scheduler
) -> None:
    scheduler.has(waiting=1, slots=1.0)
    first = await serve()
    client = keda(first)
    client.watch()
    await until(client, lambda: client.told == [True])
    await first.stop()
    await until(client, lambda: client.ends[:1] == ["EOF"])
    await serve(f"127.0.0.1:{first.port}")
    await until(client, lambda: client.told == [True, True])
    assert set(client.ends[1:]) <= {"UNAVAILABLE"}


async def test_a_stream_is_refused_while_nothing_is_known(serve: Serve, keda: Ask, scheduler: Scheduler) -> None:
    scheduler.away = True
    client = keda(await serve())
    client.watch()
    await until(client, lambda: "UNAVAILABLE" in client.ends)
    assert client.told == []
    scheduler.away = False
    await until(client, lambda: client.told == [False])


def credentials(authority: Authority, client: tuple[Path, Path] | None) -> grpc.ChannelCredentials:
    root = authority.file.read_bytes()
    if client is None:
        return grpc.ssl_channel_credentials(root)
    certificate, key = client
    return grpc.ssl_channel_credentials(root, key.read_bytes(), certificate.read_bytes())


async def test_mutual_tls_lets_only_clients_of_the_authority_in_and_takes_renewed_files(
    serve: Serve, keda: Ask, scheduler: Scheduler, tmp_path: Path
) -> None:
    scheduler.has(waiting=1, slots=4.0)
    ours, strange = Authority(tmp_path, "ours"), Authority(tmp_path, "strange")
    certificate, key = ours.issue("monitoring")
    server = await serve(certificate=MeshCertificate(CertificateFiles(certificate, key, ours.file)))
    assert (await keda(server, credentials=credentials(ours, ours.issue("keda"))).poll()).replicas() == 1
    for bearer in (None, strange.issue("intruder")):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await keda(server, credentials=credentials(ours, bearer)).poll()
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    # The authority changes: from then on its clients are let in.
    new_certificate, new_key = strange.issue("renewed")
    certificate.write_bytes(new_certificate.read_bytes())
    key.write_bytes(new_key.read_bytes())
    ours.file.write_bytes(strange.file.read_bytes())
    client = keda(
        server,
        credentials=credentials(strange, strange.issue("later")),
        options=[("grpc.use_local_subchannel_pool", 1)],
    )
    assert (await client.poll()).active
