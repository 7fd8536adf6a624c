"""The stream of events on a cluster of three NATS servers."""

import asyncio
import contextlib
import json
import secrets
import signal
import subprocess
import sysconfig
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest
from nats import errors as nats_errors
from nats.js import api
from nats.js import errors as js_errors

from atelier_cli.embedded.process import free_ports
from meshkit.bus import Bus
from meshkit.errors import MeshError

T = TypeVar("T")
NATS = Path(sysconfig.get_path("scripts")) / "nats-server"


class NatsCluster:
    """Three servers, by number."""

    def __init__(self, folder: Path) -> None:
        self.ports, routes = free_ports(3), free_ports(3)
        self._drawn = secrets.token_hex(8)
        self.servers = []
        for number, (port, route) in enumerate(zip(self.ports, routes, strict=True)):
            others = [f"nats://127.0.0.1:{other}" for other in routes]
            config = folder / f"{number}.conf"
            config.write_text(
                f'server_name: n{number}\nlisten: "127.0.0.1:{port}"\n'
                f"jetstream {{store_dir: {json.dumps(str(folder / str(number)))}, sync_interval: always}}\n"
                f'authorization {{user: tests, password: "{self._drawn}"}}\n'
                f'cluster {{name: tests, listen: "127.0.0.1:{route}", routes: {json.dumps(others)}}}\n'
            )
            with (folder / f"{number}.log").open("wb") as log:
                self.servers.append(subprocess.Popen([NATS, "-c", config], stdout=log, stderr=log))

    @property
    def url(self) -> str:
        return ",".join(f"nats://tests:{self._drawn}@127.0.0.1:{port}" for port in self.ports)

    def stop(self) -> None:
        for server in self.servers:
            server.send_signal(signal.SIGKILL)
            server.wait()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[NatsCluster]:
    cluster = NatsCluster(tmp_path)
    yield cluster
    cluster.stop()


async def test_each_of_three_servers_may_be_lost(cluster: NatsCluster) -> None:
    bus = Bus(cluster.url, replicas=3)
    await bus.connect(30)
    try:
        await published(bus, "1")
        found = await info(bus, lambda found: bool(found.cluster and found.cluster.leader))
        assert found.config.num_replicas == 3
        assert found.cluster is not None
        leader = int(str(found.cluster.leader).removeprefix("n"))
        cluster.servers[leader].send_signal(signal.SIGKILL)
        await published(bus, "2")
        assert (await info(bus, lambda found: found.state.messages >= 2)).state.messages == 2
    finally:
        await bus.close()


async def test_only_who_is_told_a_number_of_copies_changes_it(cluster: NatsCluster) -> None:
    async with contextlib.AsyncExitStack() as stack:

        async def joined(replicas: int | None, subject: str = "atelier.*.v1.>") -> Bus:
            bus = Bus(cluster.url, subjects=[subject], replicas=replicas)
            stack.push_async_callback(bus.close)
            await bus.connect(30)
            return bus

        async def copies(bus: Bus) -> int | None:
            return (await info(bus)).config.num_replicas

        untold = await joined(None)
        assert await copies(untold) == 1, "one, where there is no stream yet"
        assert await copies(await joined(3)) == 3
        assert await copies(untold) == 3
        later = await joined(None, "atelier.*.v2.>")
        assert await copies(later) == 3, "also where the rest of its configuration changes"
        assert (await info(later)).config.subjects == ["atelier.*.v2.>"]
        assert await copies(await joined(1)) == 1


async def answered(ask: Callable[[], Awaitable[T]]) -> T:
    """Ask until the cluster answers: while its servers choose who leads, none does."""
    async with asyncio.timeout(120):
        while True:
            try:
                return await ask()
            except (MeshError, nats_errors.Error, js_errors.Error):
                await asyncio.sleep(0.1)


async def info(bus: Bus, holds: Callable[[api.StreamInfo], bool] = lambda _: True) -> api.StreamInfo:
    """What the cluster says of the stream, once that holds."""

    async def ask() -> api.StreamInfo:
        _, stream, name = await bus.events()
        return await stream.stream_info(name)

    while not holds(found := await answered(ask)):  # noqa: ASYNC110 -- remote
        await asyncio.sleep(0.1)
    return found


async def published(bus: Bus, ident: str) -> None:
    await answered(lambda: bus.publish("atelier.test.v1.one.made", b"", msg_id=ident))
