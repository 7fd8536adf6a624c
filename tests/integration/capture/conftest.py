"""Capture with a root of cameras, and the gateway before it, as production composes them."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect

from meshkit.auth import TokenIssuer
from services.gateway import composition as gateway
from services.gateway.config import GatewaySettings
from services.monitoring.capture import composition as capture
from services.monitoring.capture.composition import CaptureRuntime
from services.monitoring.capture.config import CaptureSettings

SECRET = "tests-only-tests-only-tests-only-tests-only"


@dataclass
class Studio:
    """A running capture and who talks to it; its tenant is its own, because all tests share one stream of events."""

    capture: CaptureRuntime
    root: Path
    gateway: str
    tenant: str
    stack: AsyncExitStack
    issuer: TokenIssuer = field(default_factory=lambda: TokenIssuer(SECRET))

    def token(self, tenant: str = "", scopes: tuple[str, ...] = ("read", "write")) -> str:
        return self.issuer.issue("somebody", tenant or self.tenant, scopes, 600)

    def http(self, tenant: str = "", scopes: tuple[str, ...] = ("read", "write")) -> httpx.AsyncClient:
        client = httpx.AsyncClient(
            base_url=f"{self.gateway}/api/capture",
            headers={"authorization": f"Bearer {self.token(tenant, scopes)}"},
            timeout=30,
        )
        self.stack.push_async_callback(client.aclose)
        return client

    @asynccontextmanager
    async def listening(self, tenant: str = "") -> AsyncIterator[ClientConnection]:
        """Listen to events over WebSocket, from the moment that the block begins."""
        address = f"ws{self.gateway.removeprefix('http')}/ws/events?token={self.token(tenant)}"
        async with connect(address) as client:
            await client.send('{"type": "ping"}')
            assert await client.recv() == '{"type":"pong"}'
            yield client

    async def rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        async with self.capture.database.connection() as conn:
            cursor = await conn.execute(query, values)
            return await cursor.fetchall() if cursor.description else []


StartStudio = Callable[..., Awaitable[Studio]]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "cameras").mkdir()
    return tmp_path / "cameras"


@pytest.fixture
async def start_studio(mesh_dsn: str, nats_url: str, root: Path) -> AsyncIterator[StartStudio]:
    tenant = f"studio-{secrets.token_hex(6)}"
    async with AsyncExitStack() as outer:

        async def begin(**settings: Any) -> Studio:
            shared: dict[str, Any] = {
                "listen": "127.0.0.1:0",
                "auth_secret": SECRET,
                "shutdown_grace_seconds": 0.2,
                "nats_url": nats_url,
            }
            own = {"database_url": mesh_dsn, "camera_root": root, "capture_tenant": tenant}
            stack = await outer.enter_async_context(AsyncExitStack())
            running = await capture.start(CaptureSettings(**(shared | own | settings)), stack)
            front = await gateway.start(GatewaySettings(**shared, addresses={"capture": running.address}), stack)
            return Studio(running, root, f"http://{front.address}", tenant, stack)

        yield begin


@pytest.fixture
async def studio(start_studio: StartStudio) -> Studio:
    return await start_studio()


async def until(check: Callable[[], Awaitable[Any]], seconds: float = 60.0) -> Any:
    """Return the first answer that is true."""
    deadline = time.monotonic() + seconds
    while not (found := await check()):
        assert time.monotonic() < deadline, "it did not come about"
        await asyncio.sleep(0.05)
    return found
