"""The memory of a gateway while a client of its live events is stuck."""

import asyncio
import secrets
import uuid

import psutil
import pytest
from atelier.events.v1 import events_pb2
from atelier.tasks.v1 import enums_pb2
from websockets.asyncio.client import ClientConnection, connect

from meshkit.bus import Bus
from meshkit.live.log import MOST_KEPT
from meshkit.outbox import event_headers
from meshkit.publishing import Outgoing
from tests.e2e.harness import RunningMesh

pytestmark = pytest.mark.timeout(400)

_MIB = 2**20
_BATCH = 500
_TEXT_BYTES = 2000
# What a gateway keeps, twice over and more: it would have to keep all of it for a client that takes nothing.
_STUCK_ROUNDS = 3 * MOST_KEPT
_BOUND_BYTES = 40 * _MIB


def _event(tenant: str, what: str, error: str | None = None) -> Outgoing:
    status = enums_pb2.TaskStatus.Value(f"TASK_STATUS_{what.upper()}")
    event = events_pb2.TaskStatusEvent(
        task_id=str(uuid.uuid4()), task_type="GENERATION", status=status, error_message=error
    )
    event.timestamp.GetCurrentTime()
    headers = event_headers(version=1, tenant=tenant, event_type="x", traceparent="")
    return Outgoing(
        f"atelier.tasks.v1.task.{what}", event.SerializeToString(), {**headers, "Nats-Msg-Id": str(uuid.uuid4())}
    )


async def _publish(bus: Bus, tenant: str, count: int) -> None:
    """Publish so many events that bear a long text, and one of another type behind them."""
    for _ in range(count // _BATCH):
        text = secrets.token_hex(_TEXT_BYTES // 2)
        assert all(await bus.publish_all([_event(tenant, "failed", text) for _ in range(_BATCH)]))
    assert all(await bus.publish_all([_event(tenant, "completed")]))


async def _stuck(mesh: RunningMesh, token: str) -> asyncio.StreamWriter:
    """Connect a client that never reads, over a socket that holds little."""
    reader, writer = await asyncio.open_connection("127.0.0.1", mesh.port, limit=1024)
    lines = (
        f"GET /ws/events?token={token} HTTP/1.1",
        f"Host: 127.0.0.1:{mesh.port}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
    )
    writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
    assert b" 101 " in await reader.readline()
    writer.transport.pause_reading()  # type: ignore[attr-defined] # of a transport that reads
    return writer


async def _told(client: ClientConnection) -> None:
    """Listen until the event behind the others has come: the gateway has taken all before it."""
    async with asyncio.timeout(180):
        while '"job.completed"' not in str(await client.recv()):
            pass


async def test_a_client_that_takes_nothing_costs_the_gateway_no_memory(mesh: RunningMesh) -> None:
    tenant = f"t{secrets.token_hex(4)}"
    token = mesh.token(tenant)
    gateway = psutil.Process(mesh.pid("gateway"))
    bus = Bus(mesh.environment_of("gateway")["ATELIER_NATS_URL"])
    await bus.connect(30)
    try:
        async with connect(f"ws://127.0.0.1:{mesh.port}/ws/events?token={token}") as client:
            await client.send('{"type": "subscribe", "data": {"events": ["job.completed"]}}')
            while '"subscribed"' not in str(await client.recv()):
                pass
            # So many events are kept, whoever listens.
            await _publish(bus, tenant, MOST_KEPT)
            await _told(client)
            before = gateway.memory_info().rss
            writer = await _stuck(mesh, token)
            try:
                await _publish(bus, tenant, _STUCK_ROUNDS)
                await _told(client)
                grown = gateway.memory_info().rss - before
            finally:
                writer.close()
    finally:
        await bus.close()
    assert _BOUND_BYTES < _STUCK_ROUNDS * _TEXT_BYTES / 2
    assert grown < _BOUND_BYTES, f"{grown / _MIB:.0f} MiB more"
