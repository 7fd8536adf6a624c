"""Many clients at once: one that is stuck costs the others nothing, and a restart loses nobody an event."""

import asyncio
import json
import secrets
from contextlib import AsyncExitStack
from typing import Any

import pytest
from pydantic import SecretStr
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from meshkit.bus import Bus
from services.gateway.composition import start
from services.gateway.config import GatewaySettings
from tests.integration.gateway.conftest import SECRET, Mesh, StartMesh
from tests.integration.gateway.live import address, publish_created

_ROUND = 40


class Listener:
    """A client that comes again after a lost connection, asks for what it missed, and keeps every number it saw."""

    def __init__(self, mesh: Mesh, tenant: str) -> None:
        self._url = address(mesh, token=mesh.token(tenant, ("read",), 600))
        self.seen: dict[int, str] = {}
        self.connected = asyncio.Event()

    async def run(self) -> None:
        while True:
            try:
                async with connect(self._url, open_timeout=60, compression=None) as socket:
                    newest = max(self.seen, default=0)
                    asked = {"channel": "jobs", "last_sequence": newest}
                    await socket.send(json.dumps({"type": "resync", "data": asked} if newest else {"type": "ping"}))
                    async for text in socket:
                        self._take(json.loads(text))
            except (OSError, ConnectionClosed, InvalidHandshake):
                self.connected.clear()
                await asyncio.sleep(0.2)

    def _take(self, message: dict[str, Any]) -> None:
        if message["type"] in {"pong", "resync_ack"}:
            assert not message.get("gap_too_old")
            self.connected.set()
        elif message["type"] == "job.created":
            self.seen[message["sequence"]] = message["data"]["job_id"]


async def stuck(mesh: Mesh, tenant: str, stack: AsyncExitStack) -> asyncio.StreamReader:
    """Connect a client that never reads, over a socket that holds little."""
    host, _, port = mesh.url.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
    stack.callback(writer.close)
    token = mesh.token(tenant, ("read",), 600)
    lines = (
        f"GET /ws/events?token={token} HTTP/1.1",
        f"Host: {host}:{port}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
    )
    writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
    assert b" 101 " in await reader.readline()
    writer.transport.pause_reading()  # type: ignore[attr-defined] # of a transport that reads
    return reader


async def _miss_nothing(start_mesh: StartMesh, nats_url: str, clients: int, tenant: str) -> None:
    bus = Bus(nats_url)
    await bus.connect(60)
    options: dict[str, Any] = {"nats_url": SecretStr(nats_url), "tenant_max_streams": clients + 10}
    mesh: Mesh = await start_mesh(**options)
    listeners = [Listener(mesh, tenant) for _ in range(clients)]
    tasks = [asyncio.ensure_future(one.run()) for one in listeners]
    async with AsyncExitStack() as stack:
        stack.push_async_callback(bus.close)
        stack.callback(lambda: [task.cancel() for task in tasks])
        await stuck(mesh, tenant, stack)
        await asyncio.wait_for(asyncio.gather(*(one.connected.wait() for one in listeners)), 120)
        jobs = await publish_created(bus, _ROUND, tenant)
        await until_seen(listeners, len(jobs))
        # The gateway stops, events go on, and one at the same address starts again.
        await mesh.stack.aclose()
        jobs += await publish_created(bus, _ROUND, tenant)
        settings = GatewaySettings(
            listen=mesh.url.removeprefix("http://"), auth_secret=SecretStr(SECRET), shutdown_grace_seconds=2, **options
        )
        again = await stack.enter_async_context(AsyncExitStack())
        await start(settings, again)
        jobs += await publish_created(bus, _ROUND, tenant)
        await until_seen(listeners, len(jobs))
        # All have seen the same, by the same numbers, and in the order in which it happened.
        truth = listeners[0].seen
        assert [truth[number] for number in sorted(truth)] == jobs
        assert all(one.seen == truth for one in listeners)


async def until_seen(listeners: list[Listener], count: int) -> None:
    async with asyncio.timeout(120):
        while not all(len(one.seen) >= count for one in listeners):  # noqa: ASYNC110 -- the gateway drives it
            await asyncio.sleep(0.05)


async def test_nobody_misses_an_event_while_one_is_stuck_and_the_gateway_restarts(
    start_mesh: StartMesh, nats_url: str
) -> None:
    await _miss_nothing(start_mesh, nats_url, 40, f"t{secrets.token_hex(4)}")


@pytest.mark.long
async def test_none_of_500_clients_misses_an_event(start_mesh: StartMesh, nats_url: str) -> None:
    await _miss_nothing(start_mesh, nats_url, 500, f"t{secrets.token_hex(4)}")
