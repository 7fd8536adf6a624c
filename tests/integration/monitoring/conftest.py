"""The monitoring service with the gateway before it, and processes whose loops it supervises."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from meshkit.auth import TokenIssuer
from meshkit.bus import Bus
from meshkit.loops import Loops
from meshkit.supervision import LoopReporter
from services.gateway import composition as gateway
from services.gateway.config import GatewaySettings
from services.monitoring import composition as monitoring
from services.monitoring.config import MonitoringSettings

SECRET = "tests-only-tests-only-tests-only-tests-only"


@dataclass
class Mesh:
    """A running monitoring service and who talks to it."""

    monitoring: monitoring.MonitoringRuntime
    gateway: str
    stack: AsyncExitStack
    nats_url: str
    issuer: TokenIssuer = field(default_factory=lambda: TokenIssuer(SECRET))

    def http(self, *scopes: str) -> httpx.AsyncClient:
        token = self.issuer.issue("somebody", "acme", scopes or ("read", "operator"), 600)
        client = httpx.AsyncClient(
            base_url=f"{self.gateway}/api/system", headers={"authorization": f"Bearer {token}"}, timeout=30
        )
        self.stack.push_async_callback(client.aclose)
        return client

    async def process(self, loops: Loops, role: str) -> None:
        """Run loops as a process of their own would: with a connection to NATS, and reports."""
        bus = Bus(self.nats_url)
        await bus.connect()
        self.stack.push_async_callback(bus.close)
        await self.stack.enter_async_context(loops)
        await self.stack.enter_async_context(LoopReporter(bus, loops, role))


StartMesh = Callable[..., Awaitable[Mesh]]


@pytest.fixture
async def start_mesh(fresh_postgres_dsn: str, nats_url: str) -> AsyncIterator[StartMesh]:
    async with AsyncExitStack() as outer:

        async def begin(**settings: Any) -> Mesh:
            shared: dict[str, Any] = {
                "listen": "127.0.0.1:0",
                "auth_secret": SECRET,
                "shutdown_grace_seconds": 0.2,
            }
            stack = await outer.enter_async_context(AsyncExitStack())
            stores = {"database_url": fresh_postgres_dsn, "nats_url": nats_url}
            running = await monitoring.start(MonitoringSettings(**(shared | stores | settings)), stack)
            front = await gateway.start(GatewaySettings(**shared, addresses={"monitoring": running.address}), stack)
            return Mesh(running, f"http://{front.address}", stack, settings.get("nats_url", nats_url))

        yield begin


@pytest.fixture
async def mesh(start_mesh: StartMesh) -> Mesh:
    return await start_mesh()
