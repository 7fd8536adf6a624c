"""How long an event takes from its publication to the sockets of many clients that listen over WebSocket.

The gateway is a process of its own. The clients are sockets of this process that only note when bytes come: a client
that read frames and JSON would take longer for 500 messages than the gateway does.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import statistics
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import psutil
from atelier.events.v1 import events_pb2

from atelier_cli.embedded.nats import NatsServer
from atelier_cli.embedded.process import Launch, RunningServer, free_ports, spawn, stop
from meshkit.auth import READ, TokenIssuer
from meshkit.bus import Bus
from meshkit.outbox import event_headers

TENANT = "t0"
BOUND_MS = 100.0
_PAUSE_SECONDS = 0.25
_WARM_EVENTS = 4


class Arrivals:
    """When a message came to each client.

    Args:
        clients: How many there are.
    """

    def __init__(self, clients: int) -> None:
        self._clients = clients
        self.moments: list[float] = []
        self.complete = asyncio.Event()

    def note(self) -> None:
        """Note that it came to one more."""
        self.moments.append(time.perf_counter())
        if len(self.moments) == self._clients:
            self.complete.set()

    def forget(self) -> None:
        """Begin with the next message."""
        self.moments = []
        self.complete.clear()


class BareListener(asyncio.Protocol):
    """One client, which reads no frames.

    Args:
        request: The request that opens the connection.
        arrivals: Told of each message.
    """

    def __init__(self, request: bytes, arrivals: Arrivals) -> None:
        self._request = request
        self._arrivals = arrivals
        self.opened = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask for the connection."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """Note a message; the first bytes are the answer to the request."""
        if not self.opened.is_set():
            assert b" 101 " in data.split(b"\r\n", 1)[0], data[:200]
            self.opened.set()
            return
        self._arrivals.note()


@dataclass(frozen=True, slots=True)
class FanOut:
    """What was measured.

    Attributes:
        taken: What each event took to each client, in milliseconds.
        processor: Processor time of the gateway for an event, in milliseconds.
    """

    taken: list[float]
    processor: float

    @property
    def p99(self) -> float:
        """Milliseconds within which 99 of 100 messages came."""
        return sorted(self.taken)[min(len(self.taken) - 1, int(len(self.taken) * 0.99))]

    def row(self, clients: int) -> str:
        """Return the figures as a row of a table."""
        figures = (statistics.median(self.taken), self.p99, max(self.taken), self.processor)
        return f"| {clients} clients | " + " | ".join(f"{one:.1f}" for one in figures) + " |"


def measure(folder: Path, clients: int, events: int) -> FanOut:
    """Let events go to clients.

    Args:
        folder: Where servers keep their files.
        clients: How many listen.
        events: How many events are published, one after the other.
    """
    nats = NatsServer(folder / "nats", free_ports(1)[0], secrets.token_urlsafe(12), folder / "nats.log")
    running = RunningServer(nats)
    running.start()
    port, secret = free_ports(1)[0], secrets.token_urlsafe(32)
    gateway = spawn(
        Launch(
            argv=(sys.executable, "-m", "services.gateway"),
            log=folder / "gateway.log",
            env={
                **os.environ,
                "ATELIER_LISTEN": f"127.0.0.1:{port}",
                "ATELIER_NATS_URL": nats.url,
                "ATELIER_AUTH_SECRET": secret,
                "ATELIER_TENANT_MAX_STREAMS": str(clients),
                "ATELIER_PORT_FILE": str(folder / "port"),
                "ATELIER_LOG_LEVEL": "warning",
            },
        )
    )
    try:
        while not (folder / "port").exists():
            assert gateway.poll() is None, (folder / "gateway.log").read_text()[-2000:]
            time.sleep(0.05)
        token = TokenIssuer(secret).issue("bench", TENANT, (READ,), 3600)
        used: list[float] = []
        process = psutil.Process(gateway.pid)

        def note() -> None:
            used.append(sum(process.cpu_times()[:2]))

        async def run() -> list[float]:
            bus, arrivals = Bus(nats.url), Arrivals(clients)
            async with AsyncExitStack() as stack:
                await bus.connect(10)
                stack.push_async_callback(bus.close)
                await _connect(port, _request(port, token), clients, arrivals, stack)
                return await _events(bus, events, arrivals, note)

        taken = asyncio.run(run())
        return FanOut(taken, (used[-1] - used[0]) * 1e3 / events)
    finally:
        stop(gateway, signal.SIGTERM)
        running.stop()


def _request(port: int, token: str) -> bytes:
    return (
        f"GET /ws/events?token={token} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\n"
        "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    ).encode()


async def _connect(port: int, request: bytes, clients: int, arrivals: Arrivals, stack: AsyncExitStack) -> None:
    loop = asyncio.get_running_loop()
    for _ in range(clients):
        _, listener = await loop.create_connection(lambda: BareListener(request, arrivals), "127.0.0.1", port)
        stack.callback(listener.transport.abort)
        await listener.opened.wait()


async def _events(bus: Bus, events: int, arrivals: Arrivals, note: Callable[[], None]) -> list[float]:
    """Publish events, each once the one before has come to all; call `note` before the first and after the last."""
    taken: list[float] = []
    for number in range(_WARM_EVENTS + events):
        await asyncio.sleep(_PAUSE_SECONDS)
        if number == _WARM_EVENTS:
            note()
        arrivals.forget()
        begun = time.perf_counter()
        await _publish(bus)
        await asyncio.wait_for(arrivals.complete.wait(), 60)
        if number >= _WARM_EVENTS:
            taken += [(one - begun) * 1e3 for one in arrivals.moments]
    note()
    return taken


async def _publish(bus: Bus) -> None:
    event = events_pb2.TaskCreatedEvent(task_id=str(uuid.uuid4()), task_type="GENERATION", status="PENDING")
    event.created_at.GetCurrentTime()
    headers = event_headers(version=1, tenant=TENANT, event_type="task_created", traceparent="")
    await bus.publish("atelier.tasks.v1.task.created", event.SerializeToString(), headers, msg_id=event.task_id)
